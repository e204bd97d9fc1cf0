"""The index of results: what each result file was found to hold, so that many files are not read again and again.

Results are immutable. What a sound file held when it was first read is a row of
`results/.index/<suite>/<task>.parquet`: the file's size, times and inode, the key, status and reason in it, and every
figure under its dotted name. A row is believed only while the file still has that size, those times and that inode.

The index is a memory and nothing else: it may be deleted at any time, and one that is cut short or of another version
is made again. Processes do not wait for one another. Each replaces a file of the index whole, and what one of them
forgets of another's is read again by the next.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from workflow import documents, results
from workflow.cells import Cell
from workflow.errors import AtlasError
from workflow.files import replaced
from workflow.text import plain

VERSION = 1  # of the columns
STAT = {"size": pa.uint64(), "mtime_ns": pa.int64(), "ctime_ns": pa.int64(), "inode": pa.uint64()}
OWN = {"path": pa.string(), **STAT, "key": pa.string(), "status": pa.string(), "reason": pa.string()}
NOT_FIGURES = ("schema", "key", "cell", "status", "reason", "curves")
SETTLED_NS = 2 * 10**9  # a file older than this cannot change without a change of its times
BATCH = 5_000  # files that are read before they are put into columns
MANY = 5_000  # files whose first reading takes so long that it is said
NO_INTEGER = -(1 << 63)
Stat = tuple[int, int, int, int]  # the values of STAT


class Readings:
    """Status, reason and figures of cells, by their position among the cells that were asked for."""

    def __init__(self, statuses: list[str], reasons: list[str], figures: pa.Table):
        self.statuses, self.reasons = statuses, reasons
        self._figures = figures
        self._columns: dict[str, tuple[memoryview, list | None]] = {}
        self.names = frozenset(figures.column_names)

    def value(self, name: str, position: int) -> float | int | str | bool | None:
        """The scalar under this dotted name; None where the cell's result lacks it."""
        return self.values(name, (position,))[0]

    def values(self, name: str, positions: Sequence[int]) -> list[float | int | str | bool | None]:
        """`value` of each of these cells."""
        if name not in self.names:
            return [None] * len(positions)
        values, words = self._column(name)
        if words is not None:
            return [words[value] if (value := values[at]) >= 0 else None for at in positions]
        return [None if (value := values[at]) == NO_INTEGER or value != value else value for at in positions]

    def numbers(self, name: str, positions: Sequence[int]) -> list[float | int]:
        """The numbers under this name that these cells have at all."""
        values, words = self._column(name) if name in self.names else ((), ())
        if words is not None:
            return []
        return [value for at in positions if (value := values[at]) != NO_INTEGER and value == value]

    def _column(self, name: str) -> tuple[memoryview, list | None]:
        if name not in self._columns:
            self._columns[name] = _decoded(self._figures[name])
        return self._columns[name]

    def figures(self, positions: Sequence[int], beginnings: tuple[str, ...]) -> pa.Table:
        """A row for each of these cells, in this order, a column for each figure that any of them has, sorted by name.

        beginnings: of the names of the figures that are wanted.
        """
        wanted = self._figures.select(sorted(name for name in self.names if name.startswith(beginnings)))
        chosen = wanted.take(pa.array(positions, pa.int64()))
        chosen = chosen.select([name for name in chosen.column_names if chosen[name].null_count < len(positions)])
        kinds = [field.type.value_type if pa.types.is_dictionary(field.type) else field.type for field in chosen.schema]
        return chosen.cast(pa.schema(zip(chosen.column_names, kinds, strict=True)))


def _decoded(column: pa.ChunkedArray) -> tuple[memoryview, list | None]:
    """Values by position: numbers, NaN or NO_INTEGER where absent; of anything else its place in a list of words."""
    if pa.types.is_integer(column.type):
        return memoryview(column.fill_null(NO_INTEGER).to_numpy()), None
    if pa.types.is_floating(column.type):
        return memoryview(column.to_numpy()), None
    if pa.types.is_boolean(column.type):
        return memoryview(column.cast(pa.int8()).fill_null(-1).to_numpy()), [False, True]
    whole = column.unify_dictionaries().combine_chunks()
    return memoryview(whole.indices.fill_null(-1).to_numpy()), whole.dictionary.to_pylist()


