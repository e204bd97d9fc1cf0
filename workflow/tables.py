"""The tables of a grid: what every method scored and cost, with the reason for every figure that is not there."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from workflow import outcomes, registry
from workflow.outcomes import Outcome, Place, Row, Study, count_mismatches
from workflow.standing import TIE_RULE, Estimate, Standing, average, leader, metric_of, scored, standings
from workflow.typeset import (
    DASH,
    NOT_IN_GRID,
    Column,
    Entry,
    Notes,
    Table,
    TableRow,
    significant,
    to_frame,
    to_latex,
    to_markdown,
    to_text,
)

MIB = 2**20
INTERVAL = (
    "Scores are mean ± half-width of a 95 % interval, in the unit of the column. With two or more seeds it is a t "
    "interval over seeds; it does not hold the sampling error of the test set."
)
CHECKPOINTS = {"selected": "the evaluation that was best on validation data", "last": "the last step"}
ANSWERS = {
    "accuracy": ("strict", "accuracy, %"),
    "accuracy_flexible": ("flexible", "accuracy, %"),
    "accuracy_likelihood": ("likelihood", "accuracy, %"),
    "unparsed": ("unparsed", "% of texts"),
    "nll": ("nll", "nats/token"),
}
MOST_NAMED = 5  # tasks that a note on a missing mean names
Filled = tuple[Column, Callable[[Row], Entry]]  # a column, and what it holds for a row
WORDS = ("error", "corrupt", "oom", "diverged", "timeout", "unsupported", "missing")  # the first that applies is shown
SECTIONS = {True: "controls", False: "methods"}


@dataclass(frozen=True)
class Figure:
    """A figure of the result by its path, and how it is shown: unit, divisor, and how seeds are put together."""

    title: str
    unit: str
    path: tuple[str, ...]
    divisor: float = 1
    combine: Callable[[Sequence[float]], float] = median
    show: Callable[[float], str] = significant


MEMORY = (
    Figure("training peak", "MiB", ("memory", "train_peak"), MIB, max),
    Figure("training reserved", "MiB", ("memory", "train_reserved"), MIB, max),
    Figure("inference peak", "MiB", ("memory", "inference_peak"), MIB, max),
    Figure("load peak", "MiB", ("memory", "load_peak"), MIB, max),
)
TIME = (
    Figure("training", "s", ("time", "train")),
    Figure("step median", "ms", ("time", "step_median"), 1e-3),
    Figure("step p95", "ms", ("time", "step_p95"), 1e-3),
    Figure("throughput", "tokens/s", ("time", "tokens_per_s")),
    Figure("throughput", "examples/s", ("time", "examples_per_s")),
)
STEP, TRAIN_PEAK = TIME[1], MEMORY[0]
STORED = Figure("stored", "MiB", ("parameters", "stored_bytes"), MIB, max)


@dataclass(frozen=True)
class Tables:
    """Everything the report and the files are made from.

    `ranked` has the standing of every row at every place; `cells` is the long data frame, one row a cell. `parts` and
    `answers` are there only where tasks of the grid have parts or generate answers.
    """

    name: str
    title: str
    demo: bool
    study: Study
    ranked: dict[Place, dict[Row, Standing]]
    cells: Any
    summary: Table
    accuracy: Table
    parts: Table | None
    answers: Table | None
    parameters: Table
    memory: Table
    time: Table
    latency: Table

    def typeset(self) -> tuple[Table, ...]:
        return tuple(value for field in fields(self) if isinstance(value := getattr(self, field.name), Table))


def build(grid: Any, root: Path = Path(".")) -> Tables:
    """Read the grid's results below `root` and make its tables. Unreadable results become rows, never exceptions."""
    study = outcomes.load(grid, Path(root))
    demo = any(place.demo for place in study.places)
    title = f"{grid.title or grid.name}{' (demo)' if demo else ''}"
    ranked = {place: standings(study, place) for place in study.places}
    return Tables(
        name=grid.name,
        title=title,
        demo=demo,
        study=study,
        ranked=ranked,
        cells=outcomes.frame(study),
        summary=summary(study, ranked, title),
        accuracy=accuracy(study, ranked, title),
        parts=parts(study, ranked, title),
        answers=answers(study, ranked, title),
        parameters=parameters(study, title),
        memory=costs(study, "memory", f"Memory: {title}", lambda place: MEMORY, memory_notes),
        time=costs(study, "time", f"Training time: {title}", lambda place: TIME, time_notes),
        latency=costs(
            study, "latency", f"Latency: {title}", lambda place: latency_figures(study, place), latency_notes
        ),
    )


