"""Scores against what they cost: who is on the Pareto front, and who cannot be told apart from the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean, median

from workflow.figures import INK, MUTED, Drawing, Gallery, Marks, colours, drawn, log_axis, place_text, widen
from workflow.outcomes import Outcome, Place, Row, Study
from workflow.standing import BASELINES, Estimate, Standing, leader, metric_of
from workflow.table_costs import MIB
from workflow.table_scores import means, unit_of
from workflow.typeset import significant, some

MOST_PLACES = 10  # places that are drawn
ROOM = 1_500_000  # bytes after which no further place is drawn
MOST_LABELS = 20  # names in a figure, if there is room: the front and the controls, then the highest scores
MOST_IN_LINE = 5  # entries of the legend
AREAS = (24, 190)  # of markers, in square points, from the least to the most memory
NOTES = (
    "Bars: 95 % intervals. Filled: the best method and those that cannot be told apart from it; hollow: told apart "
    "from it. Line: the Pareto front, methods that no other beats at the same cost or less. Diamond: full fine-tuning. "
    "Dashed lines: controls that every method should beat; dotted line: chance, where the axis reaches it.",
    "A marker's area grows with the peak memory of training, where every method drawn has one. A method without the "
    "cost, or with a cost of nothing, has no place on a log axis and is only in the tables.",
)


@dataclass(frozen=True)
class Arena:
    """Where methods compete in one figure: a place, or a mean over places of a suite on one model."""

    title: str
    unit: str
    places: tuple[Place, ...]
    standings: dict[Row, Standing]
    chance: float | None = None


@dataclass(frozen=True)
class Cost:
    """A cost of a cell, how those of seeds and of places are put together, and how it is shown."""

    view: str
    axis: str
    of: Callable[[Outcome], float | None]
    over_seeds: Callable[[Sequence[float]], float]
    over_places: Callable[[Sequence[float]], float]
    unit: str

    def at(self, study: Study, row: Row, places: tuple[Place, ...]) -> float | None:
        """None where a place has no figure."""
        found = []
        for place in places:
            values = [value for outcome in study.at(row, place) if (value := self.of(outcome)) is not None]
            if not values:
                return None
            found.append(self.over_seeds(values))
        return self.over_places(found)


@dataclass(frozen=True)
class Point:
    """A row in a figure. `size` is its peak memory of training in MiB."""

    row: Row
    cost: float
    score: Estimate
    best: bool
    size: float | None

    def tip(self, cost: Cost) -> str:
        said = f"{self.row.label}: {shown(self.score)}, {significant(self.cost)} {cost.unit}"
        return said + (f", {self.size:,.0f} MiB of memory" if self.size and cost.view != "memory" else "")


def latency(outcome: Outcome) -> float | None:
    """Milliseconds of one forward pass of one example, of a generated token where texts are generated; merged where the
    method merges."""
    for name in ("token_batch_1", "batch_1"):
        for state in ("merged", "attached"):
            if (value := outcome.figure("latency", name, state, "median")) is not None:
                return 1e3 * value
    return None


def scaled(*path: str, divisor: float = 1) -> Callable[[Outcome], float | None]:
    def of(outcome: Outcome) -> float | None:
        value = outcome.figure(*path) if outcome.ok else None
        return None if value is None else value / divisor

    return of


MEMORY = Cost("memory", "peak memory of training, MiB", scaled("memory", "train_peak", divisor=MIB), max, max, "MiB")
COSTS = (
    Cost(
        "parameters",
        "trained parameters, head apart",
        scaled("parameters", "trained", "peak"),
        max,
        max,
        "trained parameters",
    ),
    MEMORY,
    Cost(
        "step time", "median training step, ms", scaled("time", "step_median", divisor=1e-3), median, mean, "ms a step"
    ),
    Cost("latency", "latency in use, batch of 1, ms", latency, median, mean, "ms"),
    Cost("energy", "energy of training, J", scaled("energy", "train"), median, mean, "J"),
)


def scores_against_costs(study: Study, ranked: dict[Place, dict[Row, Standing]], family_of: dict[Row, str]) -> Gallery:
    """A drawing for each place and each cost that its cells have, in the order of `arenas`."""
    places = [arena for arena in arenas(study, ranked) if any(row.method not in BASELINES for row in arena.standings)]
    drawings: list[Drawing] = []
    left = []
    for number, arena in enumerate(places):
        if number >= MOST_PLACES or sum(len(drawing.svg) for drawing in drawings) > ROOM:
            left.append(arena.title)
            continue
        found = (score_against_cost(study, arena, cost, family_of) for cost in COSTS)
        drawings += [drawing for drawing in found if drawing]
    notes = NOTES
    if left:
        notes += (f"Not drawn here, but on the pages of their tasks: {', '.join(some(left))}.",)
    return Gallery("front", "Scores against costs", tuple(drawings), notes, "No method has a score and a cost yet.")


def arenas(study: Study, ranked: dict[Place, dict[Row, Standing]]) -> list[Arena]:
    """One for each suite and model first, its mean over tasks or else its first task: the one with the most methods
    before the others. Then other means, and then single tasks."""
    families = [places for places in study.families() if not places[0].cost_only]
    over_tasks = [arena for places in families for arena in mean_arenas(study, places, ranked)]
    alone = [
        Arena(place.title, unit_of(study, place), (place,), standings, chance_level(study, place))
        for place, standings in ranked.items()
        if standings
    ]
    found = over_tasks + alone
    heads: dict[str, Arena] = {}
    for arena in found:
        heads.setdefault(arena.places[0].family, arena)
    first = sorted(heads.values(), key=lambda arena: -sum(not row.control for row in arena.standings))
    return first + [arena for arena in found if arena not in first]


def mean_arenas(study: Study, places: tuple[Place, ...], ranked: dict[Place, dict[Row, Standing]]) -> Iterator[Arena]:
    """The mean over all tasks, and over groups of tasks where the suite has them: last the widest, so it is first."""
    for one in reversed(means(study, places)):
        scores = {row: own for row in study.rows if (own := one.of(row, ranked))}
        if not scores:
            continue
        best = leader(scores)
        standings = {
            row: Standing(own, not row.control and (row == best or own.overlaps(scores[best])), ())
            for row, own in scores.items()
        }
        units = {unit_of(study, place) for place in one.places}
        unit = units.pop() if len(units) == 1 else "×100"
        yield Arena(f"{places[0].family}: {one.title}", f"{one.title}, {unit}", one.places, standings)


def chance_level(study: Study, place: Place) -> float | None:
    chance = study.facts[place].chance
    return None if chance is None else chance * metric_of(study.metric(place)).scale


def score_against_cost(study: Study, arena: Arena, cost: Cost, family_of: dict[Row, str]) -> Drawing | None:
    """None where no row has both."""
    points = [
        Point(row, value, standing.score, standing.best, MEMORY.at(study, row, arena.places))
        for row, standing in arena.standings.items()
        if row.method not in BASELINES and (value := cost.at(study, row, arena.places))
    ]
    if not points:
        return None
    lines = {row.label: standing.score for row, standing in arena.standings.items() if row.method in BASELINES}
    said = [
        f"{point.row.label} {shown(point.score)} at {point.cost:,.{0 if point.cost >= 100 else 2}f}" for point in points
    ]
    said += [f"{label} {score.mean:.1f} (line)" for label, score in lines.items()]
    alt = f"Score against {cost.axis} on {arena.title}. {'; '.join(said)}."
    alt += f" Pareto front: {', '.join(point.row.label for point in front(points)) or 'no method'}."

    def paint(figure, marks: Marks) -> None:
        figure.subplots_adjust(left=0.1, right=0.965, top=0.975, bottom=0.23)
        axes = figure.add_subplot()
        paint_points(axes, points, cost, family_of, marks)
        paint_front(axes, points, marks)
        paint_lines(axes, lines, marks)
        axes.set_xscale("log")
        axes.margins(x=0.14, y=0.12)
        log_axis(axes.xaxis, *axes.get_xlim())
        widen(axes, 0.01 * points[0].score.metric.scale)
        levels = {label: score.mean for label, score in lines.items()}
        if arena.chance is not None and axes.get_ylim()[0] <= arena.chance <= axes.get_ylim()[1]:
            marks.add(
                axes.axhline(arena.chance, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1), "control"
            )
            levels["chance"] = arena.chance
        axes.set_xlabel(f"{cost.axis} (log scale)")
        axes.set_ylabel(arena.unit)
        axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.5)
        paint_labels(figure, axes, points, levels, marks, family_of)
        paint_legend(figure, points, family_of)

    name = f"{arena.title}-{cost.view}"
    caption = f"{arena.title}: score against {cost.view}"
    return drawn(paint, name, caption, alt, size=(6.6, 3.9), place=arena.title, view=cost.view)


def shown(score: Estimate) -> str:
    return f"{score.mean:.1f}" + (f" ± {score.half:.1f}" if score.half else "")


def front(points: Sequence[Point]) -> list[Point]:
    """The methods, controls apart, that none beats at the same cost or less, cheapest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.score.mean)):
        if not point.row.control and (not found or point.score.better(found[-1].score)):
            found.append(point)
    return found


