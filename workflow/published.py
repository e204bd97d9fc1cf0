"""Published scores beside those of a grid: what is compared, the difference, and what may be said of it."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from workflow.errors import AtlasError
from workflow.outcomes import Outcome, Place, Row, Study
from workflow.standing import Estimate, metric_of, score
from workflow.table_columns import absent
from workflow.typeset import Notes

SCORES = Path(__file__).parent.parent / "reports" / "published" / "scores.csv"
NEAR = 0.005  # share by which counts of trained parameters may differ and still be those of one set-up


@dataclass(frozen=True)
class Target:
    """A published figure, times 100. `half`: half-width of its 95 % interval, None where no spread is known."""

    source: str
    suite: str
    task: str
    model: str
    method: str
    settings: tuple[tuple[str, object], ...]
    metric: str
    value: float
    half: float | None
    trained: int | None
    note: str

    def fits(self, outcome: Outcome) -> bool:
        cell = outcome.cell
        same = (cell.suite, cell.task, cell.model, cell.method) == (self.suite, self.task, self.model, self.method)
        return same and all(cell.settings.get(name) == value for name, value in self.settings)


@dataclass(frozen=True)
class Comparison:
    """A target beside the grid's own score (None where there is none, and `verdict` says why)."""

    row: Row
    place: Place
    target: Target
    unit: str
    measured: Estimate | None
    difference: float | None
    half: float | None
    verdict: str
    remarks: tuple[str, ...]


@cache
def targets(path: Path = SCORES) -> tuple[Target, ...]:
    """Every published score of the file; raises AtlasError with the line that cannot be read."""
    with path.open(newline="") as file:
        return tuple(_target(row, path, number) for number, row in enumerate(csv.DictReader(file), start=2))


def _target(row: dict[str, str], path: Path, line: int) -> Target:
    try:
        value = float(row["value"])
        return Target(
            **{name: row[name] for name in ("source", "suite", "task", "model", "method", "metric", "note")},
            settings=tuple(_settings(row["settings"])),
            value=value,
            half=_half(value, row),
            trained=int(row["trained"]) if row["trained"] else None,
        )
    except (KeyError, ValueError) as error:
        raise AtlasError(
            f"line {line} is no published score: {error}", file=path, mend="see the README beside it"
        ) from None


def _settings(text: str) -> Iterable[tuple[str, object]]:
    for part in filter(None, text.split(";")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"'{part}' is not name=value")
        yield name, yaml.safe_load(value)


def _half(value: float, row: dict[str, str]) -> float | None:
    """By the spread over seeds where it is printed, else by the sampling of a share over n examples."""
    if row["std"] and int(row["seeds"] or 0) > 1:
        from scipy.stats import t

        seeds = int(row["seeds"])
        return float(t.ppf(0.975, seeds - 1)) * float(row["std"]) / math.sqrt(seeds)
    if row["n"]:
        share = value / 100
        return 196 * math.sqrt(share * (1 - share) / int(row["n"]))
    return None


def comparisons(study: Study, known: Iterable[Target] | None = None) -> list[Comparison]:
    """Every target whose method, task, model and settings a row of the grid has, in the order of the tables."""
    by_place: dict[tuple[str, str, str], list[Target]] = {}
    for target in targets() if known is None else known:
        by_place.setdefault((target.suite, target.task, target.model), []).append(target)
    return [
        compared(study, row, place, target)
        for place in study.scored
        for row in study.rows
        for target in by_place.get((place.suite, place.task, place.model), ())
        if any(target.fits(outcome) for outcome in study.at(row, place))
    ]


def compared(study: Study, row: Row, place: Place, target: Target) -> Comparison:
    found = [outcome for outcome in study.at(row, place) if target.fits(outcome)]
    metric = None if target.metric == study.metric(place) else target.metric
    own, shown = score(found, metric), metric_of(target.metric)
    about = (row, place, target, shown.unit)
    remarks = tuple(differences(target, found))
    if own is None:
        return Comparison(*about, None, None, None, f"no score: {absent(study, row, found, Notes()).text}", remarks)
    difference = own.mean - target.value
    half = None if None in (own.half, target.half) else math.hypot(own.half, target.half)
    return Comparison(*about, own, difference, half, verdict(difference, own.half, target.half, bool(remarks)), remarks)


def differences(target: Target, found: list[Outcome]) -> Iterable[str]:
    """What shows that the cell is another set-up than the published one."""
    counts = {int(count) for outcome in found if (count := outcome.figure("parameters", "trained", "peak"))}
    if target.trained and counts and all(abs(count - target.trained) > NEAR * target.trained for count in counts):
        own = " or ".join(f"{count:,}" for count in sorted(counts))
        yield f"trains {own} parameters, the source {target.trained:,}"


def verdict(difference: float, own: float | None, published: float | None, another: bool) -> str:
    """In words: whether the difference is more than the intervals allow, and what they leave out."""
    known = [half for half in (own, published) if half is not None]
    side = "above" if difference > 0 else "below"
    if another:
        return f"another set-up, {abs(difference):.1f} {side}"
    if not known:
        return f"{side}; neither figure has an interval"
    within = abs(difference) <= math.hypot(*known)
    words = "agrees within the interval" if within else f"{side} by more than the interval"
    if published is None:
        return f"{words}; the published figure has none"
    return words if own is not None else f"{words}; the grid's own has none"
