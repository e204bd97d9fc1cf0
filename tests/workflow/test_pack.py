"""Packed cells give what they give alone, fail alone, and are never lost or run twice."""

import json
import os
import re
from collections import Counter

import pytest

from models import load as loading
from tests.workflow import projects
from tests.workflow.test_snakefile import snakemake
from workflow import __main__, pack, results
from workflow import cell as cells
from workflow import grid as grids
from workflow.errors import AtlasError

STUDY = """
tasks: {demo_glue: [acceptability]}
models: [tiny-bert]
methods: [head, lora, ia3, {method: lora, label: two, settings: {rank: 2}}, houlsby, bitfit]
recipe: {max_steps: 6, evaluations: 1, batch_size: 8}
protocol: {demo_glue: {train: 60, validation: 20, test: 40}}
plugins: [mine]
measure: [accuracy]
pack: 4
"""
ODD = """
from methods.lowrank.lora import LoRA


class Odd(LoRA):
    name = "odd"

    def %s
"""
SPOILS = "detach(self):\n        next(self.backbone.model.parameters()).data.mul_(1.5)\n        super().detach()"
FAILS = "attach(self, backbone, ctx):\n        raise ValueError('no such thing')"


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Load a grid in an empty working directory, with one plugin of its own."""
    monkeypatch.chdir(tmp_path)

    def make(odd=FAILS, **changes):
        projects.write(tmp_path, "mine/odd.py", ODD % odd)
        projects.write(tmp_path, "grid.yaml", STUDY)
        return grids.load(tmp_path / "grid.yaml", changes)

    return make


def numbers(path):
    result = results.read(path)
    return result["status"], result.get("metrics"), result.get("curves"), result.get("parameters")


@pytest.fixture
def loads(monkeypatch):
    """Count how often a network is loaded."""
    found, load = Counter(), loading.load
    monkeypatch.setattr(loading, "load", lambda *a, **k: found.update(["network"]) or load(*a, **k))
    return found


def test_a_packed_cell_gives_what_it_gives_alone_and_the_network_is_loaded_once(study, loads):
    grid = study()
    for cell in grid.cells:
        cells.main(grid, cell)
    alone = {cell.name: numbers(cell.path) for cell in grid.cells}
    assert loads.pop("network") == len(grid.cells) == 6
    for cell in grid.cells:
        cell.path.unlink()
    first, second = pack.packs(grid)
    pack.run(grid, first)
    assert loads.pop("network") == 1
    pack.run(grid, second)
    assert loads["network"] == 2, "Houlsby trains norms of the network, so BitFit loads another"
    assert {cell.name: numbers(cell.path) for cell in grid.cells} == alone
    assert pack.marker(grid, first).exists() and pack.marker(grid, second).exists()


def test_seeds_have_heads_of_their_own(study):
    grid = study(seeds=[0, 1], methods=["head"])
    (name,) = pack.packs(grid)
    pack.run(grid, name)
    packed = [numbers(cell.path) for cell in grid.cells]
    for cell in grid.cells:
        cell.path.unlink()
        cells.main(grid, cell)
    assert [numbers(cell.path) for cell in grid.cells] == packed
    assert packed[0] != packed[1]


def test_a_method_that_leaves_traces_does_not_spoil_the_next_cell(study, loads):
    grid = study(SPOILS, methods=["odd", "head"])
    (name,) = pack.packs(grid)
    pack.run(grid, name)
    packed = numbers(grid.cells[1].path)
    assert loads["network"] == 2, "it was found to be changed"
    grid.cells[1].path.unlink()
    cells.main(grid, grid.cells[1])
    assert numbers(grid.cells[1].path) == packed


def test_one_failing_cell_leaves_the_others(study):
    grid = study(methods=["head", "odd", "lora"])
    (name,) = pack.packs(grid)
    pack.run(grid, name)
    assert [results.read(cell.path)["status"] for cell in grid.cells] == ["ok", "error", "ok"]


def test_only_what_is_missing_or_damaged_runs_again(study):
    grid = study(methods=["head", "lora", "ia3"])
    (name,) = pack.packs(grid)
    pack.run(grid, name)
    kept, damaged, lost = (cell.path for cell in grid.cells)
    before = kept.stat().st_mtime_ns
    whole = [numbers(cell.path) for cell in grid.cells]
    damaged.write_text(damaged.read_text()[:100])
    lost.unlink()
    pack.update_markers(grid, pack.packs(grid))
    assert not pack.marker(grid, name).exists(), "so that the workflow runs it again"
    pack.run(grid, name)
    assert kept.stat().st_mtime_ns == before
    assert [numbers(cell.path) for cell in grid.cells] == whole


def test_the_marker_stays_while_all_results_are_there(study):
    grid = study(methods=["head"])
    (name,) = pack.packs(grid)
    pack.run(grid, name)
    pack.update_markers(grid, pack.packs(grid))
    assert pack.marker(grid, name).exists()


def test_a_marker_follows_a_result_that_another_run_has_made_again(study, tmp_path):
    grid = study(methods=["head", "lora"])
    (name,), (_, again) = pack.packs(grid), grid.cells
    for cell in grid.cells:
        projects.store(cell, tmp_path)
    path = projects.write(tmp_path, str(pack.marker(grid, name)), "{}")
    os.utime(path, ns=(0, again.path.stat().st_mtime_ns + 1))
    pack.update_markers(grid, pack.packs(grid))
    assert path.read_text() == "{}"
    before = path.stat().st_mtime_ns
    projects.store(again, tmp_path, "timeout")
    os.utime(again.path, ns=(0, before + 1))
    pack.update_markers(grid, pack.packs(grid))
    assert path.stat().st_mtime_ns > before
    found = json.loads(path.read_text())
    assert [found[str(cell.path)]["status"] for cell in grid.cells] == ["ok", "timeout"]
    os.utime(again.path, ns=(0, path.stat().st_mtime_ns + 1))
    pack.update_markers(grid, pack.packs(grid))
    assert json.loads(path.read_text()) != found, "Snakemake compares what files say, too"


def test_a_cell_that_killed_its_job_comes_last(study, monkeypatch):
    """The job dies in the first cell; tried again, the others have their results before it is the first's turn."""
    grid = study(methods=["head", "lora", "ia3"])
    (name,) = pack.packs(grid)
    order = []

    def main(grid, cell, **more):
        order.append(cell.method)
        if cell.method == "head":
            raise KeyboardInterrupt
        cell.path.parent.mkdir(parents=True, exist_ok=True)
        cell.path.write_text("{}")

    monkeypatch.setattr(cells, "main", main)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            pack.run(grid, name)
    assert order == ["head", "lora", "ia3", "head"]
    assert not pack.marker(grid, name).exists()