# --- entries ----------------------------------------------------------------------------------------------------------


def absent(study: Study, row: Row, found: Sequence[Outcome], notes: Notes, measure: str = "") -> Entry:
    """The word that stands where there is no figure, with its reason in a footnote."""
    if row.error:
        return Entry("broken", status="broken", marks=(notes.add(f"broken: {row.error}"),))
    if not found:
        return Entry("n/a", status=NOT_IN_GRID)
    failed = [outcome for outcome in found if not outcome.ok]
    if failed:
        word = min((outcome.status for outcome in failed), key=WORDS.index)
        marks = tuple(notes.add(text) for text in dict.fromkeys(map(failure, failed)))
        return Entry(word, status=word, marks=marks)
    asked = not measure or measure in study.measure
    why = "the device or the method does not give this figure" if asked else f"the grid does not measure {measure}"
    return Entry(DASH, status="absent", marks=(notes.add(f"{DASH} absent: {why}"),))


def failure(outcome: Outcome) -> str:
    return f"{outcome.status}: {outcome.reason}" if outcome.reason else f"{outcome.status}: no reason recorded"


def lost_seeds(found: Sequence[Outcome], notes: Notes) -> tuple[str, ...]:
    """Marks for the seeds that are not in a figure because their cells failed."""
    lost = [f"seed {outcome.cell.seed} {failure(outcome)}" for outcome in found if not outcome.ok]
    return (notes.add(f"without {'; '.join(lost)}"),) if lost else ()


def figure_entry(
    study: Study, row: Row, found: Sequence[Outcome], figure: Figure, notes: Notes, measure: str = ""
) -> Entry:
    """A cost over the seeds that finished."""
    values = [value for outcome in found if outcome.ok and (value := outcome.figure(*figure.path)) is not None]
    if not values:
        return absent(study, row, found, notes, measure)
    value = figure.combine(values) / figure.divisor
    return Entry(figure.show(value), value, marks=lost_seeds(found, notes))


def score_text(found: Estimate) -> str:
    decimals = found.metric.decimals
    return f"{found.mean:.{decimals}f}" + ("" if found.half is None else f" ±{found.half:.{decimals}f}")


def score_entry(
    study: Study, row: Row, place: Place, ranked: dict[Row, Standing], notes: Notes, metric: str | None = None
) -> Entry:
    """A metric at a place; only the primary one is held against the controls."""
    found = study.at(row, place)
    standing = ranked.get(row)
    if standing is None:
        return absent(study, row, found, notes, "accuracy")
    own = standing.score
    entry = Entry(score_text(own), own.mean, own.half, own.seeds, best=standing.best, marks=lost_seeds(found, notes))
    if own.half is None:
        entry = entry.marked(notes.add("no standard error recorded, so no interval"))
    elif own.seeds == 1:
        entry = entry.marked(notes.case("†"))
    others = {outcome.rule for outcome in found if outcome.trained} - {study.rules.get(place)}
    entry = entry.marked(*(notes.add(f"checkpoint: {CHECKPOINTS[rule]}") for rule in sorted(others)))
    if standing.below and metric is None:
        entry = entry.marked(notes.case("↓", f"{row.label} on {place.title}, below {', '.join(standing.below)}"))
    return entry


