"""What the figures of the report share: SVG that takes its colours and fonts from the page, marks that its scripts
find, and galleries of drawings."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from typing import Any

INK, ACCENT, MUTED, PAGE = "#010203", "#040506", "#070809", "#0a0b0c"  # replaced by the page's own colours
SERIES = tuple(f"#0d0e{index:02x}" for index in range(10))
PAGE_COLOURS = {INK: "currentColor", ACCENT: "var(--accent)", MUTED: "var(--muted)", PAGE: "var(--page)"}
PAGE_COLOURS |= {colour: f"var(--c{index})" for index, colour in enumerate(SERIES)}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "atlas",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # a label with dollar signs is a label
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
    "axes.formatter.useoffset": False,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
LABEL_SIZE = 8


@dataclass(frozen=True)
class Drawing:
    """An inline SVG with its caption and a text that says the same to who cannot see it.

    name: of its file; place and view: what a gallery lets the reader choose it by.
    """

    name: str
    svg: str
    caption: str
    alt: str
    place: str = ""
    view: str = ""


@dataclass(frozen=True)
class Gallery:
    """Drawings of one kind. `notes` say how to read them; `why` stands in their place where there is none."""

    name: str
    title: str
    drawings: tuple[Drawing, ...]
    notes: tuple[str, ...] = ()
    why: str = ""

    @property
    def places(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(drawing.place for drawing in self.drawings))

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(drawing.view for drawing in self.drawings))


@dataclass
class Marks:
    """What scripts and tooltips know of a figure's artists: the part of the figure, a tip, and more attributes."""

    found: list[dict[str, str]] = field(default_factory=list)

    def add(self, artist: Any, part: str, tip: str = "", **data: str) -> None:
        """`data` become data-… attributes of the artist's element."""
        artist.set_gid(f"mark{len(self.found)}")
        self.found.append({"class": part, "tip": tip} | {f"data-{name}": value for name, value in data.items()})

    def opening(self, index: int) -> str:
        """The opening tag of an artist's element, and its tip, which a browser shows without scripts too."""
        attributes = dict(self.found[index])
        tip = attributes.pop("tip")
        shown = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
        return f"<g{shown}>" + (f"<title>{escape(tip)}</title>" if tip else "")


def drawn(
    paint: Callable[[Any, Marks], None],
    name: str,
    caption: str,
    alt: str,
    size: tuple[float, float] = (6.6, 4.2),
    place: str = "",
    view: str = "",
) -> Drawing:
    """What `paint(figure, marks)` puts on an empty figure of this size (in units of 72 pixels)."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    marks = Marks()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, dpi=72)
        FigureCanvasAgg(figure)
        paint(figure, marks)
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    name = slug(name)
    return Drawing(name, inline(svg.getvalue(), name, alt, marks), caption, alt, place, view)


def slug(text: str) -> str:
    return re.sub(r"\W+", "-", text).strip("-")


def inline(svg: str, prefix: str, alt: str, marks: Marks) -> str:
    """The <svg> element alone, with ids of its own, the page's colours, and a label for screen readers."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = re.sub(r'\b(?:d|x|y|transform)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    svg = re.sub(r'<g id="mark(\d+)">', lambda found: marks.opening(int(found[1])), svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'width="([\d.]+)pt" height="[\d.]+pt"', r'style="--width: \1px"', svg, count=1)
    svg = svg.replace("'DejaVu Sans'", "system-ui, sans-serif")
    for sentinel, colour in PAGE_COLOURS.items():
        svg = svg.replace(sentinel, colour)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name, in order; with more names than colours they begin again."""
    return {name: SERIES[index % len(SERIES)] for index, name in enumerate(dict.fromkeys(names))}


def log_axis(axis: Any, low: float, high: float) -> None:
    """Ticks of a log axis with plain numbers: 1, 2 and 5 of every decade, or even ones on less than half a decade."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    wide = high > 3 * low
    decades = high > 300 * low
    axis.set_major_locator(LogLocator(subs=(1,) if decades else (1, 2, 5)) if wide else MaxNLocator(5))
    axis.set_major_formatter(lambda value, _: short(value))
    axis.set_minor_locator(NullLocator())  # every tick costs time and bytes


def widen(axes: Any, least: float) -> None:
    """Let the vertical axis span at least so much: equal scores are no cliff."""
    low, high = axes.get_ylim()
    if high - low < least:
        axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)


def short(value: float) -> str:
    """1.5 M, 20 k, 3, 0.02: a number for a tick."""
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if value >= size:
            return f"{value / (1e3 if letter == ' k' else size):g}{letter}"
    return f"{value:,.10g}"


def place_text(figure: Any, text: Any, positions: list, taken: list) -> bool:
    """Move a text to the first of its (position, alignment) pairs where it covers nothing that is taken, and take its
    box; False where there is none: it stands at the last, and takes nothing."""
    text.set_fontsize(LABEL_SIZE)
    renderer = figure.canvas.get_renderer()
    for position, alignment in positions:
        text.set_position(position)
        text.set_horizontalalignment(alignment)
        box = text.get_window_extent(renderer)
        if not any(box.overlaps(other) for other in taken):
            taken.append(box)
            return True
    return False
