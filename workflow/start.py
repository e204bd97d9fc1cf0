"""Cells that continue from another one: what a trained method leaves behind for them, and how they take it over.

The state lies beside the result, `seed0.state.safetensors`, and is not declared to the workflow. It holds the method's
own state and no head.
"""

from __future__ import annotations

from pathlib import Path

from methods.base import Method
from tasks.base import Suite
from workflow import entry, results
from workflow.cells import Cell
from workflow.files import replaced
from workflow.grid import Grid


class NoStart(Exception):
    """The state that a cell continues from cannot be had; the text is the reason and the mend."""


def state_path(result: Path) -> Path:
    """The file of a method's state beside a cell's result."""
    return result.with_name(f"{result.stem}.state.safetensors")


def save(cell: Cell, suite: Suite, result: Path, method: Method) -> None:
    """Write the method's state beside the result, whole or not at all, if cells on other tasks continue from it."""
    if all(suite.start(task, cell.protocol) != cell.task for task in suite.tasks):
        return
    from safetensors import torch as safetensors

    with replaced(state_path(result)) as path:
        # through bytes: `save_file` hides in an error of its own that a disk is full
        path.write_bytes(safetensors.save({name: tensor.cpu() for name, tensor in method.state_dict().items()}))


def load(grid: Grid, cell: Cell, root: Path, method: Method) -> None:
    """Give an attached and initialised method the state that the cell continues from, if it does.

    Results lie below `root`. Raises NoStart where that cell did not end well, or its state is gone or does not fit.
    """
    if cell.start is None:
        return
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    other = grid.start(cell)
    path = root / other.path
    entry.settle([path])
    again = f"delete {path} and the result of this cell and run the grid again"
    status, reason = results.outcome(other, root)
    if status != "ok":
        raise NoStart(f"the cell it continues from, {other.name}, is {status}{reason and f' ({reason})'}: {again}")
    try:
        method.load_state_dict(load_file(state_path(path)))
    except FileNotFoundError:
        raise NoStart(f"{state_path(path)}, which it continues from, is gone: {again}") from None
    except (SafetensorError, KeyError, RuntimeError) as problem:
        raise NoStart(f"{state_path(path)}, which it continues from, does not fit ({problem}): {again}") from problem
