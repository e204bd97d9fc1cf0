"""The report of a grid: one HTML file that needs nothing else, for a browser or for print."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from workflow import quality, tables
from workflow.figures import Drawing, score_against_parameters
from workflow.outcomes import Study
from workflow.table_costs import results_with
from workflow.table_scores import unit_of
from workflow.typeset import sections

REPORTS = Path(__file__).parent.parent / "reports"
MACHINE = ("host", "platform", "cpu", "threads", "device", "driver")


@dataclass(frozen=True)
class Fact:
    """Something the results were made with: its name and its distinct values, most frequent first."""

    name: str
    values: tuple[str, ...]


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
    environment.filters["sections"] = sections
    found = quality.findings(built.study, built.ranked)
    return environment.get_template("report.html").render(
        built=built,
        drawings=drawings(built),
        counts=Counter(outcome.status for outcome in built.study.all()),
        findings=[(kind, list(same)) for kind, same in groupby(found, key=lambda finding: finding.kind)],
        meaning=quality.MEANING,
        headline=headline(built.study),
        provenance=provenance(built.study),
        style=(REPORTS / "static" / "report.css").read_text(),
        script=(REPORTS / "static" / "report.js").read_text(),
    )


def drawings(built: tables.Tables) -> list[Drawing]:
    drawn = (
        score_against_parameters(built.study, place, ranked, unit_of(built.study, place))
        for place, ranked in built.ranked.items()
    )
    return [drawing for drawing in drawn if drawing]


def headline(study: Study) -> list[Fact]:
    """What the top of the page says: when, where and from which commit the results came."""
    records = provenances(study)
    times = sorted(record[name] for record in records for name in ("started", "finished") if name in record)
    ran = [Fact("ran", (f"{times[0]} to {times[-1]}",))] if times else []
    commits = Fact("commit", distinct(short_commit(record["git"]) for record in records if "git" in record))
    return ran + [fact for fact in (commits, recorded("host", records), recorded("device", records)) if fact.values]


def provenance(study: Study) -> list[tuple[str, list[Fact]]]:
    """Distinct values of everything the results were made with, by chapter."""
    records = provenances(study)
    names = sorted({name for record in records for name in record.get("packages", {})})
    software = [recorded("python", records)]
    software += [Fact(name, distinct(record.get("packages", {}).get(name) for record in records)) for name in names]
    code = [Fact("git commit", distinct(commit(record["git"]) for record in records if "git" in record))]
    scheduler = Fact("scheduler", distinct(record["scheduler"] for record in records if "scheduler" in record))
    chapters = [
        ("Machines", [*(recorded(name, records) for name in MACHINE), scheduler]),
        ("Code", code),
        ("Software", software),
        ("Data", fingerprints(study, "data")),
        ("Models", fingerprints(study, "model")),
    ]
    kept = [(title, [fact for fact in facts if fact.values]) for title, facts in chapters]
    return [(title, facts) for title, facts in kept if facts]


def provenances(study: Study) -> list[dict]:
    return [result["provenance"] for result in results_with(study, "provenance")]


def recorded(name: str, records: list[dict]) -> Fact:
    return Fact(name, distinct(record.get(name) for record in records))


def distinct(values: Iterable) -> tuple[str, ...]:
    """The different values as text, most frequent first, with their number of cells where there are several."""
    counts = Counter(str(value) for value in values if value is not None)
    if len(counts) <= 1:
        return tuple(counts)
    return tuple(
        f"{value} ({count} cells)" for value, count in sorted(counts.items(), key=lambda item: (-item[1], item))
    )


def commit(git: dict) -> str:
    return f"{git.get('commit', 'unknown')}{', with uncommitted changes' if git.get('dirty') else ''}"


def short_commit(git: dict) -> str:
    return f"{str(git.get('commit', 'unknown'))[:10]}{', with uncommitted changes' if git.get('dirty') else ''}"


def fingerprints(study: Study, kind: str) -> list[Fact]:
    """Fingerprint and source of each data set or model the cells read."""
    found: dict[str, list[str]] = {}
    for outcome in study.all():
        record = outcome.result.get("provenance", {}).get(kind, {})
        cell = outcome.cell
        name = cell.model if kind == "model" else f"{cell.suite}/{cell.task}"
        if record:
            found.setdefault(name, []).append(
                f"{record.get('fingerprint', 'unknown')} from {record.get('source', '?')}"
            )
    return [Fact(name, distinct(values)) for name, values in found.items()]
