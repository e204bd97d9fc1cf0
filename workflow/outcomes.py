"""What became of every cell of a grid, laid out by row (a method's label) and place (suite, task, model)."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from tasks.base import TaskInfo
from workflow import index, registry
from workflow.index import Readings
from workflow.text import plain

CONTROLS = ("untrained", "random_labels", "head", "full")
IDENTITY = ["suite", "task", "model", "method", "label", "division", "seed", "config_key", "key", "status", "reason"]
IDENTITY += ["control", "demo", "settings", "recipe", "protocol", "result"]
FIGURES = ("metrics.", "parameters.", "memory.", "time.", "latency.", "training.", "merge.", "provenance.host")
EXPECTED = {"trained": ("trained", "attached"), "stored": ("stored",), "added": ("added_at_inference",)}  # their counts
FIGURES += ("provenance.device", "provenance.git.", "provenance.data.", "provenance.model.")  # beginnings of names
STEERING = re.compile(rb"\\[ubfr]|[^\n\t -~]")  # without these, every text in a JSON document is plain already


@dataclass(frozen=True, slots=True)
class Outcome:
    """A cell, its status word, and the reason when it is not ok.

    The figures of its result are in memory, by `value`, `figure` and `estimate`. `result` reads the whole file again.
    """

    cell: Any
    status: str
    reason: str
    readings: Readings = field(repr=False, compare=False)
    position: int = field(repr=False, compare=False)
    root: Path = field(repr=False, compare=False)

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def value(self, *path: str) -> float | int | str | bool | None:
        """The scalar at this path of the result, curves and cell apart; None where it is absent."""
        return self.readings.value(".".join(path), self.position)

    def figure(self, *path: str) -> float | None:
        """The finite number at this path of the result, in the result's own units; None where it is absent."""
        value = self.value(*path)
        return None if isinstance(value, (str, bool)) else value

    @property
    def result(self) -> dict:
        """The whole result with its curves, read from the file ({} without a readable one)."""
        return {} if self.status in ("missing", "corrupt") else whole(self.root / self.cell.path, self.readings)

    @property
    def metric(self) -> str | None:
        return self.value("metrics", "primary")

    @property
    def trained(self) -> bool:
        """Whether it is a score after at least one step, so that the choice of a checkpoint means something."""
        return self.ok and bool(self.figure("training", "steps"))

    @property
    def rule(self) -> str:
        """`selected` or `last`: the checkpoint whose scores count."""
        return self.value("metrics", "rule") or "last"

    def estimate(self, metric: str | None = None, part: str = "value") -> float | None:
        """Value, stderr or n of a metric (the primary one) at the checkpoint that counts, on the metric's own scale."""
        return self.figure("metrics", self.rule, metric or self.metric or "", part)


def values(found: Sequence[Outcome], *path: str) -> list[float | int | str | bool | None]:
    """`value` of each of these outcomes, which are of one study."""
    return found[0].readings.values(".".join(path), [outcome.position for outcome in found]) if found else []


def figures(found: Sequence[Outcome], *path: str) -> list[float | None]:
    """`figure` of each of these outcomes, which are of one study."""
    return [None if isinstance(value, (str, bool)) else value for value in values(found, *path)]


def known(found: Sequence[Outcome], *path: str) -> list[float]:
    """The figures that are there at all."""
    return found[0].readings.numbers(".".join(path), [outcome.position for outcome in found]) if found else []


@lru_cache(maxsize=8)
def whole(path: Path, readings: Readings) -> dict:
    """A result that was found to be sound when the readings were taken; {} if it is gone since."""
    try:
        content = path.read_bytes()
        found = json.loads(content)
    except (OSError, ValueError):
        return {}
    return plain_texts(found) if STEERING.search(content) else found


def plain_texts(part: Any) -> Any:
    """A document with every text in it as `text.plain` gives it."""
    if isinstance(part, dict):
        return {plain(name): plain_texts(value) for name, value in part.items()}
    if isinstance(part, list):
        return [plain_texts(value) for value in part]
    return plain(part) if isinstance(part, str) else part


@dataclass(frozen=True)
class Row:
    """A row of the tables: one label of the grid. `error` is the import error of a broken plugin."""

    label: str
    method: str
    error: str | None = None

    @property
    def control(self) -> bool:
        return self.method in CONTROLS


