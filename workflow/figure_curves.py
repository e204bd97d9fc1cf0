"""Learning curves: training loss and validation by step, a line a cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from workflow.figures import MUTED, Drawing, Gallery, Marks, colours, drawn
from workflow.outcomes import Outcome, Place, Row, Study
from workflow.standing import metric_of
from workflow.typeset import some

MOST_PLACES = 8
MOST_LINES = 60  # cells in one figure: controls and the first of the grid's order
MOST_COLOURS = 10  # rows with a colour of their own; more share those of their families
MOST_POINTS = 60  # of a line
NOTES = (
    "Left: training loss, each point a mean over the steps before it. Right: the metric on validation data that a "
    "checkpoint is chosen by, at each evaluation. One line a cell, so seeds of a method have several; controls are "
    "grey and dashed.",
)


@dataclass(frozen=True)
class Curve:
    """Of one cell: (step, value) points. `chosen_by`: the metric of the validation points."""

    row: Row
    seed: int
    loss: tuple[tuple[float, float], ...]
    validation: tuple[tuple[float, float], ...]
    chosen_by: str


def learning_curves(study: Study, family_of: dict[Row, str]) -> Gallery:
    places = [place for place in study.scored if any(has_curve(o) for row in study.rows for o in study.at(row, place))]
    drawings = [curves_at(study, place, family_of) for place in places[:MOST_PLACES]]
    notes = NOTES
    if left := [place.title for place in places[MOST_PLACES:]]:
        notes += (f"Not drawn here, but on the pages of their cells: {', '.join(some(left))}.",)
    found = tuple(drawing for drawing in drawings if drawing)
    return Gallery("curves", "Learning curves", found, notes, "No cell has recorded a learning curve yet.")


def has_curve(outcome: Outcome) -> bool:
    return bool(outcome.figure("training", "steps"))


def curves_at(study: Study, place: Place, family_of: dict[Row, str]) -> Drawing | None:
    outcomes = [(row, outcome) for row in study.rows for outcome in study.at(row, place) if has_curve(outcome)]
    curves = [read(row, outcome) for row, outcome in outcomes[:MOST_LINES]]
    curves = [curve for curve in curves if curve.loss]
    if not curves:
        return None
    scale = metric_of(curves[0].chosen_by)
    said = [
        f"{curve.row.label} seed {curve.seed} ends at a loss of {curve.loss[-1][1]:.3g}"
        + (f" and {scale.scale * curve.validation[-1][1]:.{scale.decimals}f}" if curve.validation else "")
        for curve in curves
    ]
    alt = f"Learning curves on {place.title}. {'; '.join(said)}."
    left = len(outcomes) - MOST_LINES
    caption = f"{place.title}: learning curves" + (f"; {left} more cells are not drawn" if left > 0 else "")

    def paint(figure, marks: Marks) -> None:
        figure.subplots_adjust(left=0.07, right=0.99, top=0.97, bottom=0.24, wspace=0.2)
        left, right = figure.subplots(1, 2)
        shades, named = shading([curve.row for curve in curves], family_of)
        for curve in curves:
            paint_curve(left, curve, curve.loss, 1, shades, family_of, marks)
            paint_curve(right, curve, curve.validation, scale.scale, shades, family_of, marks)
        for axes, label in ((left, "training loss"), (right, f"validation: {scale.unit}")):
            axes.set_xlabel("step")
            axes.set_ylabel(label)
            axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.5)
        paint_legend(figure, named)

    return drawn(paint, f"{place.title}-curves", caption, alt, size=(9.6, 3.9), place=place.title)


def read(row: Row, outcome: Outcome) -> Curve:
    """The curves of a cell as its result file has them, thinned."""
    result = outcome.result
    curves, metrics = result.get("curves") or {}, result.get("metrics") or {}
    chosen_by = metrics.get("select") or metrics.get("primary") or ""
    loss, validation = (thinned(curves.get(name) or ()) for name in ("train_loss", "validation"))
    return Curve(row, outcome.cell.seed, loss, validation, chosen_by)


def thinned(points: Sequence) -> tuple[tuple[float, float], ...]:
    """At most MOST_POINTS finite points, evenly spaced, the last one among them."""
    finite = [(step, value) for step, value in points if value is not None and value == value and abs(value) < 1e30]
    step = -(-len(finite) // MOST_POINTS) if finite else 1
    return tuple(finite[::-1][::step][::-1])


def shading(rows: list[Row], family_of: dict[Row, str]) -> tuple[dict[Row, str], dict[str, str]]:
    """The colour of every row, and what the legend names: methods where they are few, else families."""
    methods = [row for row in dict.fromkeys(rows) if not row.control]
    few = len(methods) <= MOST_COLOURS
    names = {row: row.label if few else family_of[row] for row in methods}
    named = colours(names.values())
    return {row: named[name] for row, name in names.items()}, named


def paint_curve(axes, curve: Curve, points: tuple, scale: float, shades: dict, family_of: dict, marks: Marks) -> None:
    if not points:
        return
    steps, values = [step for step, _ in points], [scale * value for _, value in points]
    (line,) = axes.plot(
        steps,
        values,
        color=MUTED if curve.row.control else shades[curve.row],
        linewidth=1.3,
        linestyle=(0, (4, 2)) if curve.row.control else "-",
        marker="o" if len(points) < 3 else None,
        markersize=3,
        alpha=0.85,
    )
    tip = f"{curve.row.label}, seed {curve.seed}: {values[-1]:.4g} at step {steps[-1]:,.0f}"
    marks.add(line, "line", tip, method=curve.row.label, family=family_of[curve.row])


def paint_legend(figure, named: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, color=colour, linewidth=1.5) for name, colour in named.items()]
    handles.append(Line2D([], [], label="controls", color=MUTED, linewidth=1.5, linestyle=(0, (4, 2))))
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), 6), columnspacing=1.2)
