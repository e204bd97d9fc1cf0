"""Result files: written whole or not at all, checked on the way in and on the way out."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from workflow import documents
from workflow.cells import Cell
from workflow.errors import AtlasError
from workflow.files import replaced

_END = b"\n}\n"
STATUSES = ("ok", "oom", "diverged", "timeout", "unsupported", "error")
_CORRUPT = "delete it and run the same command again"
ANOTHER_CELL = f"the file holds the result of another cell; mend: {_CORRUPT}"


def write(path: Path, result: dict) -> None:
    """Write a result: checked against the schema, to a temporary name in the same folder, synced, then renamed.

    Figures that are not finite are left out (in curves they become null). Raises AtlasError if the result does not
    fit the schema or cannot be written (a full disk); then no file is left behind.
    """
    result = json.loads(json.dumps(_finite(result), default=_number))
    _check(result, path)
    sections = ",\n".join(f"{json.dumps(name)}: {json.dumps(section)}" for name, section in result.items())
    try:
        _replace(path, f"{{\n{sections}\n}}\n")
    except OSError as problem:
        mend = "free some space or mend the folder's permissions, then run the same command again"
        raise AtlasError(f"cannot write the result: {problem.strerror}", file=path, mend=mend) from problem


def _replace(path: Path, text: str) -> None:
    """Put the text in place of the file at once, when it is on the disk."""
    with replaced(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())


def _finite(value: object) -> object:
    """The same without figures that are not finite: absent in a mapping (an estimate without value goes whole), null
    in a list."""
    if isinstance(value, dict):
        pairs = ((name, _finite(item)) for name, item in value.items() if not _is_nan(item))
        return {name: item for name, item in pairs if not _lacks_value(value[name], item)}
    if isinstance(value, list | tuple):
        return [None if _is_nan(item) else _finite(item) for item in value]
    return value


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _lacks_value(before: object, after: object) -> bool:
    return isinstance(before, dict) and "value" in before and "value" not in after


def _number(value: object) -> object:
    """numpy and torch scalars as Python numbers."""
    return value.item()


def _check(result: object, path: Path) -> None:
    """Raise AtlasError unless the result fits the schema and its curves are [step, finite value or null] pairs."""
    documents.check(result, "result", file=path)
    for name, curve in result.get("curves", {}).items():
        for i, point in enumerate(curve):
            if not (isinstance(point, list) and len(point) == 2 and _is_point(*point)):
                key = documents.join("curves", name, i)
                raise AtlasError(f"{point!r} is no [step, value] pair", file=path, key=key, mend="give [step, value]")


def _is_point(step: object, value: object) -> bool:
    return type(step) is int and step >= 0 and (value is None or type(value) in (int, float))


def read(path: Path) -> dict:
    """A checked result. Raises AtlasError, with the file and the mend, where it is missing, cut short or not valid."""
    try:
        result = json.loads(path.read_bytes())
    except FileNotFoundError as problem:
        raise AtlasError("no such result", file=path, mend="run the grid") from problem
    except OSError as problem:
        raise AtlasError(f"cannot read the result: {problem.strerror}", file=path, mend="check the disk") from problem
    except (ValueError, RecursionError) as problem:  # JSON or UTF-8 cut short or overwritten, or nested without end
        raise AtlasError(f"the result file is corrupt: {problem}", file=path, mend=_CORRUPT) from problem
    try:
        _check(result, path)
    except AtlasError as problem:
        message = f"the result file is corrupt: {problem.message}"
        raise AtlasError(message, file=path, key=problem.key, mend=_CORRUPT) from problem
    return result


def is_cut_short(path: Path) -> bool:
    """Whether a file is there that does not end as `write` ends them, and is no sound result for all that."""
    try:
        with open(path, "rb", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(_END)))
            if file.read() == _END:
                return False
    except FileNotFoundError:
        return False
    try:
        read(path)
    except AtlasError:
        return True
    return False


def state(cell: Cell, root: Path = Path(".")) -> str:
    """The cell's status (ok, oom, diverged, timeout, unsupported, error), or `missing` or `corrupt`."""
    return outcome(cell, root)[0]


def outcome(cell: Cell, root: Path = Path(".")) -> tuple[str, str]:
    """(state, reason): the reason is '' where there is none to give."""
    path = root / cell.path
    if not path.exists():
        return "missing", ""
    try:
        result = read(path)
    except AtlasError as problem:
        return "corrupt", why_corrupt(problem)
    if result["key"] != cell.key:
        return "corrupt", ANOTHER_CELL
    return result["status"], result["reason"] or ""


def why_corrupt(problem: AtlasError) -> str:
    """The reason of a file that `read` refuses."""
    return f"{problem.message}; mend: {problem.mend}"
