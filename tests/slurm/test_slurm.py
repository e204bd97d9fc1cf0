"""`snakemake --profile slurm` on a real SLURM. These tests mostly wait: for jobs, and for Snakemake to look at them."""

import os
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from tests.faults.runs import numbers
from tests.slurm.cluster import ACCOUNTING_TOOLS, Cluster, lacks, wait_until
from tests.workflow import projects
from workflow import cell as cells
from workflow import grid as grids
from workflow import registry, results, tables
from workflow.cells import Cell
from workflow.grid import Grid

GRID = """
tasks: {demo_glue: [acceptability]}
models: [tiny-bert]
methods: %s
recipe: {max_steps: %d, evaluations: 1, batch_size: 8}
protocol: {demo_glue: {train: 60, validation: 20, test: 40}}
measure: [accuracy, parameters]
resources: {mem_mb: 1500, runtime: 30}
plugins: [mine]
"""
SLOW = """
import os
import time
from pathlib import Path

from methods.lowrank.lora import LoRA


class Slow(LoRA):
    name = "slow"

    def on_step(self, step, ctx):
        folder = Path(os.environ["ATLAS_TEST_STEPS"], str(self.settings.rank))
        with (folder / str(os.getpid())).open("a") as file:
            file.write(f"{step.index}\\n")
        if not (folder / "hurry").exists():
            time.sleep(1)
"""
LEFT_OUT = ("results", ".git", ".venv", ".snakemake", "*_cache", "__pycache__", "tests", "docs")
MEASURED = ("time.", "memory.", "latency.", "provenance.", "result")  # columns that no two runs have in common
SECONDS = 300  # of patience: the machine may be busy

pytestmark = pytest.mark.skipif(lacks() is not None, reason=f"no SLURM: {lacks()}")