def table_row(row: Row, entries: Iterable[Entry]) -> TableRow:
    return TableRow(row.label, SECTIONS[row.control], tuple(entries))


def made(name: str, title: str, study: Study, filled: Sequence[Filled], notes: Notes) -> Table:
    """The table of these columns, with a row for each of the study's."""
    rows = tuple(table_row(row, [entry_of(row) for _, entry_of in filled]) for row in study.rows)
    table = Table(name, title, tuple(column for column, _ in filled), rows, ())
    shown = (entry for block in table.blocks() for row in block.rows for entry in row.entries)
    if any(entry.status == NOT_IN_GRID for entry in shown):
        notes.general.append("n/a: the grid has no such cell.")
    return replace(table, notes=notes.listed())


def unit_of(study: Study, place: Place) -> str:
    return metric_of(study.metric(place)).unit


# --- accuracy and summary ---------------------------------------------------------------------------------------------


def accuracy(study: Study, ranked: dict[Place, dict[Row, Standing]], title: str) -> Table:
    notes = score_notes(study)
    notes.general += chance_note(study)
    filled = [
        column
        for places in study.families()
        for column in (*score_columns(study, places, ranked, notes), *mean_columns(study, places, ranked, notes))
    ]
    return made("accuracy", f"Accuracy: {title}", study, filled, notes)


def score_notes(study: Study) -> Notes:
    """Notes that every table of scores begins with; the checkpoint is among them where all columns share it."""
    texts = {checkpoint(study, place) for place in study.rules}
    shared = [f"Checkpoint of the scores: {text}." for text in texts] if len(texts) == 1 else []
    return Notes(general=[INTERVAL, seeds_note(study), TIE_RULE, *shared])


def checkpoint(study: Study, place: Place) -> str:
    """Which checkpoint most scores of a place are from, as the results say; '' where there is none yet."""
    rule, select = study.rules.get(place), study.facts[place].select
    return CHECKPOINTS.get(rule, "") + (f", by {select}" if rule == "selected" and select else "")


def column_marks(study: Study, place: Place, notes: Notes) -> tuple[str, ...]:
    """What must be known of every score in a column: its checkpoint if columns differ, a test set that was cut."""
    marks = []
    if len({checkpoint(study, other) for other in study.rules}) > 1 and place in study.rules:
        marks.append(notes.add(f"checkpoint: {checkpoint(study, place)}"))
    if cut := cut_test(study, place):
        marks.append(notes.add(cut))
    return tuple(marks)


def cut_test(study: Study, place: Place) -> str:
    """A sentence on a test set that the protocol cuts; '' where it does not, or had nothing to cut."""
    most, sizes = study.protocols[place].get("max_test"), test_sizes(study, place)
    if not most or (sizes and max(sizes) < most):
        return ""
    counted = f"n = {' or '.join(f'{size:,}' for size in sizes)} test examples, " if sizes else ""
    return f"{counted}cut by the protocol's max_test of {most:,}"


def test_sizes(study: Study, place: Place, metric: str | None = None) -> list[int]:
    """The different numbers of test examples behind a metric, over all results of a place."""
    found = (outcome.estimate(metric, "n") for row in study.rows for outcome in study.at(row, place))
    return sorted({int(size) for size in found if size})


def chance_note(study: Study) -> list[str]:
    """One sentence with the score that guessing gives."""
    known = {
        f"{place.suite}/{place.task}": facts.chance * metric_of(facts.primary).scale
        for place, facts in study.facts.items()
        if facts.chance is not None
    }
    return [f"By chance: {', '.join(f'{task} {chance:.1f}' for task, chance in known.items())}."] if known else []


