"""How sure a score is and how it compares: intervals, ties with the best, and the controls it falls below."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from workflow.outcomes import Outcome, Place, Row, Study, correctness

BASELINES = ("untrained", "random_labels", "head")
PER_EXAMPLE = ("accuracy", "exact_match")
TIE_RULE = (
    "Bold: the best method of the column and every method that cannot be told apart from it. Two methods can be told "
    "apart when their 95 % intervals do not overlap; with one seed each and stored predictions of an accuracy, when "
    "McNemar's exact paired test gives p < 0.05. Controls do not compete."
)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half-width of its 95 % interval (None when no spread is known)."""

    mean: float
    half: float | None
    seeds: int

    @property
    def interval(self) -> tuple[float, float]:
        half = math.inf if self.half is None else self.half
        return self.mean - half, self.mean + half

    def overlaps(self, other: Estimate) -> bool:
        (low, high), (other_low, other_high) = self.interval, other.interval
        return low <= other_high and other_low <= high


@dataclass(frozen=True)
class Standing:
    """A row's score at a place (x 100), whether it is the best or tied with it, and the controls above it."""

    score: Estimate
    best: bool
    below: tuple[str, ...]


def estimate(values: Sequence[float], stderr: float | None = None) -> Estimate:
    """Two or more values: t interval over them. One value: 1.96 standard errors of sampling."""
    if len(values) > 1:
        from scipy.stats import t

        half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
        return Estimate(mean(values), half, len(values))
    return Estimate(values[0], None if stderr is None else 1.96 * stderr, 1)


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over tasks; the interval treats the tasks as independent."""
    halves = [one.half for one in estimates]
    half = None if None in halves else math.hypot(*halves) / len(halves)
    return Estimate(mean(one.mean for one in estimates), half, min(one.seeds for one in estimates))


def scored(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.ok and outcome.primary() is not None]


def score(outcomes: Iterable[Outcome]) -> Estimate | None:
    """The primary metric x 100 over the seeds that finished; None when none did."""
    finished = scored(outcomes)
    if not finished:
        return None
    stderr = finished[0].primary("stderr")
    return estimate([100 * one.primary() for one in finished], None if stderr is None else 100 * stderr)


def standings(study: Study, place: Place) -> dict[Row, Standing]:
    """The standing of every row with a score at this place."""
    scores = {row: found for row in study.rows if (found := score(study.at(row, place)))}
    methods = [row for row in scores if not row.control]
    leader = max(methods, key=lambda row: scores[row].mean, default=None)
    return {
        row: Standing(
            own,
            best=not row.control and (row == leader or not distinguishable(study, place, row, leader, scores)),
            below=() if row.control else below(row, scores),
        )
        for row, own in scores.items()
    }


def below(row: Row, scores: dict[Row, Estimate]) -> tuple[str, ...]:
    """The controls with a higher mean, each with a word on the intervals."""
    own = scores[row]
    return tuple(
        f"{control.label}{' (intervals overlap)' if own.overlaps(other) else ''}"
        for control, other in scores.items()
        if control.method in BASELINES and own.mean < other.mean
    )


def distinguishable(study: Study, place: Place, row: Row, leader: Row, scores: dict[Row, Estimate]) -> bool:
    if scores[row].seeds == scores[leader].seeds == 1 and study.metric(place) in PER_EXAMPLE:
        ours, theirs = (correctness(scored(study.at(one, place))[0], study.root) for one in (row, leader))
        if ours is not None and theirs is not None and ours.index.equals(theirs.index):
            return mcnemar(ours, theirs) < 0.05
    return not scores[row].overlaps(scores[leader])


def mcnemar(first, second) -> float:
    """p of McNemar's exact test: do two boolean Series over the same examples differ in how often they are true?"""
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)