def checkout(folder: Path, methods: str, steps: int = 6) -> Path:
    """A copy of the repository, with a small grid where that of the demo is."""
    root = folder / "checkout"
    shutil.copytree(registry.ROOT, root, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
    projects.write(root, "config/mine/slow.py", SLOW)
    projects.write(root, "config/demo.yaml", GRID % (methods, steps))
    return root


def environment(**more: object) -> dict[str, str]:
    """As after `. .venv/bin/activate`, with one thread."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SBATCH_", "SNAKEMAKE_"))}
    return inherited | {"PATH": path, "OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in more.items()}


def run_here(root: Path, folder: Path, monkeypatch) -> Grid:
    """The grid of a checkout run in this process, without Snakemake; `folder` is then the working directory."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    grid = grids.load(root / "config/demo.yaml")
    for cell in grid.cells:
        cells.main(grid, cell)
    return grid


def submitted(cell: Cell, log: str) -> str:
    """The scheduler's id of the first job of a cell, from what Snakemake said."""
    return re.search(rf"jobid (\d+) \(log: \S+_{cell.config_key}_{cell.seed}/", log)[1]


def unmeasured(path: Path) -> pd.DataFrame:
    frame = pd.read_csv(path)
    return frame[[name for name in frame if not name.startswith(MEASURED)]]


def test_the_profile_as_a_user_types_it_gives_the_tables_of_a_local_run(tmp_path, monkeypatch):
    root = checkout(tmp_path, "[head, {method: lora, settings: {rank: 2}}]")
    with Cluster(tmp_path / "slurm", settings="MinJobAge=3600\n") as cluster:
        done = cluster.run("snakemake", "--profile", "slurm", cwd=root, env=environment(), timeout=2 * SECONDS)
        assert done.returncode == 0, done.stdout
        jobs = cluster.output(
            "squeue", "--states=all", "--noheader", "--Format=State:20,MinMemory:20,tres-per-job:20,Partition"
        )
    asked = r"COMPLETED +1500M +gres:gpu:1 +main"
    assert len(re.findall(asked, jobs)) == len(jobs.splitlines()) == 2, jobs
    assert (root / "results/demo/report/index.html").exists()
    assert not list((root / "results/slurm_logs").rglob("*.log")), "what the scheduler said of a good job is dropped"

    grid = run_here(root, tmp_path / "here", monkeypatch)
    tables.write(tables.build(grid), Path("results/demo/tables"))
    for name in ("accuracy.csv", "accuracy.md", "parameters.csv", "parameters.tex"):
        assert (root / "results/demo/tables" / name).read_bytes() == Path("results/demo/tables", name).read_bytes()
    ours, theirs = unmeasured(Path("results/demo/tables/cells.csv")), unmeasured(root / "results/demo/tables/cells.csv")
    assert_frame_equal(ours, theirs)
    assert "metrics.last.accuracy.value" in ours and len(ours) == 2
    alone = [numbers(cell) for cell in grid.cells]
    monkeypatch.chdir(root)
    assert [numbers(cell) for cell in grid.cells] == alone
    scheduler = results.read(root / grid.cells[0].path)["provenance"]["scheduler"]
    assert scheduler["name"] == "slurm" and scheduler["partition"] == "main"


@pytest.mark.skipif(lacks(ACCOUNTING_TOOLS) is not None, reason=f"no accounting: {lacks(ACCOUNTING_TOOLS)}")
def test_with_accounting_jobs_are_followed_in_it_and_go_where_the_user_says(tmp_path):
    """`squeue` would be of no use there: the controller forgets a job as soon as it has ended."""
    root = checkout(tmp_path, "[head]")
    (cell,) = grids.load(root / "config/demo.yaml").cells
    with Cluster(tmp_path / "slurm", accounting=True, settings="MinJobAge=2\n") as cluster:
        for made in (("account", "lab"), ("user", "root", "account=lab")):
            cluster.run("sacctmgr", "--immediate", "add", *made)
        typed = ("snakemake", "--profile", "slurm", cell.path, "--config", "slurm_partition=other", "slurm_gres=gpu")
        done = cluster.run(*typed, cwd=root, env=environment(SBATCH_ACCOUNT="lab"), timeout=2 * SECONDS)
        assert done.returncode == 0, done.stdout
        shown = "--format=State,Account,Partition,ReqTRES%60"
        jobs = cluster.output("sacct", "--allocations", "--parsable2", "--noheader", shown)
    assert re.fullmatch(r"COMPLETED\|lab\|other\|billing=1,cpu=1,gres/gpu=1,mem=1500M,node=1", jobs), jobs
    assert results.read(root / cell.path)["status"] == "ok"


def test_cells_that_the_cluster_stops_go_on_and_end_as_if_it_had_not(tmp_path, monkeypatch):
    """One job is put back into the queue, and later its node fails; the other one reaches its time limit."""
    root = checkout(tmp_path, "[{method: slow, settings: {rank: {grid: [1, 2]}}}]", steps=400)
    steps = {rank: tmp_path / "steps" / str(rank) for rank in (1, 2)}
    for folder in steps.values():
        folder.mkdir(parents=True)
    monkeypatch.setenv("ATLAS_TEST_STEPS", str(tmp_path / "steps"))
    monkeypatch.chdir(root)
    grid = grids.load(Path("config/demo.yaml"))

    def begun(rank: int) -> list[int]:
        """The first step that each process which trained the cell did, in their order."""
        marks = sorted(steps[rank].glob("[0-9]*"), key=lambda path: path.stat().st_mtime_ns)
        return [int(mark.read_text().split()[0]) for mark in marks if mark.read_text()]

    def trains(times: int, *ranks: int) -> None:
        wait_until(
            lambda: run.poll() is not None or all(len(begun(rank)) == times for rank in ranks), "jobs train", SECONDS
        )
        assert run.poll() is None, log.read_text()

    with Cluster(tmp_path / "slurm") as cluster:
        run = cluster.start("snakemake", "--profile", "slurm", cwd=root, env=environment())
        log = cluster.folder / "snakemake.out"
        trains(1, 1, 2)
        first, second = (submitted(cell, log.read_text()) for cell in grid.cells)
        cluster.run("scontrol", "update", f"jobid={second}", "TimeLimit=1")
        cluster.run("scontrol", "requeue", first)
        cluster.start_soon(first)
        trains(2, 1, 2)
        (steps[2] / "hurry").touch()
        wait_until(
            lambda: cluster.run("squeue", "--noheader").stdout.count("\n") == 1, "the second cell is done", SECONDS
        )
        cluster.run("scontrol", "update", "nodename=node1", "state=down", "reason=test")
        wait_until(lambda: "slurmstepd" not in cluster.output("ps", "-eo", "comm"), "its processes are gone", SECONDS)
        cluster.start_soon(first)
        (steps[1] / "hurry").touch()
        assert run.wait(2 * SECONDS) == 0, log.read_text()
        assert f"Time limit exhausted for JobId={second}" in (cluster.folder / "slurmctld.log").read_text()

    assert len(begun(1)) == 3 and len(begun(2)) == 2
    assert 0 == begun(1)[0] < begun(1)[1] <= begun(1)[2] and 0 == begun(2)[0] < begun(2)[1]
    ended = [results.read(cell.path) for cell in grid.cells]
    assert [result["training"]["resumed"] for result in ended] == [2, 1]
    restarts = [result["provenance"]["scheduler"]["restarts"] for result in ended]
    assert restarts == ["2", "0"], "put back into the queue twice; a new job"
    stopped = [numbers(cell) for cell in grid.cells]
    run_here(root, tmp_path / "here", monkeypatch)
    assert [numbers(cell) for cell in grid.cells] == stopped