def seeds_note(study: Study) -> str:
    """How many seeds stand behind the scores, exceptions named."""
    counts: dict[int, list[str]] = {}
    for (row, place), found in study.outcomes.items():
        if seeds := len(scored(found)):
            counts.setdefault(seeds, []).append(f"{row.label} on {place.title}")
    if not counts:
        return "Seeds: no score yet."
    usual = max(counts, key=lambda seeds: (len(counts[seeds]), seeds))
    others = [f"{seeds} for {', '.join(counts[seeds])}" for seeds in sorted(counts) if seeds != usual]
    return f"Seeds a score: {'; '.join([str(usual), *others])}."


def score_columns(
    study: Study, places: tuple[Place, ...], ranked: dict[Place, dict[Row, Standing]], notes: Notes
) -> list[Filled]:
    def filled(place: Place) -> Filled:
        marks = column_marks(study, place, notes)
        if not study.facts[place].ranked:
            marks += (notes.add("this task does not count in means over tasks"),)
        column = Column(place.task, unit_of(study, place), place.family, marks)
        return column, lambda row: score_entry(study, row, place, ranked[place], notes)

    return [filled(place) for place in places]


def summary(study: Study, ranked: dict[Place, dict[Row, Standing]], title: str) -> Table:
    """Trained parameters, scores, their means and the costs, one group of columns a suite and model."""
    notes = score_notes(study)
    notes.general += [
        "Intervals of means over tasks treat the tasks as independent.",
        "Trained: parameters of the method at their peak, head apart; % of the backbone's parameters. Step: median "
        "training step, mean over tasks. Memory: peak while training, largest over tasks. Stored: bytes of the "
        "method's own state, largest over tasks, head apart. Figures over tasks are given only where every task "
        "has one.",
    ]
    filled = [column for places in study.families() for column in summary_columns(study, places, ranked, notes)]
    return made("summary", f"Summary: {title}", study, filled, notes)


def summary_columns(
    study: Study, places: tuple[Place, ...], ranked: dict[Place, dict[Row, Standing]], notes: Notes
) -> list[Filled]:
    """Of a suite whose tasks have groups only the means are shown."""
    family = places[0].family
    averages = mean_columns(study, places, ranked, notes)
    if len(averages) > 1:
        notes.general.append(f"The tasks of {family} one by one are in the table of accuracy.")
        scores = averages
    else:
        scores = score_columns(study, places, ranked, notes) + averages

    def over(figure: Figure, combine: Callable[[Sequence[float]], float], measure: str = "") -> Callable[[Row], Entry]:
        return lambda row: over_tasks(study, row, places, figure, combine, notes, measure)

    return [
        (
            Column("trained", "parameters", family),
            lambda row: trained_entry(study, row, study.everywhere(row, places), notes),
        ),
        (Column("trained", "%", family), lambda row: share_entry(study, row, study.everywhere(row, places), notes)),
        *scores,
        (Column("step", "ms", family), over(STEP, mean)),
        (Column("memory", "MiB", family), over(TRAIN_PEAK, max, "memory")),
        (Column("stored", "MiB", family), over(STORED, max)),
    ]


# --- means over tasks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """A mean over places of one suite and model, or over such means. `places` are all that it needs."""

    title: str
    members: tuple[Place | Mean, ...]

    @property
    def places(self) -> tuple[Place, ...]:
        return tuple(place for one in self.members for place in (one.places if isinstance(one, Mean) else (one,)))

    def of(self, row: Row, ranked: dict[Place, dict[Row, Standing]]) -> Estimate | None:
        """None where a score is missing."""
        if any(row not in ranked[place] for place in self.places):
            return None
        return average(
            [one.of(row, ranked) if isinstance(one, Mean) else ranked[one][row].score for one in self.members]
        )