@dataclass(frozen=True)
class Place:
    """Where methods are compared: a task on a model."""

    suite: str
    task: str
    model: str
    demo: bool
    cost_only: bool = False

    @property
    def title(self) -> str:
        return f"{self.suite}/{self.task}, {self.model}{self.tag}"

    @property
    def tag(self) -> str:
        return " (demo)" if self.demo else " (cost only)" if self.cost_only else ""

    @property
    def family(self) -> str:
        """What the tasks of a suite share on one model."""
        return f"{self.suite}, {self.model}{self.tag}"


@dataclass(frozen=True)
class Study:
    """The outcomes of a grid. Rows and places keep the grid's order, controls first.

    facts and protocols: of each place's task, as the grid uses it. rules: which checkpoint (`selected` or `last`) most
    scores of a place are from, where there are any.
    """

    rows: tuple[Row, ...]
    places: tuple[Place, ...]
    facts: dict[Place, TaskInfo]
    protocols: dict[Place, dict]
    rules: dict[Place, str]
    outcomes: dict[tuple[Row, Place], tuple[Outcome, ...]]
    measure: tuple[str, ...]
    root: Path

    def at(self, row: Row, place: Place) -> tuple[Outcome, ...]:
        """One outcome a seed; empty where the grid has no such cell."""
        return self.outcomes.get((row, place), ())

    def everywhere(self, row: Row, places: tuple[Place, ...]) -> tuple[Outcome, ...]:
        return tuple(outcome for place in places for outcome in self.at(row, place))

    def all(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcomes in self.outcomes.values() for outcome in outcomes)

    def of_place(self, place: Place) -> tuple[Outcome, ...]:
        return tuple(outcome for row in self.rows for outcome in self.at(row, place))

    def names(self, beginning: str) -> list[str]:
        """Dotted names of figures that results may have."""
        known = next((outcome.readings.names for outcomes in self.outcomes.values() for outcome in outcomes), ())
        return sorted(name for name in known if name.startswith(beginning))

    def metric(self, place: Place) -> str:
        """Name of the primary metric at a place, as the results name it."""
        found = (outcome.metric for row in self.rows for outcome in self.at(row, place))
        return next((metric for metric in found if metric), self.facts[place].primary)

    @property
    def scored(self) -> tuple[Place, ...]:
        """The places that have scores at all."""
        return tuple(place for place in self.places if not place.cost_only)

    def families(self) -> list[tuple[Place, ...]]:
        """The places of each suite and model."""
        return [tuple(same) for _, same in groupby(self.places, key=lambda place: place.family)]


def load(grid: Any, root: Path) -> Study:
    """Read every cell's result; a missing or unreadable file is an outcome like any other."""
    labels = row_labels(grid.cells)
    readings = index.read(grid.cells, root)
    outcomes: dict[tuple[Row, Place], list[Outcome]] = defaultdict(list)
    protocols: dict[Place, dict] = {}
    suites, cost_only = registry.suites(), {}
    for position, (cell, label) in enumerate(zip(grid.cells, labels, strict=True)):
        demo = grid.demo or cell.suite.startswith("demo_")
        task = cell.suite, cell.task
        if task not in cost_only:
            cost_only[task] = suites[cell.suite].facts(cell.task, cell.protocol).cost_only
        place = Place(*task, cell.model, demo, cost_only[task])
        outcomes[Row(label, cell.method), place].append(outcome_of(cell, readings, position, root))
        protocols[place] = cell.protocol
    rows = list(dict.fromkeys(row for row, _ in outcomes))
    rows += [Row(plain(i.name), i.name, plain(i.error or "the plugin cannot be read")) for i in grid.broken]
    rows.sort(key=lambda row: CONTROLS.index(row.method) if row.control else len(CONTROLS))
    places = neighbours(protocols)
    facts = {place: suites[place.suite].facts(place.task, protocols[place]) for place in places}
    ordered = {
        at: tuple(sorted(found, key=lambda outcome: outcome.cell.seed)) for at, found in sorted_by_row(outcomes, rows)
    }
    return Study(tuple(rows), places, facts, protocols, usual_rules(outcomes), ordered, tuple(grid.measure), root)


def usual_rules(outcomes: dict[tuple[Row, Place], list[Outcome]]) -> dict[Place, str]:
    """The most frequent rule of each place, over what was trained at all."""
    rules: dict[Place, Counter] = defaultdict(Counter)
    for (_, place), found in outcomes.items():
        rules[place].update(outcome.rule for outcome in found if outcome.trained)
    return {place: counts.most_common(1)[0][0] for place, counts in rules.items() if counts}


def neighbours(places: Iterable[Place]) -> tuple[Place, ...]:
    """The places with those of one suite and model side by side, else in their order."""
    families: dict[str, list[Place]] = defaultdict(list)
    for place in places:
        families[place.family].append(place)
    return tuple(place for family in families.values() for place in family)