def read(cells: Sequence[Cell], root: Path = Path(".")) -> Readings:
    """What became of every cell, as `results.outcome` says it, and the figures of its result.

    Files below `root` that the index does not know are read, checked and added to it.
    """
    together: dict[tuple[str, str], list[int]] = {}
    for position, cell in enumerate(cells):
        together.setdefault((cell.suite, cell.task), []).append(position)
    tables = [_of_task(Path(root), *task, [cells[at] for at in positions]) for task, positions in together.items()]
    rows = [0] * len(cells)
    for row, position in enumerate(position for positions in together.values() for position in positions):
        rows[position] = row
    whole = _joined(tables).take(pa.array(rows, pa.int64()))
    statuses, reasons, keys = (whole[name].to_pylist() for name in ("status", "reason", "key"))
    for position, (cell, key) in enumerate(zip(cells, keys, strict=True)):
        if key is not None and key != cell.key:
            statuses[position], reasons[position] = "corrupt", results.ANOTHER_CELL
    return Readings(statuses, reasons, whole.drop_columns(list(OWN)))


def unknown(cells: Sequence[Cell], root: Path = Path(".")) -> list[Cell]:
    """The cells with a result file that was never found sound, or is not as it was then; no file of theirs is read."""
    known: dict[tuple[str, str], dict[str, Stat]] = {}
    found = []
    for cell in cells:
        task = cell.suite, cell.task
        if task not in known:
            rows = _load(_file(Path(root), *task), ["path", *STAT])
            stats = zip(*(rows[name].to_pylist() for name in STAT), strict=True)
            known[task] = dict(zip(rows["path"].to_pylist(), stats, strict=True))
        seen = _stat(root, cell)
        if seen is not None and known[task].get(cell.name) != seen:
            found.append(cell)
    return found


def _of_task(root: Path, suite: str, task: str, cells: list[Cell]) -> pa.Table:
    """A row for each of these cells of one task, from the index where it is to be believed, else from the file.

    The index is brought up to date if anything was read.
    """
    path = _file(root, suite, task)
    known = _load(path)
    rows = {name: row for row, name in enumerate(known["path"].to_pylist())}
    stats = list(zip(*(known[name].to_pylist() for name in STAT), strict=True))
    chosen, unknown, outdated = [], [], set()
    for cell in cells:
        row, seen = rows.get(cell.name), _stat(root, cell)
        if row is not None and stats[row] == seen:
            chosen.append(row)
        else:
            outdated.add(row)
            chosen.append(len(known) + len(unknown))
            unknown.append((cell, seen))
    if unknown:
        found, lasting = _read_files(root, unknown)
        kept = [row for row in range(len(known)) if row not in outdated]
        fewer, more = len(kept) < len(known), any(lasting)
        kept += [len(known) + row for row, lasts in enumerate(lasting) if lasts]
        known = _joined([known, found])
        if fewer or more:
            _save(path, known.take(pa.array(kept, pa.int64())))
    return known.take(pa.array(chosen, pa.int64()))


def _stat(root: Path, cell: Cell) -> Stat | None:
    """Size, times (ns) and inode of a result file; None where there is none."""
    try:
        found = os.stat(f"{root}/results/cells/{cell.suite}/{cell.name}.json")
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


# --- reading result files ---------------------------------------------------------------------------------------------


def _read_files(root: Path, cells: list[tuple[Cell, Stat | None]]) -> tuple[pa.Table, list[bool]]:
    """A row for each cell, and whether what it says lasts: a sound file that did not change under the reader."""
    if (there := sum(seen is not None for _, seen in cells)) >= MANY:
        print(f"reading {there:,} results that the index does not know", file=sys.stderr, flush=True)
    tables, lasting = [], []
    for first in range(0, len(cells), BATCH):
        records = [_record(root, *one) for one in cells[first : first + BATCH]]
        lasting += [record.pop("lasts") for record in records]
        tables.append(_columns(records))
    return _joined(tables), lasting


