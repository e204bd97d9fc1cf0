"""The workflow names the files of exactly the tables that are written."""

import pytest

from tests.workflow import studies
from tests.workflow.studies import cell, grid
from workflow import products, registry, tables


@pytest.fixture(autouse=True)
def made_up_tasks(monkeypatch):
    monkeypatch.setattr(registry, "suites", studies.suites)


@pytest.mark.parametrize(
    "cells",
    [
        [cell()],
        [cell(task="mnli"), cell()],
        [cell(suite="math", task="gsm8k")],
        [cell(suite="math", task="math10k"), cell(suite="vtab", task="dtd")],
        [cell(suite="cost", task="generate")],
        [cell(suite="cost", task="generate"), cell("vera", suite="math", task="math10k")],
    ],
    ids=lambda cells: "+".join(f"{one.suite}/{one.task}" for one in cells),
)
def test_the_tables_that_are_named_are_those_that_are_made(cells, tmp_path):
    made = tables.build(grid(*cells), tmp_path)
    assert products.table_names(grid(*cells)) == tuple(table.name for table in made.typeset())


def test_every_table_has_a_caption():
    captions = {path.stem for path in (registry.ROOT / "reports" / "captions").glob("*.rst")}
    every = grid(cell(), cell(task="mnli"), cell(suite="math", task="gsm8k"))
    assert {*products.table_names(every), "cells", "report", "workflow"} == captions
