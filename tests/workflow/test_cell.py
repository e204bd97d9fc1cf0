"""One cell: what its result holds, what becomes of failures, and that an interruption leaves no trace."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from tests.workflow import projects
from workflow import cell as cells
from workflow import grid as grids
from workflow import registry, results
from workflow.errors import AtlasError

STUDY = """
tasks: {{demo_glue: [acceptability]}}

models: [{model}]
methods: [{method}]
plugins: [mine]
recipe: {{max_steps: 30, evaluations: 2, batch_size: 8, lr: {lr}}}
measure: [{measure}]
"""
PLUGIN = """
from methods.lowrank.lora import LoRA

{top}

class Odd(LoRA):
    name = "odd"

    def attach(self, backbone, ctx):
        {attach}
        super().attach(backbone, ctx)
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Make a grid of one cell in an empty working directory and return (grid, cell)."""
    monkeypatch.chdir(tmp_path)

    def make(method="lora", model="tiny-bert", lr="1.0e-3", measure="accuracy", top="", attach="pass"):
        projects.write(tmp_path, "mine/odd.py", PLUGIN.format(top=top, attach=attach))
        projects.write(tmp_path, "grid.yaml", STUDY.format(method=method, model=model, lr=lr, measure=measure))
        grid = grids.load(tmp_path / "grid.yaml")
        return grid, grid.cells[0]

    return make


def run(grid, cell):
    status = cells.main(grid, cell)
    result = results.read(cell.path)
    assert result["status"] == status
    return result


def numbers(result):
    """What must not depend on when or how often a cell was run."""
    return result["metrics"], result["curves"], result["parameters"], result["training"] | {"resumed": 0}


def test_a_result_is_whole(study):
    result = run(*(made := study(measure="accuracy, latency")))
    grid, cell = made
    assert result["status"] == "ok" and result["key"] == cell.key
    assert result["training"]["steps"] == 30 and result["training"]["examples"] == 240
    # two layers, q and v of 32 x 32, rank 8: 2 * 2 * 8 * 64
    assert result["parameters"]["trained"] == {
        "attached": 2048, "after_optimizer": 2048, "peak": 2048, "mean": 2048.0, "final": 2048
    }  # fmt: skip
    assert result["parameters"]["stored"] == 2048 and result["parameters"]["stored_bytes"] > 4 * 2048
    assert {"load", "data", "attach", "first_step", "step_median", "train", "validation", "test"} <= result[
        "time"
    ].keys()
    assert result["latency"]["batch_32"].keys() == {
        *("bare", "attached", "merged", "attached_over_bare", "merged_over_bare")
    }
    assert not {"flops", "energy"} & result.keys() and "parts" not in result["memory"], "the grid does not ask for them"
    assert [step for step, _ in result["curves"]["validation"]] == [15, 30]
    assert not cell.state_dir.exists()


def test_predictions_beside_the_result_give_its_score(study):
    grid, cell = study(method="full")
    result = run(grid, cell)
    table = pq.read_table(cell.path.with_name("seed0.predictions.parquet")).to_pandas()
    right = (table.prediction_selected == table.reference).mean()
    assert result["metrics"]["selected"]["accuracy"]["value"] == pytest.approx(right)
    assert result["metrics"]["selected"]["accuracy"]["n"] == len(table)


def test_the_same_cell_gives_the_same_numbers(study):
    grid, cell = study(method="houlsby")
    assert numbers(run(grid, cell)) == numbers(run(grid, cell))


@pytest.mark.parametrize(
    ("changes", "status", "reason"),
    [
        ({"method": "bitfit", "model": "tiny-llama"}, "unsupported", "no bias terms"),
        ({"method": "full", "lr": "1.0e+30"}, "diverged", "training loss is"),
        ({"method": "odd", "attach": "raise ValueError('no such thing')"}, "error", "no such thing"),
        ({"method": "odd", "top": "raise ImportError('nothing here')"}, "error", "nothing here"),
        ({"method": "odd", "top": "import torch", "attach": "raise torch.OutOfMemoryError('full')"}, "oom", "full"),
        ({"method": "odd", "top": "import torch", "attach": "torch.empty(1 << 60)"}, "oom", "alloc"),
    ],
)
def test_a_failure_is_a_result_with_its_reason(study, changes, status, reason):
    result = run(*study(**changes))
    assert result["status"] == status and reason in result["reason"]
    assert "git" in result["provenance"]


def test_a_time_limit_is_a_result(study, monkeypatch):
    monkeypatch.setenv("ATLAS_TIME_LIMIT", "0")
    result = run(*study())
    assert result["status"] == "timeout" and "step 1 of 30" in result["reason"]


def test_missing_data_stops_the_job_and_names_the_file(study, tmp_path):
    grid, cell = study()
    projects.write(
        tmp_path, "grid.yaml", "tasks: {glue: [sst2]}\nmodels: [tiny-bert]\nmethods: [lora]\ndata_root: gone\n"
    )
    grid = grids.load(tmp_path / "grid.yaml")
    with pytest.raises(AtlasError, match="gone"):
        cells.main(grid, grid.cells[0])
    assert not grid.cells[0].path.exists()


def test_random_labels_agree_with_the_truth_as_often_as_chance():
    """60 of class 0 and 30 of class 1: two thirds of each class get label 0, so 40 + 10 of 90 labels are right."""
    import numpy as np
    import torch

    from tasks.base import Split

    class Ctx:
        def rng(self, name):
            return torch.Generator().manual_seed(0)

    method = registry.load_method(registry.methods()["random_labels"]).create({})
    split = Split([("a",)] * 90, (np.arange(90) % 3 == 2).astype(int), np.arange(90))
    shuffled = method.training_data(split, Ctx())
    assert sorted(shuffled.labels) == sorted(split.labels)
    assert (shuffled.labels == split.labels).sum() == 50


class Job:
    """The cell in a process of its own, as a scheduler runs it."""

    def __init__(self, cell, checkpoint_seconds):
        environment = os.environ | {
            "PYTHONPATH": str(registry.ROOT), "ATLAS_CHECKPOINT_SECONDS": str(checkpoint_seconds)
        }  # fmt: skip
        command = [sys.executable, "-m", "workflow", "cell", "--grid", "grid.yaml"]
        command += ["--key", f"{cell.config_key}/{cell.seed}"]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def wait_for(self, path, seconds=90):
        end = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < end and self.process.poll() is None, f"{path} never came"
            time.sleep(0.005)


@pytest.fixture
def long(study, tmp_path):
    """A cell of some 300 steps, so that it can be hit in the middle."""
    grid, _ = study(method="lora")
    text = (tmp_path / "grid.yaml").read_text().replace("max_steps: 30", "max_steps: 300")
    projects.write(tmp_path, "grid.yaml", text)
    grid = grids.load(tmp_path / "grid.yaml")
    return grid, grid.cells[0]


def test_a_killed_cell_resumes_and_gives_the_result_of_an_uninterrupted_one(long):
    grid, cell = long
    whole = run(grid, cell)
    cell.path.unlink()
    job = Job(cell, checkpoint_seconds=0)
    job.wait_for(cell.state_dir / "checkpoint.pt")
    job.process.send_signal(signal.SIGKILL)
    job.process.wait()
    assert not cell.path.exists() and cell.state_dir.exists()
    resumed = run(grid, cell)
    assert resumed["training"]["resumed"] == 1
    assert numbers(resumed) == numbers(whole)
    assert not cell.state_dir.exists()


def test_a_cell_that_is_asked_to_stop_leaves_a_checkpoint(long):
    grid, cell = long
    job = Job(cell, checkpoint_seconds=0.2)
    job.wait_for(cell.state_dir / "checkpoint.pt")
    job.process.send_signal(signal.SIGTERM)
    _, said = job.process.communicate(timeout=60)
    assert job.process.returncode == 143, said
    assert "the same command resumes" in said
    assert (cell.state_dir / "checkpoint.pt").exists() and not cell.path.exists()


@pytest.mark.parametrize(
    ("model", "seen", "used"), [("llama-2-70b", 8, 2), ("llama-2-70b", 1, 1), ("roberta-base", 8, 1)]
)
def test_a_network_too_large_for_one_gpu_gets_as_many_as_it_needs(monkeypatch, study, model, seen, used):
    """70 billion weights of 16 bits and the activations of a batch on GPUs of 140 GB."""
    import torch

    from models.entries import model as model_entry

    monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
    memory = SimpleNamespace(total_memory=140 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: memory)
    grid, cell = study()
    cell = replace(cell, model=model, recipe=cell.recipe | {"dtype": "bfloat16", "batch_size": 1})
    info = registry.suites()[cell.suite].facts(cell.task, cell.protocol)
    found = cells._devices(torch.device("cuda"), cell, model_entry(model), info, grid)
    assert len(found) == used
    assert cells._devices(torch.device("cpu"), cell, model_entry(model), info, grid) == (torch.device("cpu"),)
