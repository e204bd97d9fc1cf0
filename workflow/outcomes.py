"""What became of every cell of a grid, laid out by row (a method's label) and place (suite, task, model)."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from tasks.base import TaskInfo
from workflow import registry, results
from workflow.errors import AtlasError

CONTROLS = ("untrained", "random_labels", "head", "full")
IDENTITY = ["suite", "task", "model", "method", "label", "division", "seed", "config_key", "key", "status", "reason"]
IDENTITY += ["control", "demo", "settings", "recipe", "protocol", "result"]
FIGURES = ("metrics", "parameters", "memory", "time", "latency", "training", "merge")


@dataclass(frozen=True)
class Outcome:
    """A cell, its status word, the reason when it is not ok, and its result ({} without a readable file)."""

    cell: Any
    status: str
    reason: str
    result: dict = field(default_factory=dict, hash=False, compare=False)

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def figure(self, *path: str) -> float | None:
        """The finite number at this path of the result, in the result's own units; None where it is absent."""
        value: Any = self.result
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return value if number else None

    @property
    def metric(self) -> str | None:
        return self.result.get("metrics", {}).get("primary")

    @property
    def trained(self) -> bool:
        """Whether it is a score after at least one step, so that the choice of a checkpoint means something."""
        return self.ok and bool(self.figure("training", "steps"))

    @property
    def rule(self) -> str:
        """`selected` or `last`: the checkpoint whose scores count."""
        return self.result.get("metrics", {}).get("rule", "last")

    def estimate(self, metric: str | None = None, part: str = "value") -> float | None:
        """Value, stderr or n of a metric (the primary one) at the checkpoint that counts, on the metric's own scale."""
        return self.figure("metrics", self.rule, metric or self.metric or "", part)


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
    outcomes: dict[tuple[Row, Place], list[Outcome]] = defaultdict(list)
    protocols: dict[Place, dict] = {}
    suites, cost_only = registry.suites(), {}
    for cell, label in zip(grid.cells, labels, strict=True):
        demo = grid.demo or cell.suite.startswith("demo_")
        task = cell.suite, cell.task
        if task not in cost_only:
            cost_only[task] = suites[cell.suite].facts(cell.task, cell.protocol).cost_only
        place = Place(*task, cell.model, demo, cost_only[task])
        outcomes[Row(label, cell.method), place].append(read(cell, root))
        protocols[place] = cell.protocol
    rows = list(dict.fromkeys(row for row, _ in outcomes))
    rows += [Row(info.name, info.name, info.error or "the plugin cannot be read") for info in grid.broken]
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


def read(cell: Any, root: Path) -> Outcome:
    path = root / cell.path
    if not path.exists():
        return Outcome(cell, "missing", "no result yet; run the grid")
    try:
        result = results.read(path)
    except AtlasError as error:
        mend = f"; mend: {error.mend}" if error.mend else ""
        return Outcome(cell, "corrupt", f"{cell.path}: {error.message}{mend}")
    if result["key"] != cell.key:
        return Outcome(cell, "corrupt", f"{cell.path}: holds the result of another cell; mend: delete it and run again")
    return Outcome(cell, result["status"], result.get("reason") or "", result)


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

    records = [
        identify(row, place, outcome) | figures(outcome)
        for (row, place), outcomes in study.outcomes.items()
        for outcome in outcomes
    ]
    names = IDENTITY + sorted({name for record in records for name in record} - set(IDENTITY))
    table = pd.DataFrame(records, columns=names)
    mixed = [name for name in names if table[name].dropna().map(lambda value: isinstance(value, str)).nunique() > 1]
    table[mixed] = table[mixed].map(lambda value: value if pd.isna(value) else str(value))
    return table.convert_dtypes()


def identify(row: Row, place: Place, outcome: Outcome) -> dict:
    cell = outcome.cell
    return {
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
        **{name: json.dumps(getattr(cell, name), sort_keys=True) for name in ("settings", "recipe", "protocol")},
        "result": cell.path.as_posix(),
    }


def figures(outcome: Outcome) -> dict:
    """Every scalar of the result's figures by dotted name, and what the figures were taken on."""
    flat = dict(scalars({name: outcome.result[name] for name in FIGURES if name in outcome.result}))
    provenance = outcome.result.get("provenance", {})
    taken_on = {name: provenance[name] for name in ("host", "device", "git", "data", "model") if name in provenance}
    return flat | dict(scalars({"provenance": taken_on}))


def scalars(tree: dict, prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{prefix}{name}.")
        elif prefix.endswith("expected."):
            low, high = expected_range(value)
            yield from ((f"{prefix}{name}.low", low), (f"{prefix}{name}.high", high))
        elif isinstance(value, list):
            yield f"{prefix}{name}", json.dumps(value)
        elif value is not None:
            yield f"{prefix}{name}", value


def expected_range(expected: int | list) -> tuple:
    """A closed form is one number, or a range where it depends on data."""
    return tuple(expected) if isinstance(expected, list) else (expected, expected)


def count_mismatches(outcome: Outcome) -> list[str]:
    """Sentences on counts that are not what the paper's closed form says."""
    parameters = outcome.result.get("parameters", {})
    expected, trained = parameters.get("expected", {}), parameters.get("trained", {})
    found = {
        "trained": trained.get("attached"),
        "stored": parameters.get("stored"),
        "added": parameters.get("added_at_inference"),
    }
    sentences = []
    for name, count in found.items():
        if count is None or expected.get(name) is None:
            continue
        low, high = expected_range(expected[name])
        if not low <= count <= high:
            form = f"{low:,}" if low == high else f"{low:,} to {high:,}"
            sentences.append(f"{name}: {count:,} found, {form} expected from the closed form")
    return sentences
