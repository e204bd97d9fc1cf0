"""The tables of a grid: what every method scored and cost, with the reason for every figure that is not there."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any

from workflow import outcomes
from workflow.outcomes import Outcome, Place, Row, Study, count_mismatches
from workflow.standing import TIE_RULE, Estimate, Standing, average, scored, standings
from workflow.typeset import (
    DASH,
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
UNITS = {
    "accuracy": "accuracy, %",
    "f1": "F1, %",
    "exact_match": "exact match, %",
    "matthews": "Matthews, ×100",
    "pearson": "Pearson, ×100",
    "spearman": "Spearman, ×100",
}
INTERVAL = (
    "Scores are the primary metric × 100, mean ± half-width of a 95 % interval. With two or more seeds it is a t "
    "interval over seeds; it does not hold the sampling error of the test set."
)
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

    `ranked` has the standing of every row at every place; `cells` is the long data frame, one row a cell.
    """

    name: str
    title: str
    demo: bool
    study: Study
    ranked: dict[Place, dict[Row, Standing]]
    cells: Any
    summary: Table
    accuracy: Table
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
        return Entry("n/a", status="not in grid", marks=(notes.add("n/a: the grid has no such cell"),))
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
    return f"{found.mean:.1f}" if found.half is None else f"{found.mean:.1f} ±{found.half:.1f}"


def score_entry(study: Study, row: Row, place: Place, ranked: dict[Row, Standing], notes: Notes) -> Entry:
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
    if standing.below:
        entry = entry.marked(notes.case("↓", f"{row.label} on {place.title}, below {', '.join(standing.below)}"))
    return entry


def table_row(row: Row, entries: Iterable[Entry]) -> TableRow:
    return TableRow(row.label, SECTIONS[row.control], tuple(entries))


def metric_unit(study: Study, place: Place) -> str:
    metric = study.metric(place)
    return UNITS.get(metric, f"{metric}, ×100")


# --- accuracy and summary ---------------------------------------------------------------------------------------------


def accuracy(study: Study, ranked: dict[Place, dict[Row, Standing]], title: str) -> Table:
    notes = Notes(general=[INTERVAL, seeds_note(study), TIE_RULE])
    columns = tuple(Column(place.task, metric_unit(study, place), place.family) for place in study.places)
    rows = tuple(
        table_row(row, [score_entry(study, row, place, ranked[place], notes) for place in study.places])
        for row in study.rows
    )
    return Table("accuracy", f"Accuracy: {title}", columns, rows, notes.listed())


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


def summary(study: Study, ranked: dict[Place, dict[Row, Standing]], title: str) -> Table:
    """Method, trained parameters, score a task, their mean, and the costs, one group of columns a model."""
    notes = Notes(
        general=[
            INTERVAL,
            seeds_note(study),
            TIE_RULE,
            "The interval of the mean over tasks treats the tasks as independent.",
            "Trained: parameters of the method at their peak, head apart; % of the backbone's parameters. Step: median "
            "training step, mean over tasks. Memory: peak while training, largest over tasks. Stored: bytes of the "
            "method's own state, largest over tasks, head apart. Figures over tasks are given only where every task "
            "has one.",
        ]
    )
    models = dict.fromkeys(place.model for place in study.places)
    groups = [tuple(place for place in study.places if place.model == model) for model in models]
    columns = tuple(column for places in groups for column in summary_columns(study, places))
    rows = tuple(
        table_row(row, [entry for places in groups for entry in summary_entries(study, row, places, ranked, notes)])
        for row in study.rows
    )
    return Table("summary", f"Summary: {title}", columns, rows, notes.listed())


def summary_columns(study: Study, places: tuple[Place, ...]) -> list[Column]:
    model = places[0].model
    several_suites = len({place.suite for place in places}) > 1
    scores = [
        Column(
            f"{place.suite}/{place.task}" if several_suites else place.task,
            metric_unit(study, place),
            model,
            "demo" if place.demo else "",
        )
        for place in places
    ]
    mean = [Column(f"mean of {len(places)}", "×100", model)] if len(places) > 1 else []
    costs = [Column("step", "ms", model), Column("memory", "MiB", model), Column("stored", "MiB", model)]
    return [Column("trained", "parameters", model), Column("trained", "%", model), *scores, *mean, *costs]


