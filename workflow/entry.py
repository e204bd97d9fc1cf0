"""What the Snakefile needs: the grid named by Snakemake's configuration, and each cell's resources."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from workflow import registry, resources, results, scheduler
from workflow.errors import AtlasError, suggest
from workflow.grid import Grid, load

COUNTED_CELLS = 1000
OPTIONS = ("grid", "data_root", "threads", *scheduler.OPTIONS)


def read_config(config: dict) -> Grid:
    """The grid of `--config grid=FILE data_root=FOLDER threads=N`; AtlasError on any other option."""
    for name in config:
        if name not in OPTIONS:
            raise AtlasError(f"unknown option '{name}'", key=f"--config {name}=...", mend=suggest(name, OPTIONS))
    overrides = {"data_root": str(config["data_root"])} if config.get("data_root") else {}
    return load(find(config.get("grid", "config/demo.yaml")), overrides)


def find(name: str) -> Path:
    """A grid's file: relative to the working directory, else to the project."""
    here = Path(name)
    return here if here.exists() else registry.ROOT / name if (registry.ROOT / name).exists() else here


class Needs(Mapping):
    """mem_mb and runtime (minutes) of a first attempt, by the cell's configuration; gpu where the grid says enough.

    Worked out when asked for: a job reads the workflow anew and wants only its own.
    """

    def __init__(self, grid: Grid):
        self.cells = {cell.configuration: cell for cell in grid.cells}
        self.entries, self.suites = registry.models(), registry.suites()
        self.methods = grid.methods
        self.gpu_mb = grid.resources.get("gpu_mb")
        self.fixed = {name: value for name, value in grid.resources.items() if name != "gpu_mb"}
        self.found: dict[str, dict[str, int]] = {}

    def __getitem__(self, key: str) -> dict[str, int]:
        if key not in self.found:
            cell = self.cells[key]
            task = self.suites[cell.suite].facts(cell.task, cell.protocol)
            own = self.entries[cell.model], self.methods[cell.method], task, self.methods, self.gpu_mb
            self.found[key] = resources.estimated(cell, *own) | self.fixed
        return self.found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cells)

    def __len__(self) -> int:
        return len(self.cells)


def starts(grid: Grid) -> dict[tuple[str, str], str]:
    """The result that a cell's job waits for, by the cell's configuration and seed, for cells that have one."""
    return {(cell.configuration, str(cell.seed)): str(grid.start(cell).path) for cell in grid.cells if cell.start}


def set_aside_damaged(grid: Grid) -> None:
    """Rename result files that are cut short, and say so: Snakemake takes a file that is there for a result.

    Only the last bytes are looked at, and only of files that nothing has read since they were written, which is all
    that a grid of many thousand results has time for.
    """
    from workflow import index

    for cell in index.unknown(grid.cells):
        if results.is_cut_short(cell.path):
            aside = cell.path.with_name(f"{cell.path.name}.damaged")
            os.replace(cell.path, aside)
            print(f"damaged result, the cell runs again: {cell.path} (kept as {aside.name})", file=sys.stderr)


def settle(paths: Iterable[str | Path]) -> None:
    """Give files from the future the time of now: a clock was set back, or that of another machine is ahead.

    Snakemake takes a job for failed if its output is older than an input.
    """
    now = time.time()
    for path in paths:
        with contextlib.suppress(OSError):
            if os.stat(path).st_mtime > now:
                os.utime(path)


def outdate(products: Iterable[str | Path]) -> None:
    """Give products from the future a time of long ago, so that Snakemake makes them again if their inputs changed.

    Whether results that have come since are in them, times cannot tell.
    """
    now = time.time()
    for path in products:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_mtime > now:
                os.utime(path, (1, 1))  # Snakemake takes 0 for no time at all


def lost(awaited: list[str], made: Iterable[str]) -> list[str]:
    """Files that are gone although what is made from them is there: Snakemake makes them again only if asked for them.

    None where something made of them is missing, since then they are made anyway, and asking twice costs time.
    """
    if not all(map(os.path.exists, made)):
        return []
    return [path for path in awaited if not os.path.exists(path)]


def command(*words: object) -> str:
    """Words quoted for the shell, and for Snakemake, which fills in braces."""
    return shlex.join(map(str, words)).replace("{", "{{").replace("}", "}}")


def export_root() -> None:
    """Let `python -m workflow` be found from any working directory."""
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(registry.ROOT), *([inherited] if inherited else [])])


def export_progress(grid: Grid) -> None:
    """Let cells tell how far the run is: when it began, and how many cells were done by then.

    Not for large grids, where counting files costs more than the line is worth; jobs that read the workflow again
    keep the first values.
    """
    if len(grid.cells) <= COUNTED_CELLS:
        done = sum(cell.path.exists() for cell in grid.cells)
        os.environ.setdefault("ATLAS_RUN", f"{time.time():.0f} {done}")