def _record(root: Path, cell: Cell, seen: Stat | None) -> dict:
    record = {"path": cell.name, "lasts": False, "reason": ""}
    if seen is None:
        return record | {"status": "missing"}
    record |= dict(zip(STAT, seen, strict=True))
    try:
        result = results.read(root / cell.path)
    except AtlasError as problem:
        return record | {"status": "corrupt", "reason": plain(results.why_corrupt(problem))}
    settled = max(record["mtime_ns"], record["ctime_ns"]) < time.time_ns() - SETTLED_NS
    record |= {"lasts": settled and _stat(root, cell) == seen}
    record |= {"key": result["key"], "status": result["status"], "reason": plain(result["reason"] or "")}
    return record | dict(scalars({name: part for name, part in result.items() if name not in NOT_FIGURES}))


def scalars(tree: dict, prefix: str = "") -> Iterator[tuple[str, float | int | str | bool]]:
    """Every finite number, word and truth value of a result by its dotted name; lists as JSON.

    A closed form is one number, or a range where it depends on data: it is given as `.low` and `.high`.
    """
    for name, value in tree.items():
        name = f"{prefix}{plain(name)}"
        if isinstance(value, dict):
            yield from scalars(value, f"{name}.")
        elif prefix.endswith("expected."):
            low, high = value if isinstance(value, list) else (value, value)
            yield from ((f"{name}.low", low), (f"{name}.high", high))
        elif isinstance(value, list):
            yield name, plain(json.dumps(value))
        elif isinstance(value, str):
            yield name, plain(value)
        elif value is not None and math.isfinite(value):
            yield name, value


def _columns(records: list[dict]) -> pa.Table:
    """One column a name. Whole numbers stay whole; one that has words and numbers has words."""
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: [record.get(name) for record in records] for name in (*OWN, *names)}
    return pa.table({name: _column(values, OWN.get(name)) for name, values in columns.items()})


def _column(values: list, kind: pa.DataType | None) -> pa.Array:
    if kind is not None:
        return pa.array(values, kind)
    kinds = {type(value) for value in values} - {type(None)}
    if kinds <= {bool}:
        return pa.array(values, pa.bool_())
    if kinds <= {int}:
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string()).dictionary_encode()


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    """One below the other. A column that is of numbers in one and of words in another becomes one of words."""
    kinds: dict[str, set[bool]] = {}
    for table in tables:
        for field in table.schema:
            kinds.setdefault(field.name, set()).add(pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
    mixed = {name for name, found in kinds.items() if len(found) > 1}
    alike = [_empty(), *(_in_words(table, mixed & set(table.column_names)) for table in tables)]
    return pa.concat_tables(alike, promote_options="permissive").unify_dictionaries()


def _in_words(table: pa.Table, names: set[str]) -> pa.Table:
    for name in names:
        words = table[name].cast(pa.string()).dictionary_encode()
        table = table.set_column(table.column_names.index(name), name, words)
    return table


# --- files of the index -----------------------------------------------------------------------------------------------


@cache
def _version() -> bytes:
    """Of the columns, and of what makes a result sound."""
    schema = (documents.SCHEMAS / "result.schema.json").read_bytes()
    return f"{VERSION} {hashlib.sha256(schema).hexdigest()[:16]}".encode()


def _empty() -> pa.Table:
    return pa.table({name: pa.array([], kind) for name, kind in OWN.items()})


def _file(root: Path, suite: str, task: str) -> Path:
    return root / "results" / ".index" / suite / f"{task}.parquet"


def _load(path: Path, columns: list[str] | None = None) -> pa.Table:
    """What the file of the index holds, without rows if it is not there, cannot be read, or is of another version."""
    try:
        known = pq.read_table(path, columns=columns)
        if (known.schema.metadata or {}).get(b"atlas") == _version():
            return known
    except (OSError, pa.ArrowException):
        pass
    return _empty()


def _save(path: Path, table: pa.Table) -> None:
    """Replace a file of the index whole. Where the folder cannot be written to, there is no index."""
    table = table.unify_dictionaries().combine_chunks().replace_schema_metadata({"atlas": _version()})
    with contextlib.suppress(OSError), replaced(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
