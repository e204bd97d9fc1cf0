"""The report of a grid: one HTML file that needs nothing else, for a browser or for print."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import distribution
from itertools import groupby
from pathlib import Path
from typing import Any

from workflow import products, published, quality, registry, report_data, report_files, report_links, tables
from workflow.figure_costs import cost_breakdowns
from workflow.figure_curves import learning_curves
from workflow.figure_scores import Arena, arenas, scores_against_costs, shown
from workflow.figure_sizes import size_ladders
from workflow.figure_tasks import heat_maps, rank_plots
from workflow.figures import Gallery
from workflow.outcomes import Outcome, Row, Study
from workflow.typeset import Block, Table, sections

REPORTS = Path(__file__).parent.parent / "reports"
MACHINE = ("host", "platform", "cpu", "threads", "device", "driver")
MOST = 18_000_000  # bytes of the whole page
MOST_ENTRIES = 6_000  # entries of one table that are put into the page
MOST_ANSWERS = 6  # places whose best methods the top of the page names
MOST_TIED = 12  # methods that it names as tied with the best of one
SCRIPTS = ("report.js", "tables.js", "figures.js")
STYLES = ("report.css", "pages.css")


@dataclass(frozen=True)
class Fact:
    """Something the results were made with: its name and its distinct values, most frequent first."""

    name: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Facets:
    """What a row of the tables can be chosen by."""

    family: str
    divisions: tuple[str, ...]
    statuses: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """Who is best at a place, or over the tasks of a suite: (label, score in words), best first."""

    title: str
    best: tuple[str, str]
    tied: tuple[tuple[str, str], ...]
    full: str


def build(grid: Any, root: Path = Path(".")) -> Path:
    """Write results/<grid>/report/index.html below `root` and return its path."""
    root = Path(root)
    path = root / "results" / grid.name / "report" / "index.html"
    tables.write_bytes(path, render(tables.build(grid, root)).encode())
    return path


def render(built: tables.Tables) -> str:
    """The page. The same results give the same bytes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(REPORTS / "templates"),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"sections": sections, "sortable": sortable}
    environment.globals["link"] = report_links
    page = Page(built)
    scripts = page_scripts()
    text = environment.get_template("report.html").render(
        built=built,
        page=page,
        most={"answers": MOST_ANSWERS, "tied": MOST_TIED},
        comparisons=published.comparisons(built.study),
        meaning=quality.MEANING,
        policy=policy(scripts),
        scripts=scripts,
        style="\n".join((REPORTS / "static" / name).read_text() for name in STYLES),
    )
    head, end, tail = text.rpartition("</body>")
    return f"{head}{report_data.embed(built, MOST - len(text.encode()))}\n{end}{tail}"