def test_cells_are_packed_by_task_and_network(study):
    grid = study(
        tasks={"demo_glue": ["acceptability", "entailment"]},
        models=["tiny-bert", "tiny-llama"],
        methods=["head", "lora", "ia3"],
        overrides=[{"match": {"method": "ia3", "model": "tiny-llama"}, "recipe": {"dtype": "bfloat16"}}],
        pack=2,
    )
    found = pack.packs(grid)
    shared = [{(c.task, c.model, c.recipe["dtype"]) for c in part} for part in found.values()]
    assert all(len(kinds) == 1 for kinds in shared)
    assert sorted(map(len, found.values())) == [1, 1, 1, 1, 2, 2, 2, 2]
    assert {c.grid_key for part in found.values() for c in part} == {c.grid_key for c in grid.cells}
    assert found == pack.packs(grid)
    assert all(name == os.path.basename(name) for name in found)


def test_cells_that_wait_for_others_are_jobs_of_their_own(study, tmp_path):
    grid = study(
        tasks={"glue": ["rte", "sst2", "cola"]}, protocol={"glue": {"name": "mnli-start"}}, methods=["lora"], pack=8
    )
    packed = {c.task for part in pack.packs(grid).values() for c in part}
    assert packed == {"sst2", "cola"}
    waited = pack.awaited(grid, pack.packs(grid))
    assert sum("/packs/" in path for path in waited) == 2
    assert {path.split("/")[3] for path in waited if "/cells/" in path} == {"rte", "mnli"}


def test_without_packing_there_is_no_pack(study):
    grid = study(pack=1)
    assert pack.packs(grid) == {}
    assert pack.awaited(grid, {}) == [str(cell.path) for cell in grid.cells]


def test_a_pack_asks_for_the_most_memory_and_the_time_of_all(study):
    grid = study(methods=["head", "lora"])
    (part,) = pack.packs(grid).values()
    each = {
        part[0].configuration: {"mem_mb": 900, "runtime": 90},
        part[1].configuration: {"mem_mb": 2000, "runtime": 61},
    }
    assert pack.needs(part, each) == {"mem_mb": 2000, "runtime": 60 + 30 + 5}


def test_a_pack_that_is_not_there_is_one_clear_error(study, capsys):
    grid = study()
    with pytest.raises(AtlasError, match="no pack"):
        pack.run(grid, "other")
    assert __main__.main(["pack", "other", "--grid", "grid.yaml"]) == 2
    assert "no pack 'other'" in capsys.readouterr().err


def test_the_workflow_runs_packs_and_runs_again_what_lost_a_result(study, tmp_path):
    grid = study(methods=["head", "lora", "ia3"])
    text = STUDY.replace(STUDY.splitlines()[3], "methods: [head, lora, ia3]")
    projects.write(tmp_path, "grid.yaml", text)
    status, output = snakemake(tmp_path)
    assert status == 0, output
    (name,) = pack.packs(grid)
    assert pack.marker(grid, name).exists()
    assert [results.read(cell.path)["status"] for cell in grid.cells] == ["ok"] * 3
    assert len((tmp_path / "results/grid/tables/cells.csv").read_text().splitlines()) == 4
    status, output = snakemake(tmp_path, "--dry-run")
    assert status == 0 and "Nothing to be done" in output
    grid.cells[2].path.unlink()
    status, output = snakemake(tmp_path, "--dry-run")
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", output, re.MULTILINE))
    assert status == 0 and jobs == {"pack": "1", "tables": "1", "report": "1", "all": "1", "total": "4"}
