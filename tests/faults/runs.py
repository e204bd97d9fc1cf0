"""Runs of the workflow and of single cells in processes of their own, which tests then disturb."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from tests.workflow import projects
from workflow import grid as grids
from workflow import registry, results
from workflow.cells import Cell
from workflow.grid import Grid

STUDY = {
    "tasks": {"demo_glue": ["acceptability"]},
    "models": ["tiny-bert"],
    "recipe": {"max_steps": 6, "evaluations": 1, "batch_size": 8},
    "protocol": {"demo_glue": {"train": 60, "validation": 20, "test": 40}},
    "plugins": ["mine"],
    "measure": ["accuracy"],
}
SECONDS = 240  # of patience: the machine may be busy


def study(folder: Path, methods: list, plugins: dict[str, str] | None = None, file="grid.yaml", **changes) -> Grid:
    """Write a small grid, with plugins of its own, into a folder that is the working directory; returns it loaded.

    changes: parts of the grid; those of its recipe are added to the recipe.
    """
    for name, source in (plugins or {}).items():
        projects.write(folder, f"mine/{name}.py", source)
    (folder / "mine").mkdir(exist_ok=True)
    changes["recipe"] = STUDY["recipe"] | changes.get("recipe", {})
    return grids.load(projects.write(folder, file, yaml.safe_dump(STUDY | {"methods": methods} | changes)))


STARTED: list[Run] = []


class Run:
    """A process with all that it starts. What they say goes to a file, so that nobody waits for a reader."""

    def __init__(self, folder: Path, *command: str, limit=None, **environment: object):
        self.said = folder / f"said-{len(list(folder.glob('said-*')))}.txt"
        inherited = os.environ | {"PYTHONPATH": str(registry.ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=inherited | {name: str(value) for name, value in environment.items()},
            stdout=self.said.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=limit,
        )
        STARTED.append(self)

    @property
    def output(self) -> str:
        return self.said.read_text()

    def wait_until(self, true, what: str) -> None:
        end = time.monotonic() + SECONDS
        while not true():
            assert time.monotonic() < end, f"{what} never came:\n{self.output}"
            assert self.process.poll() is None, f"it ended before {what}:\n{self.output}"
            time.sleep(0.01)

    def ended(self) -> int:
        """The exit status, when it has ended."""
        return self.process.wait(timeout=SECONDS)

    def kill(self) -> None:
        """kill -9, the process and everything that it started, also what outlived it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def snakemake(folder: Path, *targets: object, grid: str = "grid.yaml", **more) -> Run:
    """The workflow as a user runs it, with the project's own profile."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(registry.ROOT / "Snakefile")]
    command += ["--quiet", "host", "--cores", "1", *map(str, targets), "--config", f"grid={grid}"]
    return Run(folder, *command, **more)


def job(folder: Path, cell: Cell, **more) -> Run:
    """A cell as its job runs it."""
    command = [sys.executable, "-m", "workflow", "cell", "--grid", "grid.yaml", "--key", cell.grid_key]
    return Run(folder, *command, **more)


def numbers(cell: Cell) -> tuple:
    """All of a result that must not depend on when, how often and in how many pieces a cell was run."""
    result = results.read(cell.path)
    training = {name: value for name, value in result["training"].items() if name not in ("resumed", "tries")}
    predictions = pq.read_table(cell.path.with_name(f"{cell.path.stem}.predictions.parquet"))
    return result["metrics"], result["curves"], result["parameters"], training, predictions


# Processes that begin with torch loaded, since they are forks of one that does nothing else.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "transformers", "pandas", "pyarrow.parquet", "safetensors.torch"])


def verb(*arguments: str, room: int | None = None, kernel: Path | None = None, **environment: object):
    """`python -m workflow ARGUMENTS` in the working directory, to its end; returns the exit status and what it said.

    room: bytes that a file may have; kernel: what stands in the place of /proc/vmstat. What is said must fit a pipe.
    """
    reader, writer = FORKS.Pipe(duplex=False)
    words = {name: str(value) for name, value in environment.items()}
    process = FORKS.Process(target=_verb, args=(writer, arguments, room, kernel, words))
    process.start()
    writer.close()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
    said = b"".join(iter(lambda: os.read(reader.fileno(), 1 << 16), b"")).decode()
    return process.exitcode, said


def _verb(writer, arguments: Sequence[str], room: int | None, kernel: Path | None, environment: dict[str, str]):
    os.dup2(writer.fileno(), 1)
    os.dup2(writer.fileno(), 2)
    writer.close()
    os.environ.update(environment)
    from workflow import __main__, tries

    if kernel is not None:
        tries.KERNEL = kernel
    if room is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    sys.exit(__main__.main(arguments))
