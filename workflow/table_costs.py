"""The tables of costs: parameters, memory, training time and latency."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from workflow.outcomes import Outcome, Place, Row, Study, count_mismatches, figures, known, values
from workflow.table_columns import Figure, Filled, absent, figure_entry, incomplete, made, whole
from workflow.typeset import Column, Entry, Notes, Table, significant, some

MIB, GIGA = 2**20, 1e9
TIMED = re.compile(r"latency\.(?:prefill_|token_)?batch_([0-9]+)\.")
MEMORY = (
    Figure("training peak", "MiB", ("memory", "train_peak"), MIB, max),
    Figure("training reserved", "MiB", ("memory", "train_reserved"), MIB, max),
    Figure("evaluation peak", "MiB", ("memory", "evaluate_peak"), MIB, max),
    Figure("inference peak", "MiB", ("memory", "inference_peak"), MIB, max),
    Figure("load peak", "MiB", ("memory", "load_peak"), MIB, max),
    *(
        Figure(name, "MiB", ("memory", "parts", name), MIB, max)
        for name in ("base", "method", "gradients", "optimizer", "activations")
    ),
)
TIME = (
    Figure("training", "s", ("time", "train")),
    Figure("first step", "ms", ("time", "first_step"), 1e-3),
    Figure("step median", "ms", ("time", "step_median"), 1e-3),
    Figure("step p25", "ms", ("time", "step_p25"), 1e-3),
    Figure("step p75", "ms", ("time", "step_p75"), 1e-3),
    Figure("step p95", "ms", ("time", "step_p95"), 1e-3),
    Figure("throughput", "tokens/s", ("time", "tokens_per_s")),
    Figure("throughput", "examples/s", ("time", "examples_per_s")),
)
OPERATIONS = (
    Figure("training step", "GFLOP", ("flops", "train_step"), GIGA),
    Figure("of the matmul peak", "%", ("flops", "utilisation"), 0.01),
    Figure("inference bare", "GFLOP", ("flops", "inference_bare"), GIGA),
    Figure("inference attached", "GFLOP", ("flops", "inference_attached"), GIGA),
    Figure("added at inference", "GFLOP", ("flops", "inference_added"), GIGA),
    Figure("training energy", "J", ("energy", "train")),
    Figure("evaluation energy", "J", ("energy", "evaluate")),
    Figure("test energy", "J", ("energy", "inference")),
)
COUNTED = ("peak", "mean", "final", "attached", "after_optimizer")  # when trained parameters are counted
STEP, TRAIN_PEAK = TIME[2], MEMORY[0]
STORED = Figure("stored", "MiB", ("parameters", "stored_bytes"), MIB, max)


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
        return bool(known([outcome for outcome in found if outcome.ok], *figure.path))

    return incomplete(study, row, places, notes, has, measure)


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
    counts = [count / divisor for count in known(found, *path)]
    if not counts:
        return absent(study, row, found, notes)
    low, high = min(counts), max(counts)
    return Entry(show(high) if low == high else f"{show(low)}–{show(high)}", high)


def trained_entry(study: Study, row: Row, found: Sequence[Outcome], notes: Notes) -> Entry:
    entry = count_entry(study, row, found, ("parameters", "trained", "peak"), notes)
    if entry.value is None:
        return entry
    counts = (figures(found, "parameters", "trained", when) for when in COUNTED)
    for *steps, attached, optimized in dict.fromkeys(zip(*counts, strict=True)):
        steps = [count for count in steps if count is not None]
        if len(set(steps)) > 1:
            shown = " / ".join(map(whole, steps))
            entry = entry.marked(notes.add(f"trained parameters change over training: {shown} (peak / mean / final)"))
        if attached is not None and optimized is not None and attached != optimized:
            entry = entry.marked(notes.add(f"{attached:,} attached, {optimized:,} after the optimizer is built"))
    for outcome, sentences in zip(found, count_mismatches(found), strict=True):
        for sentence in sentences:
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
    name: str,
    title: str,
    figures_of: Callable[[Place], Sequence[Figure]],
    notes_of: Callable[[Study], list[str]],
    asked: str = "",
) -> Table:
    """The figures of every place that any of its cells has (all of them, if none has any).

    asked: the word of the grid's `measure` that they are taken for, if it is not always.
    """
    notes = Notes(general=notes_of(study))

    def filled(place: Place, figure: Figure) -> Filled:
        def entry_of(row: Row) -> Entry:
            entry = figure_entry(study, row, study.at(row, place), figure, notes, asked)
            return entry.marked(notes.case("‡")) if entry.seeds == 1 < usual else entry

        return Column(figure.title, figure.unit, place.title), entry_of

    usual, exceptions = runs(study)
    if usual:
        notes.general.append(f"Runs a figure: {'; '.join([str(usual), *exceptions])}.")
    shown = []
    for place in study.places:
        found = [outcome for row in study.rows for outcome in study.at(row, place) if outcome.ok]
        given = [figure for figure in figures_of(place) if known(found, *figure.path)]
        shown += [filled(place, figure) for figure in given or figures_of(place)]
    return made(name, title, study, shown, notes)


def runs(study: Study) -> tuple[int, list[str]]:
    """How many runs stand behind most figures (0 without any), and who has another number of them."""
    counts: dict[int, list[str]] = {}
    for (row, place), found in study.outcomes.items():
        if number := sum(outcome.ok for outcome in found):
            counts.setdefault(number, []).append(f"{row.label} on {place.title}")
    usual = max(counts, key=lambda number: (len(counts[number]), number), default=0)
    return usual, [f"{number} for {', '.join(some(counts[number]))}" for number in sorted(counts) if number != usual]


def latency_figures(study: Study, place: Place) -> list[Figure]:
    """Bare, attached and merged at every batch size that any result of this place was timed at."""
    sizes = {
        int(timed[1])
        for name in study.names("latency.")
        if (timed := TIMED.match(name)) and known(study.of_place(place), name)
    }
    return [
        figure
        for kind in ("", "prefill ", "token ")
        for size in sorted(sizes or {1})
        for figure in _latency_figures(kind, size)
    ]


def _latency_figures(kind: str, size: int) -> list[Figure]:
    """Of one kind and batch size: milliseconds, and the ratios to the bare backbone in per cent of it."""
    at = ("latency", f"{kind.strip()}_batch_{size}".lstrip("_"))
    found = []
    for state in ("bare", "attached", "merged"):
        found.append(Figure(f"{kind}{state}, batch {size}", "ms", (*at, state, "median"), 1e-3))
        if state != "bare":
            ratio = (*at, f"{state}_over_bare")
            low, high = (*ratio, "p25"), (*ratio, "p75")
            found.append(
                Figure(f"{kind}{state}, batch {size}", "% of bare", (*ratio, "median"), 0.01, spread=(low, high))
            )
    return found


def cost_only_notes(study: Study) -> list[str]:
    """On what the places were taken that have costs and no scores."""
    places = [place for place in study.places if place.cost_only]
    if not places:
        return []
    batches = dict.fromkeys(filter(None, (batch_of(study, place) for place in places)))
    return [f"Cost only: random weights, synthetic batches ({'; '.join(batches)}), nothing is scored."]


def batch_of(study: Study, place: Place) -> str:
    """The batches that the cells of a place train on, in words: `cost/classify: 32 of 128 tokens, bfloat16`."""
    recipes = [outcome.cell.recipe for row in study.rows for outcome in study.at(row, place)]
    facts, protocol = study.facts[place], study.protocols[place]
    size = f"{facts.max_length} tokens" if facts.modality == "text" else f"{protocol['size']} pixels a side"
    batches = dict.fromkeys(f"{recipe['batch_size']} of {size}, {recipe['dtype']}" for recipe in recipes)
    return f"{place.suite}/{place.task}: {' or '.join(batches)}"


def memory_notes(study: Study) -> list[str]:
    about = (
        "Peaks of one phase each, reset in between; largest over seeds. Reserved is what the allocator held. Base to "
        "activations: bytes of tensors in one training step on a batch of middle length; activations are what is kept "
        "from the forward for the backward pass, and weights that are trained in place count as base."
    )
    return [about, *cost_only_notes(study), *taken_on(study, ("memory", "device"), "memory of")]


def time_notes(study: Study) -> list[str]:
    about = (
        "Training is without evaluation, loading and saving. The first step is not in the quantiles of steps (p25, "
        "median, p75, p95), which hold the different lengths of batches too. Tokens are real ones, without padding. "
        "Median over seeds [lowest–highest]."
    )
    return [about, *cost_only_notes(study), *machines(study)]


def operations_notes(study: Study) -> list[str]:
    about = (
        "Operations of matrix products, convolutions and attention, two a multiply-add: of a training step on a batch "
        "of middle length, and of one forward pass of one example. Added: after merging where the method merges. Of "
        "the matmul peak: operations of training a second over those of large matrix products on the same device. "
        "Energy: of the device in a phase, with all that ran on it. Median over seeds [lowest–highest]."
    )
    return [about, *cost_only_notes(study), *taken_on(study, ("energy", "source"), "energy by"), *machines(study)]


def latency_notes(study: Study) -> list[str]:
    about = (
        "Median time of one forward pass; where texts are generated, of reading the prompts and giving the first token "
        "(prefill) and of each token after it (token). Bare: the backbone without the method. Attached: with the "
        "method. Merged: with the method folded into the weights. % of bare: median and quartiles of ratios of calls "
        f"that followed each other{repeats(study)}. Others: median over seeds [lowest–highest]."
    )
    length = taken_on(study, ("latency", "length"), "sequence length")
    return [about, *cost_only_notes(study), *length, *machines(study)]


def repeats(study: Study) -> str:
    """How often latencies were timed; few repeats know little of their spread."""
    names = [name for name in study.names("latency.") if name.endswith(".n")]
    counts = sorted({count for name in names for count in known(study.all(), name)})
    return f", of {counts[0]} to {counts[-1]} repeats" if counts else ""


def taken_on(study: Study, path: tuple[str, str], name: str) -> list[str]:
    found = dict.fromkeys(str(value) for value in values(study.all(), *path) if value is not None)
    return [f"Measured on: {name} {', '.join(found)}."] if found else []


def machines(study: Study) -> list[str]:
    """The devices the times were taken on, with a warning where there is more than one machine."""
    ran = [outcome for outcome in study.all() if outcome.status not in ("missing", "corrupt")]
    seen = dict.fromkeys(zip(*(values(ran, "provenance", name) for name in ("device", "host")), strict=True))
    taken = [f"{device or 'unknown device'} of {host or 'unknown host'}" for device, host in seen]
    if not taken:
        return []
    warning = " More than one machine: compare times only within one." if len(taken) > 1 else ""
    return [f"Machine: {'; '.join(some(taken))}.{warning}"]


def results_with(study: Study, section: str) -> list[dict]:
    """The whole results that have a section, read from their files."""
    return [result for outcome in study.all() if isinstance((result := outcome.result).get(section), dict)]
