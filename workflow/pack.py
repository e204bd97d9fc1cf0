"""Packs: cells that share task and network and run one after the other as one job, loading data and network once.

Each cell writes its own result, fails alone, and resumes alone. What the workflow knows of a pack is its marker
`results/<grid>/packs/<name>.json`, written when every cell has a result: were the results themselves the outputs of the
job, Snakemake would delete those that are there before it runs the job again.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from workflow import results
from workflow.cells import Cell
from workflow.errors import AtlasError, suggest
from workflow.files import replaced
from workflow.grid import Grid
from workflow.resources import BASE_MINUTES

MINUTES = 5  # that a packed cell is given at least
_SHARED = ("dtype", "quantize")  # parts of a recipe that the loaded network depends on


def packs(grid: Grid) -> dict[str, tuple[Cell, ...]]:
    """The packs of a grid by name, `grid.pack` cells each at most; none where it is 1.

    Which cell is in which pack follows from the grid alone, so that every job of a run sees the same. Cells that
    continue from others, and those they continue from, stay by themselves: one waits for the other.
    """
    if grid.pack < 2:
        return {}
    waited = {cell.start_key for cell in grid.cells}
    together: dict[tuple, list[Cell]] = {}
    for cell in grid.cells:
        if cell.start is None and cell.grid_key not in waited:
            shared = (cell.model_revision, json.dumps(cell.protocol, sort_keys=True))
            network = (cell.suite, cell.task, cell.model, *shared, *(cell.recipe.get(name) for name in _SHARED))
            together.setdefault(network, []).append(cell)
    found = {}
    for (suite, task, model, *_), cells in together.items():
        for first in range(0, len(cells), grid.pack):
            part = tuple(cells[first : first + grid.pack])
            digest = hashlib.sha256(" ".join(cell.grid_key for cell in part).encode()).hexdigest()[:8]
            found[f"{suite}-{task}-{model}-{digest}"] = part
    return found


def marker(grid: Grid, name: str) -> Path:
    """The file that says that every cell of a pack has a result, relative to the working directory."""
    return Path("results", grid.name, "packs", f"{name}.json")


def update_markers(grid: Grid, found: dict[str, tuple[Cell, ...]]) -> None:
    """Remove markers of packs of which a result is gone, so that the workflow runs them again, and write anew those
    that are older than a result, which another run made again, so that tables follow it."""
    for name, cells in found.items():
        path = marker(grid, name)
        if not path.exists():
            continue
        try:
            newest = max(map(_mtime_ns, cells))
        except FileNotFoundError:
            path.unlink(missing_ok=True)
        else:
            if newest > path.stat().st_mtime_ns:
                _mark(path, cells)


def _mark(path: Path, cells: tuple[Cell, ...]) -> None:
    """Write a marker. Snakemake takes a newer one with the same words for the old one, so it says which results it is
    about."""
    found = {str(cell.path): {"status": results.state(cell), "mtime_ns": _mtime_ns(cell)} for cell in cells}
    with replaced(path) as new:
        new.write_text(json.dumps(found, indent=1) + "\n")


def _mtime_ns(cell: Cell) -> int:
    return cell.path.stat().st_mtime_ns


def awaited(grid: Grid, found: dict[str, tuple[Cell, ...]]) -> list[str]:
    """The files that the tables wait for: a marker of each pack, a result of each other cell."""
    packed = {cell.path for cells in found.values() for cell in cells}
    alone = [str(cell.path) for cell in grid.cells if cell.path not in packed]
    return alone + [str(marker(grid, name)) for name in found]


def needs(cells: tuple[Cell, ...], each: dict[str, dict[str, int]]) -> dict[str, int]:
    """What the job of a pack asks for: the most that one of its cells needs, and the time of all.

    each: needs by configuration. Every cell's own time has an allowance for its start, which a pack has once.
    """
    own = [each[cell.configuration] for cell in cells]
    most = {name: max(need[name] for need in own) for name in own[0]}
    return most | {"runtime": BASE_MINUTES + sum(max(MINUTES, need["runtime"] - BASE_MINUTES) for need in own)}


def run(grid: Grid, name: str, out: Path | None = None, data_root: Path | None = None, threads: int = 1) -> None:
    """Run the cells of a pack that have no sound result, then write its marker.

    A cell that an earlier try began and did not finish (the job was killed, perhaps by this very cell) comes last, so
    that it cannot keep the others from running. Raises AtlasError as `cell.main` does.
    """
    from workflow import cell
    from workflow.kept import Kept

    known = packs(grid)
    if name not in known:
        raise AtlasError(f"the grid has no pack '{name}'", file=grid.path, mend=suggest(name, known))
    cells, out = known[name], marker(grid, name) if out is None else out
    begun = Path("results/state", f"pack-{name}")
    tried = set(begun.read_text().split()) if begun.exists() else set()
    kept = Kept()
    for each in sorted(cells, key=lambda one: one.grid_key in tried):
        if each.path.exists() and results.state(each) != "corrupt":
            continue
        _note(begun, each.grid_key)
        cell.once(grid, each, data_root=data_root, threads=threads, kept=kept)
    begun.unlink(missing_ok=True)
    _mark(out, cells)


def _note(path: Path, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"{key}\n")
