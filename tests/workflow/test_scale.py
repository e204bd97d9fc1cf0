"""Many cells cost little more than few: files are read once, and what is shown stays readable."""

from dataclasses import replace

import pytest

from tests.workflow import curve, projects, synthetic
from tests.workflow.studies import cell
from workflow import index, listing, quality, results, tables
from workflow.quality import Finding
from workflow.typeset import MOST_LISTED, Notes, some

MANY = 1000


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A grid of a thousand cells, and a folder with their results."""
    root = tmp_path_factory.mktemp("many")
    grid = synthetic.grid(root, MANY)
    synthetic.store(root, grid.cells)
    return grid, root


def test_tables_of_results_that_were_read_before_open_none_of_them(study, monkeypatch):
    monkeypatch.setattr(index, "SETTLED_NS", -(10**9))
    grid, root = study
    first = tables.build(grid, root)
    monkeypatch.setattr(results, "read", lambda path: pytest.fail(f"{path} is read again"))
    again = tables.build(grid, root)
    assert len(again.cells) == len(grid.cells) == MANY
    assert again.cells.equals(first.cells) and again.typeset() == first.typeset()
    assert (again.cells.status == "oom").sum() == MANY // 50


def test_notes_and_findings_name_a_few_of_many():
    assert some(["a", "b"], 1) == ["a", "b"] and some(["a", "b", "c"], 1) == ["a", "2 more"]
    notes = Notes()
    for number in range(MANY):
        notes.case("↓", f"method {number}")
    ((_, text),) = notes.listed()
    assert text.count(";") == MOST_LISTED and text.endswith(f"{MANY - MOST_LISTED} more")
    same = [Finding("missing cells", "note", f"cell {number}", "no result yet") for number in range(MANY)]
    different = [Finding("failed cells", "serious", f"cell {number}", f"reason {number}") for number in range(MANY)]
    found = quality.bounded([*different, *same])
    assert [finding.kind for finding in found] == ["failed cells"] * (quality.MOST_SHOWN + 1) + ["missing cells"]
    assert found[-2].where == f"{MANY - quality.MOST_SHOWN} more" and found[-1].where.startswith(f"{MANY:,} of them")
    assert quality.bounded(different[:3] + same[:3]) == different[:3] + same[:3]


def test_a_status_for_people_folds_what_is_alike(tmp_path):
    cells = tuple(cell(seed=seed) for seed in range(MANY))
    grid = replace(projects.grid(projects.make(tmp_path)), cells=cells)
    rows = listing.not_ok(grid, ["missing"] * MANY, [""] * MANY)
    folded = listing.folded(rows)
    assert len(rows) == MANY and len(folded) == 21 and "980 more" in folded[-1]["cell"]
    assert listing.folded(rows[:21]) == rows[:21]


@pytest.mark.slow
def test_tables_of_a_hundred_thousand_results_take_a_minute_and_two_gibibytes(tmp_path):
    """After a first reading, as CPU seconds of the one process: what others do on the machine does not count."""
    steps = curve.steps(100_000, tmp_path)
    assert len(synthetic.grid(tmp_path, 100_000).cells) == 100_000
    steps["store"]()
    steps["first status"]()
    cost = steps["tables"]()
    print(cost)
    assert cost.cpu <= 60 and cost.peak <= 2048
