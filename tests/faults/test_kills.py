"""Whatever is killed, the same command goes on where it was, and the result is that of an undisturbed run."""

import signal

from tests.faults.runs import job, numbers, snakemake, study
from workflow import cell as cells
from workflow import results

GATE = """
import os
import time

from methods.lowrank.lora import LoRA


class Gate(LoRA):
    name = "gate"

    def attach(self, backbone, ctx):
        with open("begun", "a") as file:
            file.write("once more")
        while not os.path.exists("go"):
            time.sleep(0.05)
        super().attach(backbone, ctx)
"""


def test_a_run_that_is_killed_with_its_jobs_goes_on_by_the_same_command(tmp_path, monkeypatch):
    """kill -9 of everything, then SIGTERM to the job: each time from the checkpoint, and nothing has to be unlocked."""
    monkeypatch.chdir(tmp_path)
    grid = study(tmp_path, ["lora"], recipe={"max_steps": 300, "evaluations": 2})
    (cell,) = grid.cells
    cells.main(grid, cell)
    undisturbed = numbers(cell)
    cell.path.unlink()
    checkpoint, often = cell.state_dir / "checkpoint.pt", {"ATLAS_CHECKPOINT_SECONDS": 0.1}

    first = snakemake(tmp_path, cell.path, **often)
    first.wait_until(checkpoint.exists, "a checkpoint")
    first.kill()
    assert checkpoint.exists() and not cell.path.exists()

    before = checkpoint.stat().st_mtime_ns
    second = job(tmp_path, cell, **often)
    second.wait_until(lambda: checkpoint.stat().st_mtime_ns != before, "a newer checkpoint")
    second.process.send_signal(signal.SIGTERM)
    assert second.ended() == 128 + signal.SIGTERM and "the same command resumes" in second.output

    third = snakemake(tmp_path, cell.path)
    assert third.ended() == 0, third.output
    assert results.read(cell.path)["training"]["resumed"] == 2
    assert numbers(cell) == undisturbed
    assert not cell.state_dir.exists()


def test_runs_that_want_the_same_cell_share_it_also_with_one_that_was_killed(tmp_path, monkeypatch):
    """kill -9 of Snakemake alone leaves its job running. The same command, given twice, and another grid with the same
    cell wait."""
    monkeypatch.chdir(tmp_path)
    (cell,) = study(tmp_path, ["gate"], {"gate": GATE}).cells
    other = study(tmp_path, ["gate", "head"], file="other.yaml")
    begun = tmp_path / "begun"

    killed = snakemake(tmp_path, "tables")
    killed.wait_until(begun.exists, "the cell's start")
    killed.process.kill()
    killed.process.wait()

    runs = [snakemake(tmp_path, "tables") for _ in range(2)]
    runs.append(snakemake(tmp_path, *(c.path for c in other.cells), grid="other.yaml"))
    for run in runs:
        run.wait_until(lambda run=run: "waits for process" in run.output, "word of the one who runs it")
    (tmp_path / "go").touch()
    assert [run.ended() for run in runs] == [0, 0, 0], "\n".join(run.output for run in runs)
    assert begun.read_text() == "once more", "it was trained once"
    assert [results.state(each) for each in other.cells] == ["ok", "ok"]
    assert (tmp_path / "results/grid/tables/cells.csv").read_text().count(",ok,") == 1
    assert not cell.state_dir.exists()