def sorted_by_row(outcomes: dict, rows: list[Row]) -> list:
    order = {row: index for index, row in enumerate(rows)}
    return sorted(outcomes.items(), key=lambda item: order[item[0][0]])


def row_labels(cells: tuple) -> list[str]:
    """The label of every cell, made longer where one label would put two configurations in one place."""
    divisions = {cell.division for cell in cells}
    labels = [f"{cell.label} ({cell.division})" if len(divisions) > 1 else cell.label for cell in cells]
    configurations = defaultdict(set)
    for cell, label in zip(cells, labels, strict=True):
        configurations[label, cell.method, cell.suite, cell.task, cell.model].add(cell.config_key)
    shared = {at[:2] for at, keys in configurations.items() if len(keys) > 1}
    return [
        f"{label} [{cell.config_key}]" if (label, cell.method) in shared else label
        for cell, label in zip(cells, labels, strict=True)
    ]


def outcome_of(cell: Any, readings: Readings, position: int, root: Path) -> Outcome:
    status, reason = readings.statuses[position], readings.reasons[position]
    if status == "missing":
        reason = "no result yet; run the grid"
    elif status == "corrupt":
        reason = f"{cell.path}: {reason}"
    return Outcome(cell, status, reason, readings, position, root)


def correctness(outcome: Outcome, root: Path):
    """Right or wrong per example (a boolean Series by example id), or None where no usable predictions are stored."""
    import pandas as pd

    path = (root / outcome.cell.path).with_suffix(".predictions.parquet")
    column = f"prediction_{outcome.rule}"
    try:
        frame = pd.read_parquet(path, columns=["id", "reference", column]).set_index("id").sort_index()
    except (OSError, ValueError, KeyError):
        return None
    return frame[column] == frame["reference"] if frame.index.is_unique else None


def frame(study: Study):
    """One row a cell: identity, status, and every figure of its result under its dotted name, in the result's units."""
    import pandas as pd
    import pyarrow as pa

    found = study.all()
    identity = identities(study)
    if not found:
        return identity
    columns = found[0].readings.figures([outcome.position for outcome in found], FIGURES)
    whole = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    return pd.concat([identity, columns.to_pandas(types_mapper=whole.get).convert_dtypes()], axis=1)


def identities(study: Study):
    """What each cell is, and what became of it: a row a cell, in the order of `Study.all`."""
    import pandas as pd
    import pyarrow as pa

    written: dict[int, str] = {}

    def text(part: dict) -> str:
        """As JSON. Most cells share their recipe and protocol with others."""
        if id(part) not in written:
            written[id(part)] = json.dumps(part, sort_keys=True)
        return written[id(part)]

    columns: dict[str, list] = {name: [] for name in IDENTITY}
    for (row, place), outcomes in study.outcomes.items():
        for outcome in outcomes:
            cell = outcome.cell
            own = {
                "suite": cell.suite,
                "task": cell.task,
                "model": cell.model,
                "method": cell.method,
                "label": row.label,
                "division": cell.division,
                "seed": cell.seed,
                "config_key": cell.config_key,
                "key": cell.key,
                "status": outcome.status,
                "reason": outcome.reason,
                "control": row.control,
                "demo": place.demo,
                "settings": text(cell.settings),
                "recipe": text(cell.recipe),
                "protocol": text(cell.protocol),
                "result": f"results/cells/{cell.suite}/{cell.name}.json",
            }
            for name, value in own.items():
                columns[name].append(value)
    kinds = {"seed": pa.int64(), "control": pa.bool_(), "demo": pa.bool_()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in IDENTITY])
    nullable = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype(), pa.string(): pd.StringDtype()}
    return pa.table(columns, schema).to_pandas(types_mapper=nullable.get)


def count_mismatches(found: Sequence[Outcome]) -> list[list[str]]:
    """For each of these outcomes, sentences on counts that are not what the paper's closed form says."""
    sentences: list[list[str]] = [[] for _ in found]
    for name, path in EXPECTED.items():
        ends = (figures(found, "parameters", "expected", name, end) for end in ("low", "high"))
        for own, count, low, high in zip(sentences, figures(found, "parameters", *path), *ends, strict=True):
            if count is not None and low is not None and not low <= count <= high:
                form = f"{low:,}" if low == high else f"{low:,} to {high:,}"
                own.append(f"{name}: {count:,} found, {form} expected from the closed form")
    return sentences
