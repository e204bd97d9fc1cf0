"""Cells that continue from another one: what is left for them, what they take over, and what they say if it is gone."""

import os
import re

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from methods.lowrank.lora import LoRA
from tasks.glue import suite
from tests.helpers import attach, backbone, lively, same
from tests.workflow import projects
from tests.workflow.test_snakefile import dry_run
from workflow import cell as cells
from workflow import entry, grid, results, start
from workflow.__main__ import main

SPLITS = {"mnli": ("train", "validation_matched", "validation_mismatched"), "rte": ("train", "validation")}
GRID = """
tasks: {glue: [rte]}
models: [tiny-roberta]
methods: [lora]
seeds: [0, 1]
protocol: {glue: {name: mnli-start}}
recipe: {max_steps: 4, evaluations: 2, batch_size: 8, max_length: 16, lr: 1.0e-2}
measure: [accuracy]
data_root: data
"""


def write_data(root, size=30):
    """Small parquet files of MNLI and RTE below `root`, with every label."""
    rng = np.random.default_rng(0)
    for task, splits in SPLITS.items():
        info = suite.tasks[task]
        for split in splits:
            columns = {field: [" ".join(f"w{word}" for word in rng.integers(50, size=6)) for _ in range(size)]
                       for field in info.fields}  # fmt: skip
            columns |= {"label": [row % len(info.labels) for row in range(size)], "idx": list(range(size))}
            path = root / "glue" / task / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pyarrow.table(columns), path)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """(grid, its cell on MNLI with seed 0, its cell on RTE with seed 0) in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "data")
    made = grid.load(projects.write(tmp_path, "grid.yaml", GRID))
    return made, *(next(c for c in made.cells if (c.task, c.seed) == (task, 0)) for task in ("mnli", "rte"))


def attached(seed=0):
    """LoRA on a tiny network, with values that are not its first ones if a seed is given."""
    method, on = LoRA.create({}), backbone("tiny-roberta")
    attach(method, on)
    if seed:
        lively(method.parts, seed=seed)
    return method


@pytest.fixture
def trained(study, tmp_path):
    """The same with a finished cell on MNLI; the method that it left behind comes last."""
    made, mnli, rte = study
    projects.store(mnli, tmp_path)
    method = attached(seed=1)
    start.save(mnli, suite, mnli.path, method)
    return made, mnli, rte, method


def error(made, cell):
    assert cells.main(made, cell) == "error"
    return results.read(cell.path)["reason"]


def test_a_cell_runs_from_the_state_that_its_start_left(study):
    made, mnli, rte = study
    assert cells.main(made, mnli) == "ok"
    assert {"accuracy/matched", "accuracy/mismatched"} < results.read(mnli.path)["metrics"]["selected"].keys()
    left = mnli.path.with_name("seed0.state.safetensors")
    state = load_file(left)
    assert sum(tensor.numel() for tensor in state.values()) == 2048  # LoRA alone: 2 layers, q and v, rank 8; no head
    assert cells.main(made, rte) == "ok"
    result = results.read(rte.path)
    assert result["cell"]["start"] == mnli.config_key
    save_file({name: 0 * tensor for name, tensor in state.items()}, left)
    assert cells.main(made, rte) == "ok"
    assert results.read(rte.path)["curves"] != result["curves"]


def test_what_is_saved_is_what_is_loaded(trained, tmp_path):
    made, _, rte, left = trained
    method = attached()
    assert not same(method.state_dict(), left.state_dict())
    start.load(made, rte, tmp_path, method)
    assert same(method.state_dict(), left.state_dict())


def test_only_cells_that_others_continue_from_leave_their_state(study):
    _, mnli, rte = study
    start.save(rte, suite, rte.path, attached())
    assert not rte.path.parent.exists()
    start.save(mnli, suite, mnli.path, attached())
    assert [path.name for path in mnli.path.parent.iterdir()] == ["seed0.state.safetensors"]


def test_a_cell_without_a_start_is_left_as_it_is(study, tmp_path):
    made, mnli, _ = study
    method = attached()
    before = method.state_dict()
    start.load(made, mnli, tmp_path, method)
    assert same(method.state_dict(), before)


@pytest.mark.parametrize("status", ["missing", "oom", "error"])
def test_a_start_that_did_not_end_well_is_an_error_with_its_mend(study, tmp_path, status):
    made, mnli, rte = study
    if status != "missing":
        projects.store(mnli, tmp_path, status)
    reason = error(made, rte)
    assert f"{mnli.name}, is {status}" in reason
    assert f"delete {mnli.path} and the result of this cell and run the grid again" in reason


def test_a_state_that_is_gone_is_an_error_with_its_mend(trained):
    made, mnli, rte, _ = trained
    start.state_path(mnli.path).unlink()
    assert re.search(r"seed0\.state\.safetensors, .* is gone: delete .*seed0\.json", error(made, rte))


@pytest.mark.parametrize("damage", ["cut short", "another rank"])
def test_a_state_that_does_not_fit_is_an_error_with_its_mend(trained, damage):
    made, mnli, rte, left = trained
    path = start.state_path(mnli.path)
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:100])
    else:
        save_file({name: tensor[:4, :4].contiguous() for name, tensor in left.state_dict().items()}, path)
    assert re.search(r"does not fit \(.*\): delete .*seed0\.json", error(made, rte))


def test_a_job_waits_for_the_result_that_it_continues_from(study, tmp_path):
    made, mnli, rte = study
    assert entry.starts(made) == {
        (rte.configuration, seed): str(mnli.path.with_name(f"seed{seed}.json")) for seed in ("0", "1")
    }
    shown = dry_run(tmp_path)
    assert re.search(rf"input: {mnli.path}\s+output: {rte.path}", shown)
    assert re.search(r"^cell +4$", shown, re.MULTILINE)


def test_a_newer_start_does_not_make_a_finished_cell_run_again(study, tmp_path):
    made, mnli, _ = study
    for cell in made.cells:
        projects.store(cell, tmp_path)
        os.utime(cell.path, (1e9 + (cell.task == "mnli"),) * 2)
    shown = dry_run(tmp_path)
    assert "rule tables" in shown and "rule cell" not in shown


def test_retry_takes_along_what_failed_for_want_of_its_start(study, tmp_path):
    made, mnli, rte = study
    projects.store(mnli, tmp_path, "oom")
    projects.store(rte, tmp_path, "error")
    other = next(cell for cell in made.cells if cell.start and cell.seed == 1)
    projects.store(other, tmp_path, "error")
    assert main(["retry", "--grid", "grid.yaml", "--status", "oom"]) == 0
    assert [cell.path.exists() for cell in (mnli, rte, other)] == [False, False, True]
