"""What there is: rows of methods, tasks, models and cells, and the description of one method. No torch."""

from __future__ import annotations

from workflow import registry, text
from workflow.errors import AtlasError
from workflow.grid import Grid
from workflow.registry import MethodInfo
from workflow.source import Unknown


def methods(imports: bool = False) -> list[dict]:
    """Every method with its metadata; `status` is ok, or why the plugin is broken. imports: also try to import it."""
    return [
        {
            "name": info.name,
            "family": info.family,
            "kinds": list(info.kinds),
            "mergeable": info.mergeable,
            "title": info.title,
            "status": f"broken: {error}" if error else "ok",
        }
        for info in registry.methods().values()
        for error in [_error(info, imports)]
    ]


def _error(info: MethodInfo, imports: bool) -> str | None:
    if info.error:
        return info.error
    if package := registry.missing_package(info):
        return f"'{package}' is not installed"
    if imports:
        try:
            registry.load_method(info)
        except AtlasError as problem:
            return problem.message
    return None


def tasks() -> list[dict]:
    """Every task by `suite/task`; a suite that cannot be imported is one row with its error."""
    rows = []
    for suite in registry.suites().values():
        if error := getattr(suite, "error", None):
            rows.append({"task": f"{suite.name}/", "kind": "", "metric": "", "title": f"broken: {error}"})
        for task in suite.tasks.values():
            title = f"{task.title} (demo)" if task.demo and "(demo)" not in task.title else task.title
            rows.append(
                {"task": f"{suite.name}/{task.name}", "kind": task.kind, "metric": task.primary, "title": title}
            )
    return rows


def models(exact: bool = False) -> list[dict]:
    """Every model entry. exact: all digits of the number of parameters, rather than millions or billions."""
    return [
        {
            "name": entry.name,
            "kind": entry.kind,
            "architecture": entry.architecture,
            "parameters": entry.parameters if exact else entry.size,
            "source": entry.source,
            "revision": entry.revision,
            "licence": entry.licence,
            "title": entry.title,
        }
        for entry in registry.models().values()
    ]


def cells(grid: Grid) -> list[dict]:
    """Every cell with the key that `cell --key` takes, and with its source where the grid gives sources."""
    rows = [{"key": cell.grid_key, "cell": f"{cell.suite}/{cell.name}", "label": cell.label} for cell in grid.cells]
    if any(cell.source for cell in grid.cells):
        rows = [row | {"source": cell.source or ""} for row, cell in zip(rows, grid.cells, strict=True)]
    return rows


def not_ok(grid: Grid, statuses: list[str], reasons: list[str]) -> list[dict]:
    """A row for each cell that is not ok, then for each broken plugin. Statuses and reasons are by cell."""
    rows = [
        {"state": status, "cell": f"{cell.suite}/{cell.name}", "reason": reason}
        for cell, status, reason in zip(grid.cells, statuses, reasons, strict=True)
        if status != "ok"
    ]
    return rows + [{"state": "broken", "cell": f"method {i.name}", "reason": str(i.error)} for i in grid.broken]


def folded(rows: list[dict], most: int = 20) -> list[dict]:
    """Rows of cells for a person: of those with the same state and reason the first few, and how many more."""
    alike: dict[tuple[str, str], list[dict]] = {}
    for row in rows:
        alike.setdefault((row["state"], row["reason"]), []).append(row)
    found = []
    for same in alike.values():
        found += same if len(same) <= most + 1 else same[:most]
        if len(same) > most + 1:
            found.append(same[0] | {"cell": f"and {len(same) - most:,} more (--json lists them all)"})
    return found


def description(info: MethodInfo) -> str:
    """Metadata, docstring and settings of a method, as text."""
    facts = {
        "title": info.title,
        "family": info.family,
        "paper": f"arXiv:{info.paper}" if info.paper[:1].isdigit() else info.paper,
        "kinds": ", ".join(info.kinds),
        "mergeable": info.mergeable,
        "identity at init": info.identity_at_init,
        "requires": ", ".join(info.requires),
        "recipe": ", ".join(f"{name} {value}" for name, value in info.recipe.items()),
        "file": info.path,
    }
    settings = {
        name: f"{_default(setting.default)}  ({setting.annotation})" for name, setting in info.settings.items()
    } or "none"
    known = {name: value for name, value in facts.items() if value != ""}
    return f"{info.name}\n{text.figures(known)}\n\n{info.doc}\n\n{text.figures({'settings': settings}, 0)}"


def _default(value: object) -> str:
    return value.value if isinstance(value, Unknown) else repr(value)
