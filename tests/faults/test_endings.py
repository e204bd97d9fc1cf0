"""Cells that cannot end well end with a status, and nothing that is done beside them is lost."""

import resource
import signal
from pathlib import Path

import pandas as pd
import pytest

from tests.faults.runs import job, numbers, snakemake, study, verb
from workflow import pack, results

GREEDY = """
import resource
from dataclasses import dataclass

import torch

from methods.lowrank.lora import LoRA


class Greedy(LoRA):
    name = "greedy"

    @dataclass(frozen=True)
    class Settings(LoRA.Settings):
        mib: int = 64  # of address space for an example, of 320 that there are

    def forward(self, batch, call):
        if not self.backbone.model.training:
            return call(batch)
        limits = resource.getrlimit(resource.RLIMIT_AS)
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + (320 << 20), limits[1]))
        try:
            torch.empty(len(batch) * self.settings.mib << 20, dtype=torch.uint8)
            return call(batch)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
"""
NOWHERE = """
from methods.lowrank.lora import LoRA


class Nowhere(LoRA):
    name = "nowhere"

    def loss(self, outputs, batch, task_loss):
        return super().loss(outputs, batch, task_loss) * float("nan")
"""
METHODS = [
    "greedy",
    {"method": "greedy", "label": "by fours", "recipe": {"micro_batch_size": 4}},
    {"method": "greedy", "label": "hopeless", "settings": {"mib": 128}},
    "nowhere",
    "lora",
]


def test_want_of_memory_gets_a_second_try_and_every_failure_a_row(tmp_path, monkeypatch):
    """One job for all of them: greedy has room for half a batch, hopeless not even for that, nowhere's loss is no
    number."""
    monkeypatch.chdir(tmp_path)
    grid = study(tmp_path, METHODS, {"greedy": GREEDY, "nowhere": NOWHERE}, pack=8)
    run = snakemake(tmp_path, "tables")
    assert run.ended() == 0, run.output
    by_label = {cell.label: cell for cell in grid.cells}
    greedy, fours, hopeless = (results.read(by_label[label].path) for label in ("greedy", "by fours", "hopeless"))

    assert greedy["status"] == "ok" and "once more, 4 examples at a time" in run.output
    said = {name: greedy["training"][name] for name in ("tries", "micro_batch_size", "effective_batch_size")}
    assert said == {"tries": 2, "micro_batch_size": 4, "effective_batch_size": 8}
    assert fours["training"]["tries"] == 1
    assert numbers(by_label["greedy"]) == numbers(by_label["by fours"])

    assert hopeless["status"] == "oom" and hopeless["training"]["tries"] == 2
    assert "(8 examples at a time)" in hopeless["reason"] and "(4 examples at a time)" in hopeless["reason"]

    table = pd.read_csv(tmp_path / "results/grid/tables/cells.csv").set_index("label")
    assert table.status.to_dict() == {
        "greedy": "ok", "by fours": "ok", "hopeless": "oom", "nowhere": "diverged", "lora": "ok"
    }  # fmt: skip
    assert table.reason["nowhere"].startswith("training loss is nan")


HUNGRY = """
import torch

from methods.lowrank.lora import LoRA


class Hungry(LoRA):
    name = "hungry"

    def forward(self, batch, call):
        if self.backbone.model.training:
            torch.ones(len(batch) * 200 << 20, dtype=torch.uint8)
        return call(batch)
"""


@pytest.fixture
def limited():
    """Puts a process into a group of 1500 MiB of memory, beyond which the kernel kills it."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    own = next((path for _, name, path in lines if name == "memory"), None)
    if own is None:
        pytest.skip("there is no memory controller of cgroups, version 1")
    group = Path(f"/sys/fs/cgroup/memory{own}/atlas-test")
    try:
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(1500 << 20))
    except OSError as problem:
        pytest.skip(f"no group of processes with a limit of memory can be made: {problem}")
    yield lambda: (group / "cgroup.procs").write_text("0")
    group.rmdir()


def test_a_cell_that_the_kernel_kills_for_memory_has_its_second_try_at_the_next_start(tmp_path, monkeypatch, limited):
    monkeypatch.chdir(tmp_path)
    (cell,) = study(tmp_path, ["hungry"], {"hungry": HUNGRY}, recipe={"max_steps": 2}).cells
    first = job(tmp_path, cell, limit=limited)
    assert first.ended() == -signal.SIGKILL and not cell.path.exists(), first.output
    second = job(tmp_path, cell, limit=limited)
    assert second.ended() == 0 and "the process was killed" in second.output, second.output
    training = results.read(cell.path)["training"]
    assert (training["tries"], training["micro_batch_size"], training["steps"]) == (2, 4, 2)


KILLER = """
import os
import signal

from methods.lowrank.lora import LoRA


class Killer(LoRA):
    name = "killer"

    def forward(self, batch, call):
        if self.backbone.model.training:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(batch)
"""


def test_a_cell_that_is_killed_for_memory_again_and_again_is_oom_and_keeps_no_other_from_its_result(
    tmp_path, monkeypatch
):
    """Three starts of one pack. Before the second and the third the kernel counts one more process that it killed."""
    monkeypatch.chdir(tmp_path)
    grid = study(tmp_path, ["killer", "lora"], {"killer": KILLER}, pack=2)
    killer, lora = grid.cells
    ((name, _),) = pack.packs(grid).items()
    kernel = tmp_path / "vmstat"

    def start(kills: int) -> tuple[int, str]:
        kernel.write_text(f"nr_free_pages 100\noom_kill {kills}\n")
        return verb("pack", "--grid", "grid.yaml", name, kernel=kernel)

    assert start(5)[0] == -signal.SIGKILL and results.state(killer) == results.state(lora) == "missing"
    status, said = start(6)
    assert status == -signal.SIGKILL and "once more, 4 examples at a time" in said, said
    assert results.state(lora) == "ok", "what killed the job comes last"
    finished = lora.path.read_bytes()

    status, said = start(7)
    assert status == 0, said
    found = results.read(killer.path)
    assert found["status"] == "oom" and "the process was killed" in found["reason"]
    assert lora.path.read_bytes() == finished and pack.marker(grid, name).exists()
    assert not killer.state_dir.exists()


def test_a_full_disk_stops_the_job_with_a_word_and_costs_nothing_that_is_finished(tmp_path, monkeypatch):
    """Files may have 150 kB: enough for results and for the checkpoint of LoRA, not for that of full fine-tuning."""
    monkeypatch.chdir(tmp_path)
    lora, full = study(tmp_path, ["lora", "full"], pack=2).cells
    full_disk = {"limit": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))}
    first = snakemake(tmp_path, "tables", ATLAS_CHECKPOINT_SECONDS=0, **full_disk)
    assert first.ended() != 0
    assert "error: the machine failed: [Errno 27] File too large" in first.output and "checkpoint.pt" in first.output
    assert "mend: free some space, then run the same command again" in first.output
    assert results.state(lora) == "ok" and not full.path.exists()
    assert not list(full.state_dir.glob("*.pt*"))
    finished = lora.path.read_bytes()

    second = snakemake(tmp_path, "tables")
    assert second.ended() == 0, second.output
    assert lora.path.read_bytes() == finished and results.state(full) == "ok"