def paint_points(axes, points: list[Point], cost: Cost, family_of: dict[Row, str], marks: Marks) -> None:
    """Put into the axes as they are: `scatter` and `vlines` work out the limits again for every point."""
    from matplotlib.collections import LineCollection, PathCollection
    from matplotlib.transforms import IdentityTransform

    shades = colours(family_of[point.row] for point in points if not point.row.control)
    area, circle, diamond = areas(points), outline("o"), outline("D")
    limits = []
    for point in points:
        colour = MUTED if point.row.control else shades[family_of[point.row]]
        data = {"method": point.row.label, "family": family_of[point.row]}
        half = point.score.half or 0.0
        ends = [(point.cost, point.score.mean - half), (point.cost, point.score.mean + half)]
        limits += ends
        if half:
            bar = LineCollection([ends], colors=colour, linewidths=1, alpha=0.7)
            marks.add(axes.add_collection(bar, autolim=False), "bar", **data)
        marker = PathCollection(
            [diamond if point.row.control else circle],
            [area(point)],
            offsets=[(point.cost, point.score.mean)],
            offset_transform=axes.transData,
            transform=IdentityTransform(),
            edgecolors=colour,
            facecolors=colour if point.best or point.row.control else "none",
            linewidths=1.4,
            zorder=3,
        )
        marks.add(axes.add_collection(marker, autolim=False), "mark", point.tip(cost), **data)
    axes.update_datalim(limits)