def means(study: Study, places: tuple[Place, ...]) -> list[Mean]:
    """The means of a suite on a model: of each group, of the groups, and of all tasks. A title says `2 of 7` where the
    grid has not all tasks of the suite. Tasks that do not count in means, and metrics to be low, are left out."""
    counted = [place for place in places if study.facts[place].ranked and not metric_of(study.metric(place)).lower]
    if len(counted) < 2:
        return []
    whole_suite = [info for info in registry.suites()[places[0].suite].tasks.values() if info.ranked]

    def share(here: int, there: int) -> str:
        return str(here) if here >= there else f"{here} of {there}"

    groups: dict[str, list[Place]] = {}
    for place in counted:
        groups.setdefault(study.facts[place].group, []).append(place)
    of_groups = [
        Mean(f"{group or 'other'}, mean of {share(len(own), sum(i.group == group for i in whole_suite))}", tuple(own))
        for group, own in groups.items()
    ]
    over_groups = Mean(f"mean of {share(len(groups), len({i.group for i in whole_suite}))} groups", tuple(of_groups))
    title = f"mean of {share(len(counted), len(whole_suite))}"
    if len(groups) > 1:
        return [*of_groups, over_groups, Mean(f"{title} tasks", tuple(counted))]
    return [Mean(title, tuple(counted))]


def mean_columns(
    study: Study, places: tuple[Place, ...], ranked: dict[Place, dict[Row, Standing]], notes: Notes
) -> list[Filled]:
    def filled(one: Mean) -> Filled:
        found = {row: own for row in study.rows if (own := one.of(row, ranked))}
        units = {unit_of(study, place) for place in one.places}
        marks = dict.fromkeys(mark for place in one.places for mark in column_marks(study, place, notes))
        column = Column(one.title, units.pop() if len(units) == 1 else "×100", places[0].family, tuple(marks))
        return column, lambda row: mean_entry(study, row, one.places, found, notes)

    return [filled(one) for one in means(study, places)]


def mean_entry(study: Study, row: Row, places: tuple[Place, ...], found: dict[Row, Estimate], notes: Notes) -> Entry:
    """A mean score, only where every task has one."""
    own = found.get(row)
    if own is None:
        return incomplete(study, row, places, notes, scored)
    best = leader(found)
    tied = not row.control and (row == best or own.overlaps(found[best]))
    entry = Entry(score_text(own), own.mean, own.half, own.seeds, best=tied)
    return entry.marked(notes.case("†")) if own.seeds == 1 else entry


def over_tasks(
    study: Study,
    row: Row,
    places: tuple[Place, ...],
    figure: Figure,
    combine: Callable[[Sequence[float]], float],
    notes: Notes,
    measure: str = "",
) -> Entry:
    """A cost over the tasks of a suite on a model, only where every task has one."""
    entries = [figure_entry(study, row, study.at(row, place), figure, Notes(), measure) for place in places]
    values = [entry.value for entry in entries if entry.value is not None]
    if len(values) == len(places):
        value = combine(values)
        return Entry(figure.show(value), value)

    def has(found: Sequence[Outcome]) -> bool:
        return any(outcome.ok and outcome.figure(*figure.path) is not None for outcome in found)

    return incomplete(study, row, places, notes, has, measure)


def incomplete(
    study: Study,
    row: Row,
    places: tuple[Place, ...],
    notes: Notes,
    has: Callable[[Sequence[Outcome]], Any],
    measure: str = "",
) -> Entry:
    """The word for a figure over tasks that cannot be given: the cells' own where they all share it, else a dash whose
    note names the tasks that lack the figure. `has` says whether the outcomes of a place have it."""
    lacking = [place for place in places if not has(study.at(row, place))]
    words = {place: absent(study, row, study.at(row, place), Notes(), measure).text for place in lacking}
    if len(lacking) == len(places) and len(set(words.values())) == 1:
        return absent(study, row, study.everywhere(row, places), notes, measure)
    named = [f"{place.task} ({word})" for place, word in words.items()]
    shown = named if len(named) <= MOST_NAMED + 1 else [*named[:MOST_NAMED], f"{len(named) - MOST_NAMED} more"]
    return Entry(DASH, status="incomplete", marks=(notes.add(f"{DASH} incomplete: no figure of {', '.join(shown)}"),))


