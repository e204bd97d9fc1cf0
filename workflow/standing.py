"""How sure a score is and how it compares: intervals, ties with the best, and the controls it falls below."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean, stdev

from workflow.outcomes import Outcome, Place, Row, Study, correctness

BASELINES = ("untrained", "random_labels", "head")
PER_EXAMPLE = ("accuracy", "exact_match")
TIE_RULE = (
    "Bold: the best method of the column and every method that cannot be told apart from it. Two methods can be told "
    "apart when their 95 % intervals do not overlap; with one seed each and stored predictions of an accuracy (of a "
    "test split without parts), when McNemar's exact paired test gives p < 0.05. Controls do not compete."
)


@dataclass(frozen=True)
class Metric:
    """How a metric is shown: its unit, by what it is multiplied, its decimals, and whether lower is better."""

    unit: str
    scale: float = 100
    decimals: int = 1
    lower: bool = False


METRICS = {
    "accuracy": Metric("accuracy, %"),
    "accuracy_flexible": Metric("accuracy by flexible extraction, %"),
    "accuracy_likelihood": Metric("accuracy by likelihood, %"),
    "unparsed": Metric("texts without an answer, %, lower is better", lower=True),
    "nll": Metric("nats/token, lower is better", scale=1, decimals=3, lower=True),
    "f1": Metric("F1, %"),
    "exact_match": Metric("exact match, %"),
    "matthews": Metric("Matthews, ×100"),
    "pearson": Metric("Pearson, ×100"),
    "spearman": Metric("Spearman, ×100"),
}


def metric_of(name: str) -> Metric:
    """How a metric, or a metric of one part (`accuracy/boolq`), is shown."""
    name = name.partition("/")[0]
    return METRICS.get(name, Metric(f"{name}, ×100"))


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half-width of its 95 % interval (None when no spread is known), on its scale."""

    mean: float
    half: float | None
    seeds: int
    metric: Metric = METRICS["accuracy"]

    def better(self, other: Estimate) -> bool:
        return self.mean < other.mean if self.metric.lower else self.mean > other.mean

    @property
    def interval(self) -> tuple[float, float]:
        half = math.inf if self.half is None else self.half
        return self.mean - half, self.mean + half

    def overlaps(self, other: Estimate) -> bool:
        (low, high), (other_low, other_high) = self.interval, other.interval
        return low <= other_high and other_low <= high


@dataclass(frozen=True)
class Standing:
    """A row's score at a place, whether it is the best or tied with it, and the controls that beat it."""

    score: Estimate
    best: bool
    below: tuple[str, ...]


def estimate(values: Sequence[float], stderr: float | None = None, metric: Metric = METRICS["accuracy"]) -> Estimate:
    """Two or more values: t interval over them. One value: 1.96 standard errors of sampling."""
    if len(values) > 1:
        half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
        return Estimate(mean(values), half, len(values), metric)
    return Estimate(values[0], None if stderr is None else 1.96 * stderr, 1, metric)


@cache
def t_quantile(freedom: int) -> float:
    """Of Student's t at 97.5 %."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.975))


def average(estimates: Sequence[Estimate]) -> Estimate:
    """Mean over tasks, or over the means of groups of tasks; the interval treats the tasks as independent."""
    halves = [one.half for one in estimates]
    half = None if None in halves else math.hypot(*halves) / len(halves)
    return Estimate(mean(one.mean for one in estimates), half, min(one.seeds for one in estimates))


def leader(scores: dict[Row, Estimate]) -> Row | None:
    """The best row that is no control."""
    best = None
    for row, own in scores.items():
        if not row.control and (best is None or own.better(scores[best])):
            best = row
    return best


def scored(outcomes: Iterable[Outcome], metric: str | None = None) -> list[Outcome]:
    return [outcome for outcome in outcomes if outcome.ok and outcome.estimate(metric) is not None]


def score(outcomes: Iterable[Outcome], metric: str | None = None) -> Estimate | None:
    """A metric (the primary one) on its scale over the seeds that finished; None when none did."""
    finished = scored(outcomes, metric)
    if not finished:
        return None
    shown = metric_of(metric or finished[0].metric)
    stderr = finished[0].estimate(metric, "stderr")
    values = [shown.scale * one.estimate(metric) for one in finished]
    return estimate(values, None if stderr is None else shown.scale * stderr, shown)


def standings(study: Study, place: Place, metric: str | None = None) -> dict[Row, Standing]:
    """The standing by a metric (the primary one) of every row that has it at this place."""
    scores = {row: found for row in study.rows if (found := score(study.at(row, place), metric))}
    best = leader(scores)
    controls = {row: own for row, own in scores.items() if row.method in BASELINES}
    paired = None
    if metric is None and best and scores[best].seeds == 1:
        paired = paired_answers(study, place, best)

    def tied(row: Row) -> bool:
        if paired is not None and scores[row].seeds == 1:
            ours = correctness(scored(study.at(row, place))[0], study.root)
            if ours is not None and ours.index.equals(paired.index):
                return mcnemar(ours, paired) >= 0.05
        return scores[row].overlaps(scores[best])

    return {
        row: Standing(
            own,
            best=not row.control and (row == best or tied(row)),
            below=() if row.control else below(own, controls),
        )
        for row, own in scores.items()
    }


def paired_answers(study: Study, place: Place, row: Row):
    """Right or wrong per example of a row with one seed, where the primary metric is the share of right ones."""
    if study.metric(place) not in PER_EXAMPLE or study.facts[place].parts:
        return None
    return correctness(scored(study.at(row, place))[0], study.root)


def below(own: Estimate, controls: dict[Row, Estimate]) -> tuple[str, ...]:
    """The controls with a better mean, each with a word on the intervals."""
    return tuple(
        f"{control.label}{' (intervals overlap)' if own.overlaps(other) else ''}"
        for control, other in controls.items()
        if other.better(own)
    )


def mcnemar(first, second) -> float:
    """p of McNemar's exact test: do two boolean Series over the same examples differ in how often they are true?"""
    from scipy.stats import binomtest

    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)
