"""The ladder of sizes: how each method's gap to full fine-tuning changes with the size of the model."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

from workflow.figures import INK, MUTED, Drawing, Gallery, Marks, colours, drawn
from workflow.outcomes import Place, Row, Study
from workflow.standing import Standing
from workflow.typeset import some

MOST_TASKS = 8
MOST_COLOURS = 10
NOTES = (
    "Score minus that of full fine-tuning on the same task and model, so that zero is its level; higher is better. "
    "Bars: 95 % intervals of the difference, the two scores taken as independent.",
)


@dataclass(frozen=True)
class Gap:
    """A method's score minus that of full fine-tuning on one model, and the half-width of its interval."""

    model: str
    size: float
    value: float
    half: float | None


def size_ladders(study: Study, ranked: dict[Place, dict[Row, Standing]], family_of: dict[Row, str]) -> Gallery:
    """A drawing for each task that has full fine-tuning and methods on two or more sizes."""
    tasks: dict[tuple[str, str], list[Place]] = defaultdict(list)
    for place in study.scored:
        tasks[place.suite, place.task].append(place)
    ladders = {task: found for task, places in tasks.items() if (found := gaps(study, places, ranked))}
    drawings = [ladder(task, found, family_of) for task, found in list(ladders.items())[:MOST_TASKS]]
    why = (
        "The grid has one model a task; a ladder needs two sizes or more."
        if all(len(places) < 2 for places in tasks.values())
        else "No task has full fine-tuning and another method on two models of known size yet."
    )
    notes = NOTES
    if left := list(ladders)[MOST_TASKS:]:
        notes += (f"Not drawn here: {', '.join(some(['/'.join(task) for task in left]))}.",)
    return Gallery("sizes", "Gap to full fine-tuning by size", tuple(drawings), notes, why)


def gaps(study: Study, places: list[Place], ranked: dict[Place, dict[Row, Standing]]) -> dict[Row, list[Gap]]:
    """Of the methods with a gap on two sizes or more, smallest model first."""
    found: dict[Row, list[Gap]] = defaultdict(list)
    for place in places:
        full = next((one.score for row, one in ranked[place].items() if row.method == "full"), None)
        size = backbone(study, place)
        if full is None or not size:
            continue
        for row, standing in ranked[place].items():
            if row.control:
                continue
            own = standing.score
            sign = -1 if own.metric.lower else 1
            half = None if None in (own.half, full.half) else math.hypot(own.half, full.half)
            found[row].append(Gap(place.model, size, sign * (own.mean - full.mean), half))
    kept = {row: sorted(values, key=lambda gap: gap.size) for row, values in found.items()}
    return {row: values for row, values in kept.items() if len({gap.size for gap in values}) > 1}


def backbone(study: Study, place: Place) -> float | None:
    """Parameters of the model, as any cell counted them."""
    counts = (outcome.figure("parameters", "backbone") for row in study.rows for outcome in study.at(row, place))
    return next((count for count in counts if count), None)


def ladder(task: tuple[str, str], found: dict[Row, list[Gap]], family_of: dict[Row, str]) -> Drawing:
    title = "/".join(task)
    said = [
        f"{row.label}: {', '.join(f'{gap.value:+.1f} on {gap.model}' for gap in values)}"
        for row, values in found.items()
    ]
    alt = f"Gap to full fine-tuning by model size on {title}. {'; '.join(said)}."
    few = len(found) <= MOST_COLOURS
    names = {row: row.label if few else family_of[row] for row in found}
    shades = colours(names.values())

    def paint(figure, marks: Marks) -> None:
        figure.subplots_adjust(left=0.1, right=0.98, top=0.97, bottom=0.26)
        axes = figure.add_subplot()
        for index, (row, values) in enumerate(found.items()):
            shade, data = shades[names[row]], {"method": row.label, "family": family_of[row]}
            sizes = [gap.size * (1 + 0.012 * (index % 7 - 3)) for gap in values]  # side by side, not on each other
            (line,) = axes.plot(sizes, [gap.value for gap in values], color=shade, linewidth=1.2, alpha=0.8)
            marks.add(line, "line", row.label, **data)
            for size, gap in zip(sizes, values, strict=True):
                if gap.half:
                    bar = axes.vlines(size, gap.value - gap.half, gap.value + gap.half, color=shade, linewidth=1)
                    marks.add(bar, "bar", **data)
                (dot,) = axes.plot(size, gap.value, marker="o", color=shade, markersize=4)
                tip = f"{row.label} on {gap.model}: {gap.value:+.1f}" + (f" ± {gap.half:.1f}" if gap.half else "")
                marks.add(dot, "mark", tip, **data)
        marks.add(axes.axhline(0, color=INK, linewidth=0.9, linestyle=(0, (4, 3))), "control", "full fine-tuning")
        axes.set_xscale("log")
        models = dict(sorted({gap.size: gap.model for values in found.values() for gap in values}.items()))
        axes.minorticks_off()
        axes.set_xticks(list(models), [f"{model}\n{size / 1e6:,.0f} M" for size, model in models.items()])
        axes.margins(x=0.15, y=0.12)
        axes.set_ylabel("score minus full fine-tuning")
        axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.5)
        paint_legend(figure, shades)

    return drawn(paint, f"{title}-sizes", f"{title}: gap to full fine-tuning", alt, place=title)


def paint_legend(figure, shades: dict[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=name, color=colour, linewidth=1.5) for name, colour in shades.items()]
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), 6), columnspacing=1.2)