# --- parts of a test split, and generated answers ---------------------------------------------------------------------


def parts(study: Study, ranked: dict[Place, dict[Row, Standing]], title: str) -> Table | None:
    """The primary metric of each part beside the headline, for the tasks that have parts."""
    notes = score_notes(study)
    notes.general.append("The headline is the score of the other tables.")
    filled = [
        column
        for place in study.places
        if study.facts[place].parts
        for column in part_columns(study, place, ranked[place], notes)
    ]
    return made("parts", f"Parts: {title}", study, filled, notes) if filled else None


def part_columns(study: Study, place: Place, ranked: dict[Row, Standing], notes: Notes) -> list[Filled]:
    facts, primary, unit = study.facts[place], study.metric(place), unit_of(study, place)
    counted = len(facts.parts) - len(facts.contaminated)
    over = f"mean of {counted} parts" if facts.headline == "mean" else facts.headline
    shared = column_marks(study, place, notes)
    sizes = {part: test_sizes(study, place, f"{primary}/{part}") for part in facts.parts}
    counts = [f"{part} {' or '.join(f'{n:,}' for n in found)}" for part, found in sizes.items() if found]
    if counts:
        notes.general.append(f"Test examples of {place.title}: {', '.join(counts)}.")

    def filled(part: str) -> Filled:
        marks = shared
        if part in facts.contaminated:
            text = "test questions of this part occur in the training data; it does not count in the mean"
            marks += (notes.add(text),)
        metric = f"{primary}/{part}"
        own = standings(study, place, metric)
        return Column(part, unit, place.title, marks), lambda row: score_entry(study, row, place, own, notes, metric)

    headline = Column(f"headline: {over}", unit, place.title, shared)
    first = (headline, lambda row: score_entry(study, row, place, ranked, notes))
    return [first, *(filled(part) for part in facts.parts)]


def answers(study: Study, ranked: dict[Place, dict[Row, Standing]], title: str) -> Table | None:
    """What the texts that a model generated hold, for the tasks that are answered by generation."""
    notes = score_notes(study)
    notes.general.append(
        "Strict: the answer in the form that the protocol asks for. Flexible: the answer by the protocol's second "
        "rule. Likelihood: the most likely of the given choices. Unparsed: texts without a strict answer; lower is "
        "better. Nll: mean negative log-likelihood of the reference answers; lower is better."
    )
    filled = [
        column
        for place in study.places
        if study.facts[place].kind == "generation"
        for column in answer_columns(study, place, ranked[place], notes)
    ]
    return made("answers", f"Generated answers: {title}", study, filled, notes) if filled else None


def answer_columns(study: Study, place: Place, ranked: dict[Row, Standing], notes: Notes) -> list[Filled]:
    facts = study.facts[place]
    shared = column_marks(study, place, notes)

    def filled(metric: str) -> Filled:
        title, unit = ANSWERS[metric]
        column = Column(title, unit, place.title, shared)
        if metric == study.metric(place):
            return column, lambda row: score_entry(study, row, place, ranked, notes)
        own = standings(study, place, metric)
        return column, lambda row: score_entry(study, row, place, own, notes, metric)

    return [
        *(filled(metric) for metric in ANSWERS if metric in facts.metrics),
        (Column("test", "examples", place.title), lambda row: size_entry(study, row, place, notes)),
    ]


def size_entry(study: Study, row: Row, place: Place, notes: Notes) -> Entry:
    """The number of test examples of a score."""
    found = study.at(row, place)
    sizes = sorted({int(size) for outcome in scored(found) if (size := outcome.estimate(None, "n"))})
    if not sizes:
        return absent(study, row, found, notes)
    return Entry("–".join(dict.fromkeys((whole(sizes[0]), whole(sizes[-1])))), sizes[-1])


