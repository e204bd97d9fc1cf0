"""What the tables share: the entries of a row, and the word that stands where a figure is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from workflow.outcomes import Outcome, Place, Row, Study, figures, known
from workflow.typeset import DASH, NOT_IN_GRID, Column, Entry, Notes, Table, TableRow, significant, some

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
    spread: tuple[tuple[str, ...], ...] = ()  # paths of a low and a high value that are shown beside it


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
    """A cost over the seeds that finished. Beside a median stand its own quartiles, if the figure has them, else the
    lowest and highest seed."""
    finished = [outcome for outcome in found if outcome.ok]
    values = known(finished, *figure.path)
    if not values:
        return absent(study, row, found, notes, measure)
    value = figure.combine(values) / figure.divisor
    ends = [figures(finished, *path) for path in figure.spread]
    if figure.combine is median and len(values) > 1 and not ends:
        ends = [[min(values)], [max(values)]]
    beside = [figure.show(median(end) / figure.divisor) for end in ends if end and None not in end]
    text = figure.show(value) + (f" [{'–'.join(beside)}]" if beside else "")
    return Entry(text, value, seeds=len(values), marks=lost_seeds(found, notes))


def table_row(row: Row, entries: Iterable[Entry]) -> TableRow:
    return TableRow(row.label, SECTIONS[row.control], tuple(entries))


def made(name: str, title: str, study: Study, filled: Sequence[Filled], notes: Notes) -> Table:
    """The table of these columns, with a row for each of the study's."""
    rows = tuple(table_row(row, [entry_of(row) for _, entry_of in filled]) for row in study.rows)
    table = Table(name, title, tuple(column for column, _ in filled), rows, ())
    shown = (entry for block in table.blocks() for row in block.rows for entry in row.entries)
    if any(entry.status == NOT_IN_GRID for entry in shown):
        notes.general.append("n/a: the grid has no such cell.")
    noted = replace(table, notes=notes.listed())
    vars(noted)["_blocks"] = table.blocks()  # notes are no part of them
    return noted


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
    shown = ", ".join(some(named, MOST_NAMED))
    return Entry(DASH, status="incomplete", marks=(notes.add(f"{DASH} incomplete: no figure of {shown}"),))


def whole(value: float) -> str:
    return f"{round(value):,}"
