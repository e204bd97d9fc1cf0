"""Which tables a grid has, known before there is a result, so that the workflow can name their files."""

from __future__ import annotations

from workflow import registry
from workflow.grid import Grid

COSTS = ("parameters", "memory", "time", "latency", "operations")


def table_names(grid: Grid) -> tuple[str, ...]:
    """The names of the tables of `workflow.tables`, in its order; three are only where tasks are of their kind."""
    suites = registry.suites()
    one_of_each = {(cell.suite, cell.task): cell for cell in grid.cells}.values()
    facts = [suites[cell.suite].facts(cell.task, cell.protocol) for cell in one_of_each]
    scored = [task for task in facts if not task.cost_only]
    there = {
        "accuracy": bool(scored),
        "parts": any(task.parts for task in scored),
        "answers": any(task.kind == "generation" for task in scored),
    }
    return ("summary", *(name for name, is_there in there.items() if is_there), *COSTS)