# --- parameters -------------------------------------------------------------------------------------------------------


def parameters(study: Study, title: str) -> Table:
    notes = Notes(
        general=[
            "Trained: the method's own parameters (peak over training; peak / mean / final where they differ); the "
            "task's head is counted apart. %: trained parameters over the backbone's parameters. Stored: bytes of the "
            "method's own state. Added: parameters that inference carries beside the backbone's. Figures of failed "
            "cells are shown where they were taken before the failure.",
        ]
    )
    filled = [column for place in study.places for column in parameter_columns(study, place, notes)]
    return made("parameters", f"Parameters: {title}", study, filled, notes)


def whole(value: float) -> str:
    return f"{round(value):,}"


def parameter_columns(study: Study, place: Place, notes: Notes) -> list[Filled]:
    def counted(title: str, unit: str, name: str, show: Callable[[float], str] = whole, divisor: float = 1) -> Filled:
        path = ("parameters", name)
        return Column(title, unit, place.title), lambda row: count_entry(
            study, row, study.at(row, place), path, notes, show, divisor
        )

    return [
        counted("backbone", "parameters", "backbone"),
        (
            Column("trained", "parameters", place.title),
            lambda row: trained_entry(study, row, study.at(row, place), notes),
        ),
        (
            Column("trained", "% of backbone", place.title),
            lambda row: share_entry(study, row, study.at(row, place), notes),
        ),
        counted("head", "parameters", "head"),
        counted("stored", "MiB", "stored_bytes", significant, MIB),
        counted("head stored", "MiB", "head_bytes", significant, MIB),
        counted("added at inference", "parameters", "added_at_inference"),
    ]


def count_entry(
    study: Study,
    row: Row,
    found: Sequence[Outcome],
    path: tuple[str, ...],
    notes: Notes,
    show: Callable[[float], str] = whole,
    divisor: float = 1,
) -> Entry:
    """A count of any cell that got as far as counting; low to high where seeds or tasks differ, the value the high."""
    values = [value / divisor for outcome in found if (value := outcome.figure(*path)) is not None]
    if not values:
        return absent(study, row, found, notes)
    low, high = min(values), max(values)
    return Entry(show(high) if low == high else f"{show(low)}–{show(high)}", high)


def trained_entry(study: Study, row: Row, found: Sequence[Outcome], notes: Notes) -> Entry:
    entry = count_entry(study, row, found, ("parameters", "trained", "peak"), notes)
    if entry.value is None:
        return entry
    for outcome in found:
        trained = outcome.result.get("parameters", {}).get("trained", {})
        steps = [trained[name] for name in ("peak", "mean", "final") if name in trained]
        if len(set(steps)) > 1:
            shown = " / ".join(map(whole, steps))
            entry = entry.marked(notes.add(f"trained parameters change over training: {shown} (peak / mean / final)"))
        attached, optimized = trained.get("attached"), trained.get("after_optimizer")
        if attached is not None and optimized is not None and attached != optimized:
            entry = entry.marked(notes.add(f"{attached:,} attached, {optimized:,} after the optimizer is built"))
        for sentence in count_mismatches(outcome):
            entry = entry.marked(notes.case("≠", f"{row.label} on {outcome.cell.model}, {sentence}"))
    return Entry(entry.text, entry.value, marks=tuple(dict.fromkeys(entry.marks)))


def share_entry(study: Study, row: Row, found: Sequence[Outcome], notes: Notes) -> Entry:
    """Peak trained parameters in per cent of the backbone's parameters."""
    shares = [
        100 * peak / backbone
        for outcome in found
        if (peak := outcome.figure("parameters", "trained", "peak")) is not None
        and (backbone := outcome.figure("parameters", "backbone"))
    ]
    return Entry(significant(max(shares)), max(shares)) if shares else absent(study, row, found, notes)


# --- memory, time, latency --------------------------------------------------------------------------------------------


