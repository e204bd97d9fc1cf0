"""Cells that have not run as they are now, but once did: what changed since their old results."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from workflow import results
from workflow.cells import Cell
from workflow.errors import AtlasError
from workflow.outcomes import Outcome, Place, Row, Study

VERSIONS = {  # fields of a cell that grow old by themselves, and what to call them
    "plugin": "the method's code",
    "building_blocks": "the building blocks",
    "training_loop": "the training loop",
    "model_revision": "the model's revision",
    "protocol": "the protocol's version",
}
CHOSEN = ("settings", "recipe", "start")  # fields that the grid chooses: with another one it is another cell
MOST_READ = 100  # old results that are looked into


def outdated(study: Study) -> Iterator[tuple[Row, Place, Outcome, list[str]]]:
    """Missing cells of which an older version has a result, and the names of what changed."""
    own = {outcome.cell.path.parent.name for outcome in study.all()}
    folders: dict[Path, list[Path]] = {}
    reads = 0
    for (row, place), outcomes in study.outcomes.items():
        for outcome in outcomes:
            cell = outcome.cell
            if outcome.status != "missing":
                continue
            here = study.root / cell.path.parents[1]
            if here not in folders:
                folders[here] = sorted(here.iterdir()) if here.is_dir() else []
            for folder in folders[here]:
                path = folder / cell.path.name
                if not folder.name.startswith(f"{cell.method}-") or folder.name in own or not path.is_file():
                    continue
                if (reads := reads + 1) > MOST_READ:
                    return
                if changed := changes(cell, path):
                    yield row, place, outcome, changed
                    break


def changes(cell: Cell, path: Path) -> list[str]:
    """What differs between a cell and that of an old result, if the grid chose the same; [] otherwise."""
    try:
        old = results.read(path)["cell"]
    except AtlasError:
        return []
    if old["method"] != cell.method or any(old.get(name) != getattr(cell, name) for name in CHOSEN):
        return []
    if unversioned(old["protocol"]) != unversioned(cell.protocol):
        return []
    return [text for name, text in VERSIONS.items() if old[name] != getattr(cell, name)]


def unversioned(protocol: dict) -> dict:
    return {name: value for name, value in protocol.items() if name not in ("version", "suite_version", "revision")}
