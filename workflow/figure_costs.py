"""Where the time and the memory of a cell go: a bar a method, in parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from workflow.figures import MUTED, SERIES, Drawing, Gallery, Marks, drawn
from workflow.outcomes import Outcome, Place, Row, Study
from workflow.table_costs import MIB
from workflow.typeset import significant, some

MOST_PLACES = 6
MOST_ROWS = 40
NOTES = (
    "Time of a cell in parts, median over seeds: what is left of the whole cell's time is called other. Memory: bytes "
    "of tensors in one training step, where the grid measures them; weights that are trained in place count as base. "
    "Ordered by the grid, controls first.",
)


@dataclass(frozen=True)
class Breakdown:
    """What a bar is made of. `whole`: the figure that holds all parts, where there is one."""

    view: str
    unit: str
    section: tuple[str, ...]
    parts: tuple[tuple[str, tuple[str, ...]], ...]  # name in the legend, names in the result
    divisor: float = 1
    whole: str = ""

    def of(self, outcomes: tuple[Outcome, ...]) -> dict[str, float]:
        """The parts over the seeds that finished; {} where no cell has any."""
        ok = [outcome for outcome in outcomes if outcome.ok]
        found = {name: self.sum_of(ok, names) for name, names in self.parts}
        known = {name: value for name, value in found.items() if value is not None}
        if not known:
            return {}
        whole = self.sum_of(ok, (self.whole,)) if self.whole else None
        if whole is not None and (rest := whole - sum(known.values())) > 0:
            known["other"] = rest
        return known

    def sum_of(self, outcomes: list[Outcome], names: tuple[str, ...]) -> float | None:
        sums = []
        for outcome in outcomes:
            values = [value for name in names if (value := outcome.figure(*self.section, name)) is not None]
            if values:
                sums.append(sum(values) / self.divisor)
        return median(sums) if sums else None


BREAKDOWNS = (
    Breakdown(
        "time",
        "s",
        ("time",),
        (
            ("data", ("data",)),
            ("load", ("load",)),
            ("calibrate", ("calibrate",)),
            ("attach", ("attach",)),
            ("train", ("train",)),
            ("evaluate", ("validation", "test")),
            ("save", ("save",)),
            ("measure", ("measure",)),
        ),
        whole="total",
    ),
    Breakdown(
        "memory",
        "MiB",
        ("memory", "parts"),
        tuple((name, (name,)) for name in ("base", "method", "head", "gradients", "optimizer", "activations")),
        MIB,
    ),
)


def cost_breakdowns(study: Study, family_of: dict[Row, str]) -> Gallery:
    drawings = []
    for place in study.places[:MOST_PLACES]:
        for breakdown in BREAKDOWNS:
            bars = {row: parts for row in study.rows if (parts := breakdown.of(study.at(row, place)))}
            if bars:
                drawings.append(breakdown_at(place, breakdown, bars, family_of))
    notes = NOTES
    if left := [place.title for place in study.places[MOST_PLACES:]]:
        notes += (f"Not drawn here, but in the tables: {', '.join(some(left))}.",)
    return Gallery("costs", "Where time and memory go", tuple(drawings), notes, "No cell has recorded its times yet.")


def breakdown_at(
    place: Place, breakdown: Breakdown, bars: dict[Row, dict[str, float]], family_of: dict[Row, str]
) -> Drawing:
    rows = list(bars)[:MOST_ROWS]
    said = [
        f"{row.label} {significant(sum(bars[row].values()))} {breakdown.unit}: "
        + ", ".join(f"{name} {significant(value)}" for name, value in bars[row].items())
        for row in rows
    ]
    alt = f"{breakdown.view} by parts on {place.title}. {'; '.join(said)}.".capitalize()
    left = len(bars) - len(rows)
    caption = f"{place.title}: {breakdown.view} of a cell in parts" + (
        f"; {left} more methods are not drawn" if left else ""
    )
    height = 1.15 + 0.23 * len(rows)

    def paint(figure, marks: Marks) -> None:
        from matplotlib.patches import Rectangle

        figure.subplots_adjust(left=0.2, right=0.98, top=1 - 0.1 / height, bottom=0.95 / height)
        axes = figure.add_subplot()
        shade = shades(breakdown)
        for y, row in enumerate(rows):
            start = 0.0
            for name, value in bars[row].items():
                bar = Rectangle((start, y - 0.34), value, 0.68, color=shade(name), linewidth=0)
                axes.add_artist(bar)  # `barh` and `add_patch` would work out the limits again for every piece
                tip = f"{row.label}, {name}: {significant(value)} {breakdown.unit}"
                marks.add(bar, f"piece part-{name}", tip, method=row.label, family=family_of[row])
                start += value
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(0, 1.05 * max(sum(bars[row].values()) for row in rows) or 1)
        axes.set_xlabel(f"{breakdown.view}, {breakdown.unit}")
        axes.grid(axis="x", color=MUTED, alpha=0.25, linewidth=0.5)
        axes.tick_params(axis="y", length=0)
        paint_legend(figure, [name for name in legend(breakdown) if any(name in bars[row] for row in rows)], shade)

    name = f"{place.title}-{breakdown.view}-parts"
    return drawn(paint, name, caption, alt, size=(7.6, height), place=place.title, view=breakdown.view)


def legend(breakdown: Breakdown) -> list[str]:
    return [name for name, _ in breakdown.parts] + ["other"]


def shades(breakdown: Breakdown) -> Callable[[str], str]:
    by_name = dict(zip(legend(breakdown), SERIES, strict=False)) | {"other": MUTED}
    return by_name.__getitem__


def paint_legend(figure, names: list[str], shade: Callable[[str], str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(label=name, facecolor=shade(name), linewidth=0) for name in names]
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), 9), columnspacing=1.0, handlelength=1.0)