def costs(
    study: Study,
    measure: str,
    title: str,
    figures: Callable[[Place], Sequence[Figure]],
    notes_of: Callable[[Study], list[str]],
) -> Table:
    notes = Notes(general=notes_of(study))
    asked = "" if measure == "time" else measure

    def filled(place: Place, figure: Figure) -> Filled:
        column = Column(figure.title, figure.unit, place.title)
        return column, lambda row: figure_entry(study, row, study.at(row, place), figure, notes, asked)

    shown = [filled(place, figure) for place in study.places for figure in figures(place)]
    return made(measure, title, study, shown, notes)


def latency_figures(study: Study, place: Place) -> list[Figure]:
    """Bare, attached and merged at every batch size that any result of this place was timed at."""
    sizes = {
        int(name.removeprefix("batch_"))
        for row in study.rows
        for outcome in study.at(row, place)
        for name in outcome.result.get("latency", {})
        if name.removeprefix("batch_").isdigit()
    }
    return [
        Figure(f"{state}, batch {size}", "ms", ("latency", f"batch_{size}", state, "median"), 1e-3)
        for size in sorted(sizes or {1})
        for state in ("bare", "attached", "merged")
    ]


def memory_notes(study: Study) -> list[str]:
    about = "Peaks of one phase each, reset in between; largest over seeds. Reserved is what the allocator held."
    return [about, *taken_on(study, ("memory", "device"), "memory of")]


def time_notes(study: Study) -> list[str]:
    about = "Training is without evaluation, loading and saving. p95: 95 in 100 steps are faster. Median over seeds."
    return [about, *machines(study)]


def latency_notes(study: Study) -> list[str]:
    about = (
        "Median time of one forward pass. Bare: the backbone without the method. Attached: with the method. Merged: "
        "with the method folded into the weights. Median over seeds."
    )
    return [about, *taken_on(study, ("latency", "length"), "sequence length"), *machines(study)]


def taken_on(study: Study, path: tuple[str, str], name: str) -> list[str]:
    section, key = path
    values = dict.fromkeys(str(found[section][key]) for found in results_with(study, section) if key in found[section])
    return [f"Measured on: {name} {', '.join(values)}."] if values else []


def machines(study: Study) -> list[str]:
    """The devices the times were taken on, with a warning where there is more than one machine."""
    taken = dict.fromkeys(
        f"{found['provenance'].get('device', 'unknown device')} of {found['provenance'].get('host', 'unknown host')}"
        for found in results_with(study, "provenance")
    )
    if not taken:
        return []
    warning = " More than one machine: compare times only within one." if len(taken) > 1 else ""
    return [f"Machine: {'; '.join(taken)}.{warning}"]


def results_with(study: Study, section: str) -> list[dict]:
    return [outcome.result for outcome in study.all() if isinstance(outcome.result.get(section), dict)]


# --- files ------------------------------------------------------------------------------------------------------------


def to_markdown_text(table: Table) -> str:
    """The table aligned for a terminal."""
    return to_text(table)


def write(tables: Tables, folder: Path) -> list[Path]:
    """Write `cells.{csv,parquet}` and every table as CSV, Parquet, Markdown and LaTeX; returns the paths."""
    folder = Path(folder)
    files = frame_files("cells", tables.cells)
    for table in tables.typeset():
        files |= frame_files(table.name, to_frame(table))
        files |= {f"{table.name}.md": to_markdown(table).encode(), f"{table.name}.tex": to_latex(table).encode()}
    for name, content in files.items():
        write_bytes(folder / name, content)
    return [folder / name for name in files]


def frame_files(name: str, frame: Any) -> dict[str, bytes]:
    parquet = io.BytesIO()
    frame.to_parquet(parquet, index=False)
    csv = frame.to_csv(index=False, lineterminator="\n").encode()
    return {f"{name}.csv": csv, f"{name}.parquet": parquet.getvalue()}


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file whole: a reader sees the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
