"""The tables of a grid: what every method scored and cost, with the reason for every figure that is not there."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

from workflow import outcomes
from workflow.files import replaced
from workflow.outcomes import Place, Row, Study
from workflow.standing import Standing, standings
from workflow.table_columns import Figure, Filled, made
from workflow.table_costs import (
    MEMORY,
    OPERATIONS,
    STEP,
    STORED,
    TIME,
    TRAIN_PEAK,
    cost_only_notes,
    costs,
    latency_figures,
    latency_notes,
    memory_notes,
    operations_notes,
    over_tasks,
    parameters,
    share_entry,
    time_notes,
    trained_entry,
)
from workflow.table_scores import accuracy, answers, mean_columns, parts, score_columns, score_notes
from workflow.typeset import Column, Entry, Notes, Table, to_frame, to_latex, to_markdown, to_text

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet's formulas begin


@dataclass(frozen=True)
class Tables:
    """Everything the report and the files are made from.

    `grid` is what the tables are of; `ranked` has the standing of every row at every place; `cells` is the long data
    frame, one row a cell. `accuracy`, `parts` and `answers` are there only where tasks of the grid are scored, have
    parts, or generate answers.
    """

    grid: Any
    name: str
    title: str
    demo: bool
    study: Study
    ranked: dict[Place, dict[Row, Standing]]
    cells: Any
    summary: Table
    accuracy: Table | None
    parts: Table | None
    answers: Table | None
    parameters: Table
    memory: Table
    time: Table
    latency: Table
    operations: Table

    def typeset(self) -> tuple[Table, ...]:
        return tuple(value for field in fields(self) if isinstance(value := getattr(self, field.name), Table))


def build(grid: Any, root: Path = Path(".")) -> Tables:
    """Read the grid's results below `root` and make its tables. Unreadable results become rows, never exceptions."""
    study = outcomes.load(grid, Path(root))
    demo = any(place.demo for place in study.places)
    title = f"{grid.title or grid.name}{' (demo)' if demo else ''}"
    ranked = {place: standings(study, place) for place in study.scored}
    return Tables(
        grid=grid,
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
        memory=costs(study, "memory", f"Memory: {title}", lambda place: MEMORY, memory_notes, "memory"),
        time=costs(study, "time", f"Training time: {title}", lambda place: TIME, time_notes),
        latency=costs(
            study, "latency", f"Latency: {title}", lambda place: latency_figures(study, place), latency_notes, "latency"
        ),
        operations=costs(
            study, "operations", f"Operations: {title}", lambda place: OPERATIONS, operations_notes, "flops"
        ),
    )


# --- summary ----------------------------------------------------------------------------------------------------------


def summary(study: Study, ranked: dict[Place, dict[Row, Standing]], title: str) -> Table:
    """Trained parameters, scores, their means and the costs, one group of columns a suite and model."""
    notes = score_notes(study) if study.scored else Notes()
    if study.scored:
        notes.general.append("Intervals of means over tasks treat the tasks as independent.")
    notes.general += [
        *cost_only_notes(study),
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
    averages = [] if places[0].cost_only else mean_columns(study, places, ranked, notes)
    if places[0].cost_only:
        scores = []
    elif len(averages) > 1:
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
    return {f"{name}.csv": to_csv(frame).encode(), f"{name}.parquet": parquet.getvalue()}


def to_csv(frame: Any) -> str:
    """The frame as CSV, blank where nothing is known. Words that a spreadsheet would take for a formula begin with a
    quote."""
    text = io.StringIO(newline="")
    file = csv.writer(text, lineterminator="\n")
    file.writerow(frame.columns)
    file.writerows(zip(*(printed(frame[name]) for name in frame.columns), strict=True))
    return text.getvalue()


def printed(column: Any) -> list:
    from pandas.api.types import is_numeric_dtype

    values = column.to_numpy(dtype=object, na_value="").tolist()
    if is_numeric_dtype(column.dtype):
        return values
    return [f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value for value in values]


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file whole: a reader sees the old bytes or the new ones."""
    with replaced(path) as temporary:
        temporary.write_bytes(content)