def summary_entries(
    study: Study, row: Row, places: tuple[Place, ...], ranked: dict[Place, dict[Row, Standing]], notes: Notes
) -> list[Entry]:
    found = study.everywhere(row, places)
    scores = [score_entry(study, row, place, ranked[place], notes) for place in places]
    mean = [mean_entry(study, row, places, ranked, notes)] if len(places) > 1 else []
    return [
        trained_entry(study, row, found, notes),
        percentage_entry(study, row, found, notes),
        *scores,
        *mean,
        over_tasks(study, row, places, STEP, lambda values: sum(values) / len(values), notes),
        over_tasks(study, row, places, TRAIN_PEAK, max, notes, "memory"),
        over_tasks(study, row, places, STORED, max, notes),
    ]


def mean_entry(
    study: Study, row: Row, places: tuple[Place, ...], ranked: dict[Place, dict[Row, Standing]], notes: Notes
) -> Entry:
    """Mean score over the tasks of a model, only where every task has one."""
    means = mean_scores(study, places, ranked)
    if row not in means:
        return incomplete(study, row, places, notes)
    own = means[row]
    leader = max((one for other, one in means.items() if not other.control), key=lambda one: one.mean, default=own)
    best = not row.control and (own == leader or own.overlaps(leader))
    entry = Entry(score_text(own), own.mean, own.half, own.seeds, best=best)
    return entry.marked(notes.case("†")) if own.seeds == 1 else entry


def mean_scores(
    study: Study, places: tuple[Place, ...], ranked: dict[Place, dict[Row, Standing]]
) -> dict[Row, Estimate]:
    complete = [row for row in study.rows if all(row in ranked[place] for place in places)]
    return {row: average([ranked[place][row].score for place in places]) for row in complete}


def over_tasks(
    study: Study,
    row: Row,
    places: tuple[Place, ...],
    figure: Figure,
    combine: Callable[[Sequence[float]], float],
    notes: Notes,
    measure: str = "",
) -> Entry:
    """A cost over the tasks of a model, only where every task has one."""
    entries = [figure_entry(study, row, study.at(row, place), figure, Notes(), measure) for place in places]
    values = [entry.value for entry in entries if entry.value is not None]
    if len(values) == len(places):
        value = combine(values)
        return Entry(figure.show(value), value)
    return incomplete(study, row, places, notes, measure)


def incomplete(study: Study, row: Row, places: tuple[Place, ...], notes: Notes, measure: str = "") -> Entry:
    """The word for a figure over tasks that cannot be given: the cells' own where they all share it, else a dash."""
    words = {absent(study, row, study.at(row, place), Notes(), measure).text for place in places}
    if len(words) == 1:
        return absent(study, row, study.everywhere(row, places), notes, measure)
    return Entry(DASH, status="incomplete", marks=(notes.add(f"{DASH} incomplete: not every task has this figure"),))


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
    heads = (("backbone", "parameters"), ("trained", "parameters"), ("trained", "% of backbone"))
    heads += (("head", "parameters"), ("stored", "MiB"), ("head stored", "MiB"), ("added at inference", "parameters"))
    columns = tuple(Column(name, unit, place.title) for place in study.places for name, unit in heads)
    rows = tuple(
        table_row(row, [entry for place in study.places for entry in parameter_entries(study, row, place, notes)])
        for row in study.rows
    )
    return Table("parameters", f"Parameters: {title}", columns, rows, notes.listed(), split=True)


def parameter_entries(study: Study, row: Row, place: Place, notes: Notes) -> list[Entry]:
    found = study.at(row, place)

    def counted(name: str, show: Callable[[float], str] = whole, divisor: float = 1) -> Entry:
        return count_entry(study, row, found, ("parameters", name), notes, show, divisor)

    return [
        counted("backbone"),
        trained_entry(study, row, found, notes),
        percentage_entry(study, row, found, notes),
        counted("head"),
        counted("stored_bytes", significant, MIB),
        counted("head_bytes", significant, MIB),
        counted("added_at_inference"),
    ]


def whole(value: float) -> str:
    return f"{round(value):,}"


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


def percentage_entry(study: Study, row: Row, found: Sequence[Outcome], notes: Notes) -> Entry:
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
    shown = [(place, figure) for place in study.places for figure in figures(place)]
    columns = tuple(Column(figure.title, figure.unit, place.title) for place, figure in shown)
    asked = "" if measure == "time" else measure
    rows = tuple(
        table_row(
            row, [figure_entry(study, row, study.at(row, place), figure, notes, asked) for place, figure in shown]
        )
        for row in study.rows
    )
    return Table(measure, title, columns, rows, notes.listed(), split=True)


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