@dataclass(frozen=True)
class Page:
    """What the templates ask for beyond the tables themselves."""

    built: tables.Tables

    @property
    def study(self) -> Study:
        return self.built.study

    @cached_property
    def facets(self) -> dict[str, Facets]:
        """By the label of a row."""
        cells: dict[Row, list[Outcome]] = {row: [] for row in self.study.rows}
        for (row, _), outcomes in self.study.outcomes.items():
            cells[row] += outcomes
        return {
            row.label: Facets(
                self.families[row],
                tuple(dict.fromkeys(outcome.cell.division for outcome in found)),
                tuple(dict.fromkeys(outcome.status for outcome in found)) or ("broken",),
            )
            for row, found in cells.items()
        }

    @cached_property
    def families(self) -> dict[Row, str]:
        """The family of the method of every row."""
        known = registry.methods(self.built.grid.plugins)
        found = {row: known[row.method].family if row.method in known else "" for row in self.study.rows}
        return {row: "control" if row.control else family or "unknown" for row, family in found.items()}

    @cached_property
    def choices(self) -> dict[str, tuple[str, ...]]:
        """What the tables can be filtered by, where there is more than one of it."""
        facets = self.facets.values()
        found = {
            "family": sorted({facet.family for facet in facets}),
            "suite": list(dict.fromkeys(place.suite for place in self.study.places)),
            "model": list(dict.fromkeys(place.model for place in self.study.places)),
            "division": sorted({division for facet in facets for division in facet.divisions}),
            "status": sorted({status for facet in facets for status in facet.statuses}),
        }
        return {name: tuple(values) for name, values in found.items() if len(values) > 1}

    @cached_property
    def galleries(self) -> dict[str, Gallery]:
        study, ranked, families = self.study, self.built.ranked, self.families
        found = (
            scores_against_costs(study, ranked, families),
            heat_maps(study, ranked),
            rank_plots(study, ranked),
            learning_curves(study, families),
            size_ladders(study, ranked, families),
            cost_breakdowns(study, families),
        )
        return {gallery.name: gallery for gallery in found}

    @cached_property
    def files(self) -> dict[str, list[report_files.File]]:
        """The tables as files, by the table's name, as far as there is room for them."""
        return report_files.embedded(self.built)

    @cached_property
    def counts(self) -> Counter:
        return Counter(outcome.status for outcome in self.study.all())

    @cached_property
    def findings(self) -> list[tuple[str, list[quality.Finding]]]:
        found = quality.findings(self.study, self.built.ranked)
        return [(kind, list(same)) for kind, same in groupby(found, key=lambda finding: finding.kind)]

    @property
    def headline(self) -> list[Fact]:
        return headline(self.study)

    @property
    def provenance(self) -> list[tuple[str, list[Fact]]]:
        return provenance(self.study)

    @property
    def answers(self) -> list[Answer]:
        """Of each suite and model the mean over its tasks, where there is one, else its tasks."""
        found, told = [], set()
        for arena in arenas(self.study, self.built.ranked):
            if told.issuperset(arena.places):
                continue
            told.update(arena.places)
            if answer := answered(arena):
                found.append(answer)
        return found

    def run(self) -> str:
        """What was run, in one line."""
        study = self.study
        methods = [row for row in study.rows if not row.control]
        controls = len(study.rows) - len(methods)
        tasks = {(place.suite, place.task) for place in study.places}
        models = {place.model for place in study.places}
        seeds = {len(outcomes) for outcomes in study.outcomes.values()}
        parts = [counted(len(methods), "method") + (f" and {counted(controls, 'control')}" if controls else "")]
        parts += [counted(len(tasks), "task"), counted(len(models), "model")]
        if seeds:
            low, high = min(seeds), max(seeds)
            parts.append(counted(high, "seed") if low == high else f"{low} to {high} seeds")
        return " × ".join(parts)

    def shown(self, table: Table) -> tuple[list[Block], list[Block]]:
        """The blocks of a table that are in the page, and those there is no room for."""
        inside, left, entries = [], [], 0
        for block in table.blocks():
            entries += len(block.rows) * len(block.columns)
            (inside if not inside or entries <= MOST_ENTRIES else left).append(block)
        return inside, left

    def without_figures(self, table: Table, block: Block) -> bool:
        """Whether a block of a table of costs holds nothing but reasons why there is nothing."""
        costs = table.name in products.COSTS
        return costs and all(entry.value is None for row in block.rows for entry in row.entries)

    def facet_lists(self, block: Block) -> dict[str, str]:
        """The suites and models of a block of a table, as JSON."""
        places = [place for group in block.groups for place in self.by_group.get(group, ())]
        return {
            name: json.dumps(list(dict.fromkeys(getattr(place, name) for place in places)))
            for name in ("suite", "model")
        }

    @cached_property
    def by_group(self) -> dict[str, tuple]:
        """The places that a group of columns was taken on: one, or those of a suite and model."""
        found = {place.title: (place,) for place in self.study.places}
        return found | {places[0].family: places for places in self.study.families()}

    def place_of(self, group: str) -> Any:
        """The one place of a group of columns, else None."""
        places = self.by_group.get(group, ())
        return places[0] if len(places) == 1 and group == places[0].title else None


def answered(arena: Arena) -> Answer | None:
    """None where no method that is not a control has a score."""
    methods = {row: one for row, one in arena.standings.items() if not row.control}
    if not methods:
        return None
    lower = next(iter(methods.values())).score.metric.lower
    ordered = sorted(methods.items(), key=lambda item: item[1].score.mean, reverse=not lower)
    (first, best), *others = ordered
    tied = tuple((row.label, shown(one.score)) for row, one in others if one.best)
    full = next((one.score for row, one in arena.standings.items() if row.method == "full"), None)
    return Answer(arena.title, (first.label, shown(best.score)), tied, shown(full) if full else "")


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sortable(value: float | None) -> str:
    """A figure as tables sort by it; '' sorts last."""
    return "" if value is None else f"{value:.6g}"


