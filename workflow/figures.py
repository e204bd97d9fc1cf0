"""Figures of the report as inline SVG that takes its colours and fonts from the page."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from workflow.outcomes import Place, Row, Study
from workflow.standing import BASELINES, Standing, metric_of

INK, ACCENT, MUTED = "#010203", "#040506", "#070809"  # replaced by the page's own colours
PAGE_COLOURS = {INK: "currentColor", ACCENT: "var(--accent)", MUTED: "var(--muted)"}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "atlas",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
LABEL_SIZE = 8
MOST_LABELS = 24  # methods with a name in the figure: controls, then the highest scores
BESIDE = [((8, 0), "left"), ((-8, 0), "right"), ((0, 10), "center"), ((0, -10), "center")]  # points from the marker
BESIDE += [((8, y), "left") for y in (10, -10, 20, -20)] + [((-8, y), "right") for y in (10, -10, 20, -20)]


@dataclass(frozen=True)
class Drawing:
    """An inline SVG with its caption and a text that says the same to who cannot see it."""

    svg: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Point:
    """A method in the figure: trained parameters (without head), score and its half-width."""

    label: str
    trained: float
    score: float
    half: float | None
    best: bool
    control: bool


def score_against_parameters(study: Study, place: Place, ranked: dict[Row, Standing], unit: str) -> Drawing | None:
    """Score with its interval against trained parameters on a log axis; easy controls are lines across, and chance
    is one where the axis reaches it."""
    points = [point for row, standing in ranked.items() if (point := point_of(study, place, row, standing))]
    if not points:
        return None
    lines = {row.label: standing.score.mean for row, standing in ranked.items() if row.method in BASELINES}
    chance = study.facts[place].chance
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 3.8), dpi=72, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for point in points:
            draw_point(axes, point)
        for score in lines.values():
            axes.axhline(score, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xscale("log")
        axes.margins(x=0.18, y=0.12)
        if chance is not None and inside(axes, level := chance * metric_of(study.metric(place)).scale):
            axes.axhline(level, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
            lines["chance"] = level
        axes.set_xlabel("trained parameters, head apart (log scale)")
        axes.set_ylabel(unit)
        axes.grid(axis="y", color=MUTED, alpha=0.25, linewidth=0.5)
        figure.canvas.draw()
        place_labels(figure, axes, points, lines)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    said = [f"{p.label} {p.score:.1f}{f' ± {p.half:.1f}' if p.half else ''} at {p.trained:,.0f}" for p in points]
    said += [f"{label} {score:.1f} (line)" for label, score in lines.items()]
    prefix = re.sub(r"\W+", "-", f"{place.suite}-{place.task}-{place.model}")
    alt = f"Score against trained parameters on {place.title}. {'; '.join(said)}."
    return Drawing(inline(svg.getvalue(), prefix, alt), place.title, alt)


def inside(axes, level: float) -> bool:
    low, high = axes.get_ylim()
    return low <= level <= high


def point_of(study: Study, place: Place, row: Row, standing: Standing) -> Point | None:
    """None for a row that trains nothing, or has no count: it has no place on a log axis."""
    counts = [outcome.figure("parameters", "trained", "peak") for outcome in study.at(row, place)]
    trained = max((count for count in counts if count), default=0)
    if not trained or row.method in BASELINES:
        return None
    score = standing.score
    return Point(row.label, trained, score.mean, score.half, standing.best, row.control)


def draw_point(axes, point: Point) -> None:
    colour = MUTED if point.control else ACCENT
    axes.errorbar(point.trained, point.score, yerr=point.half, fmt="none", ecolor=colour, elinewidth=1, capsize=2)
    axes.plot(
        point.trained,
        point.score,
        marker="D" if point.control else "o",
        markersize=6,
        markeredgecolor=colour,
        markerfacecolor=colour if point.best or point.control else "none",
        linestyle="none",
    )


def place_labels(figure, axes, points: list[Point], lines: dict[str, float]) -> None:
    """Put each label beside its point or on its line, at the first position where it covers nothing."""
    from matplotlib.transforms import Bbox

    centres = [axes.transData.transform((point.trained, point.score)) for point in points]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in centres]
    for label, score in lines.items():
        text = axes.text(0, score, label, transform=axes.get_yaxis_transform(), color=MUTED, va="bottom")
        taken.append(place(figure, text, [((share, score), "left") for share in (0, 0.2, 0.4, 0.6, 0.8)], taken))
    for point in sorted(points, key=lambda point: (not point.control, -point.score))[:MOST_LABELS]:
        text = axes.annotate(point.label, (point.trained, point.score), (0, 0), textcoords="offset points", va="center")
        taken.append(place(figure, text, BESIDE, taken))


def place(figure, text, positions: list, taken: list):
    """Move the text to the first of its (position, alignment) pairs that is free, else the last; returns its box."""
    text.set_fontsize(LABEL_SIZE)
    for position, alignment in positions:
        text.set_position(position)
        text.set_horizontalalignment(alignment)
        box = text.get_window_extent(figure.canvas.get_renderer())
        if not any(box.overlaps(other) for other in taken):
            break
    return box


def inline(svg: str, prefix: str, alt: str) -> str:
    """The <svg> element alone, with ids of its own, the page's colours, and a label for screen readers."""
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    for sentinel, colour in PAGE_COLOURS.items():
        svg = svg.replace(sentinel, colour)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