def outline(marker: str):
    """The path of a marker of matplotlib's."""
    from matplotlib.markers import MarkerStyle

    style = MarkerStyle(marker)
    return style.get_path().transformed(style.get_transform())


def areas(points: list[Point]) -> Callable[[Point], float]:
    """The area of a point's marker by its memory; the same for all where a point has no figure of it."""
    sizes = [point.size for point in points]
    if None in sizes or min(sizes) == max(sizes):
        return lambda point: 40.0
    low, high = min(sizes), max(sizes)
    return lambda point: AREAS[0] + (AREAS[1] - AREAS[0]) * (point.size - low) / (high - low)


def paint_front(axes, points: list[Point], marks: Marks) -> None:
    on = front(points)
    if len(on) > 1:
        costs, scores = [point.cost for point in on], [point.score.mean for point in on]
        (line,) = axes.plot(costs, scores, color=INK, linewidth=1, alpha=0.55, drawstyle="steps-post", zorder=2)
        marks.add(line, "front")


def paint_lines(axes, lines: dict[str, Estimate], marks: Marks) -> None:
    for label, score in lines.items():
        line = axes.axhline(score.mean, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        marks.add(line, "control", f"{label}: {shown(score)}")


def paint_labels(figure, axes, points: list[Point], levels: dict[str, float], marks: Marks, family_of: dict) -> None:
    from matplotlib.transforms import Bbox

    area = areas(points)
    radii = {point: math.sqrt(area(point)) / 2 for point in points}
    taken = []
    for point, radius in radii.items():
        x, y = axes.transData.transform((point.cost, point.score.mean))
        taken.append(Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius))
    width, height = figure.bbox.size
    taken.append(Bbox.from_extents(axes.bbox.x0 - width, 0, axes.bbox.x0, height))  # of the axis
    taken.append(Bbox.from_extents(width, 0, 2 * width, height))  # beyond the figure
    on = front(points)
    corners = [axes.transData.transform((point.cost, point.score.mean)) for point in on]
    for (x, y), (next_x, next_y) in zip(corners, corners[1:], strict=False):
        taken += [Bbox.from_extents(x, y - 1, next_x, y + 1), Bbox.from_extents(next_x - 1, y, next_x + 1, next_y)]
    for label, score in levels.items():
        text = axes.text(0, score, label, transform=axes.get_yaxis_transform(), color=MUTED, va="bottom")
        if not place_text(figure, text, [((share, score), "left") for share in (0.01, 0.2, 0.4, 0.6, 0.8)], taken):
            taken.append(text.get_window_extent())
        marks.add(text, "control")
    named = sorted(points, key=lambda point: (not point.row.control, point not in on, -point.score.mean))
    for point in named[:MOST_LABELS]:
        at = point.cost, point.score.mean
        text = axes.annotate(point.row.label, at, (0, 0), textcoords="offset points", va="center")
        if place_text(figure, text, beside(radii[point] + 4), taken):
            marks.add(text, "label", method=point.row.label, family=family_of[point.row])
        else:
            text.remove()  # the pointer on the marker shows it


def beside(away: float) -> list[tuple[tuple[float, float], str]]:
    """Where a label may stand, in points from the middle of a marker, and how it is aligned there."""
    near = [((away, 0), "left"), ((-away, 0), "right"), ((0, away + 3), "center"), ((0, -away - 3), "center")]
    heights = (10, -10, 20, -20)
    far = [((away, y), "left") for y in heights] + [((-away, y), "right") for y in heights]
    return near + far


def paint_legend(figure, points: list[Point], family_of: dict[Row, str]) -> None:
    from matplotlib.lines import Line2D

    def dot(label: str, **more) -> Line2D:
        return Line2D([], [], label=label, linestyle="none", markersize=5.5, **more)

    shades = colours(family_of[point.row] for point in points if not point.row.control)
    handles = [dot(family, marker="o", color=colour) for family, colour in shades.items()]
    handles.append(dot("best or tied with it", marker="o", color=INK))
    handles.append(dot("told apart", marker="o", markerfacecolor="none", markeredgecolor=INK))
    handles.append(Line2D([], [], label="Pareto front", color=INK, linewidth=1, alpha=0.55))
    if any(point.row.control for point in points):
        handles.append(dot("full fine-tuning", marker="D", color=MUTED))
    lines = -(-len(handles) // MOST_IN_LINE)
    figure.legend(
        handles=handles, loc="lower center", ncols=-(-len(handles) // lines), handletextpad=0.4, columnspacing=1.2
    )