# --- scripts ----------------------------------------------------------------------------------------------------------


def page_scripts() -> list[str]:
    """The page's scripts in their order: DataTables, then the project's own."""
    own = [(REPORTS / "static" / name).read_text() for name in SCRIPTS]
    return [data_tables(), *own, report_data.script()]


def data_tables() -> str:
    """DataTables with its extensions, from the bundle that the package itables carries: a module that gives the page
    `DataTable` instead of exporting it."""
    path = Path(str(distribution("itables").locate_file("itables/html/dt_bundle.js")))
    text = path.read_text()
    exported = re.search(r"export\s*\{([^}]*)\}\s*;", text)
    names = dict(reversed(pair.split(" as ")) for pair in exported[1].split(","))
    text = text.replace(exported[0], f"globalThis.DataTable = {names['default']};")
    return text.replace("<!--", r"\x3C!--").replace("<script", r"\x3Cscript")  # in strings: a page reads them otherwise


def policy(scripts: Iterable[str]) -> str:
    """The page's Content-Security-Policy: it may fetch nothing, and runs no script but these."""
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(seen(one)).digest()).decode()}'" for one in scripts)
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def seen(script: str) -> bytes:
    """A script as a browser reads it from its element."""
    return script.replace("\r\n", "\n").replace("\r", "\n").encode()


# --- provenance -------------------------------------------------------------------------------------------------------


def headline(study: Study) -> list[Fact]:
    """What the top of the page says: when, where and from which commit the results came."""
    times = sorted(time for name in ("started", "finished") for time in values_of(study, name))
    ran = [Fact("ran", (f"{times[0]} to {times[-1]}",))] if times else []
    commits = Fact("commit", distinct(commit(outcome, 10) for outcome in study.all()))
    return ran + [fact for fact in (commits, recorded(study, "host"), recorded(study, "device")) if fact.values]


def provenance(study: Study) -> list[tuple[str, list[Fact]]]:
    """Distinct values of everything the results were made with, by chapter."""
    beginning = "provenance.packages."
    packages = [name.removeprefix(beginning) for name in study.names(beginning)]
    software = [recorded(study, "python"), *(recorded(study, "packages", name) for name in packages)]
    code = [Fact("git commit", distinct(commit(outcome) for outcome in study.all()))]
    chapters = [
        ("Machines", [*(recorded(study, name) for name in MACHINE), recorded(study, "scheduler")]),
        ("Code", code),
        ("Software", software),
        ("Data", fingerprints(study, "data")),
        ("Models", fingerprints(study, "model")),
    ]
    kept = [(title, [fact for fact in facts if fact.values]) for title, facts in chapters]
    return [(title, facts) for title, facts in kept if facts]


def values_of(study: Study, *path: str) -> list:
    return [value for outcome in study.all() if (value := outcome.value("provenance", *path)) is not None]


def recorded(study: Study, *path: str) -> Fact:
    return Fact(path[-1], distinct(values_of(study, *path)))


def distinct(values: Iterable) -> tuple[str, ...]:
    """The different values as text, most frequent first, with their number of cells where there are several."""
    counts = Counter(str(value) for value in values if value is not None)
    if len(counts) <= 1:
        return tuple(counts)
    return tuple(
        f"{value} ({counted(count, 'cell')})"
        for value, count in sorted(counts.items(), key=lambda item: (-item[1], item))
    )


def commit(outcome: Outcome, digits: int | None = None) -> str | None:
    """The commit of a cell, its first digits if they are asked for; None where none is recorded."""
    found = outcome.value("provenance", "git", "commit")
    if found is None:
        return None
    return f"{str(found)[:digits]}{', with uncommitted changes' if outcome.value('provenance', 'git', 'dirty') else ''}"


def fingerprints(study: Study, kind: str) -> list[Fact]:
    """Fingerprint and source of each data set or model the cells read."""
    found: dict[str, list[str]] = {}
    for outcome in study.all():
        fingerprint, source = (outcome.value("provenance", kind, name) for name in ("fingerprint", "source"))
        cell = outcome.cell
        name = cell.model if kind == "model" else f"{cell.suite}/{cell.task}"
        if fingerprint is not None or source is not None:
            found.setdefault(name, []).append(f"{fingerprint or 'unknown'} from {source or '?'}")
    return [Fact(name, distinct(values)) for name, values in found.items()]
