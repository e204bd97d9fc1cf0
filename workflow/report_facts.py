"""What the report's pages say of each method, task and model, as plain data for the browser."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from workflow import registry, verdicts
from workflow.outcomes import Place, Row, Study
from workflow.registry import MethodInfo
from workflow.source import Unknown
from workflow.standing import PER_EXAMPLE, metric_of
from workflow.table_scores import checkpoint, cut_test, test_sizes

ARXIV = re.compile(r"\d{4}\.\d{4,5}(v\d+)?|[a-z-]+(\.[A-Z]{2})?/\d{7}")
OPENREVIEW = re.compile(r"openreview:([\w-]+)")
MODEL = ("name", "title", "family", "kind", "architecture", "parameters", "source", "location", "revision", "licence")


def methods(study: Study, grid: Any) -> list[dict]:
    """Facts of every row of the tables, in their order."""
    known = registry.methods(grid.plugins)
    found = [(row, known.get(row.method)) for row in study.rows]
    return [method(row, info) | ({"conformance": conformance(info, study.root)} if info else {}) for row, info in found]


def conformance(info: MethodInfo, root: Path) -> dict | None:
    """What the checks last said of a plugin, and what has changed since; None where they have not run in this copy."""
    verdict = verdicts.read(info.name, root)
    if verdict is None:
        return None
    facts = {name: getattr(verdict, name) for name in ("date", "passed", "skipped", "failed")}
    return facts | {"outdated": verdicts.outdated(verdict, info)}


def method(row: Row, info: MethodInfo | None) -> dict:
    """A row's plugin: metadata, docstring, settings with default and annotation. Only its names where there is none."""
    facts = {"label": row.label, "method": row.method, "control": row.control, "error": row.error}
    if info is None:
        return facts
    return facts | {
        "family": info.family,
        "title": info.title,
        "paper": paper(info.paper),
        "url": paper_url(info.paper),
        "doc": info.doc,
        "kinds": info.kinds,
        "mergeable": info.mergeable,
        "identity": info.identity_at_init,
        "requires": info.requires,
        "file": shown_path(info.path),
        "settings": {name: (default(one.default), one.annotation) for name, one in info.settings.items()},
    }


def shown_path(path) -> str:
    """Relative to the project where it lies there."""
    return path.relative_to(registry.ROOT).as_posix() if path.is_relative_to(registry.ROOT) else path.as_posix()


def default(value: object) -> str:
    """As JSON, like the settings of cells; in words where the source does not tell."""
    return value.value if isinstance(value, Unknown) else json.dumps(value, default=repr)


def paper(identifier: str) -> str:
    return f"arXiv:{identifier}" if ARXIV.fullmatch(identifier) else identifier


def paper_url(identifier: str) -> str | None:
    """The paper's page, where the identifier is one of arXiv or OpenReview: nothing else becomes a link."""
    if ARXIV.fullmatch(identifier):
        return f"https://arxiv.org/abs/{identifier}"
    if found := OPENREVIEW.fullmatch(identifier):
        return f"https://openreview.net/forum?id={found[1]}"
    return None


def tasks(study: Study) -> list[dict]:
    """Facts of every task and, for each resolved protocol that its places have, the protocol with what it says."""
    suites = registry.suites()
    places: dict[tuple[str, str], list[Place]] = {}
    for place in study.places:
        places.setdefault((place.suite, place.task), []).append(place)
    return [task(study, suites[suite], same) for (suite, _), same in places.items()]


def task(study: Study, suite: Any, places: list[Place]) -> dict:
    place, facts = places[0], study.facts[places[0]]
    protocols = {str(study.protocols[at]): study.protocols[at] for at in places}
    return {
        "suite": place.suite,
        "task": place.task,
        "suite_title": suite.title,
        "tag": place.tag.strip(" ()"),
        "facts": asdict(facts),
        "protocols": [protocol(suite, resolved) for resolved in protocols.values()],
    }


def protocol(suite: Any, resolved: Mapping) -> dict:
    text = next((one.text for one in suite.protocols if one.name == resolved.get("name")), "")
    return {"resolved": dict(resolved), "text": text.strip()}


def models(study: Study) -> list[dict]:
    """Facts of every model, of one that the models of this copy do not have its name alone."""
    entries = registry.models()
    return [model(name, entries.get(name)) for name in dict.fromkeys(place.model for place in study.places)]


def model(name: str, entry: Any) -> dict:
    return {"name": name} if entry is None else {field: getattr(entry, field) for field in MODEL}


def place(study: Study, at: Place) -> dict:
    """How scores at a place are shown and what they hold for; `share`: a score is the share of right test examples."""
    metric, facts = study.metric(at), study.facts[at]
    shown = metric_of(metric)
    return {
        "title": at.title,
        "metric": metric,
        "unit": shown.unit,
        "scale": shown.scale,
        "decimals": shown.decimals,
        "lower": shown.lower,
        "scored": not at.cost_only,
        "share": metric in PER_EXAMPLE and not (facts.parts and facts.headline == "mean"),
        "checkpoint": checkpoint(study, at),
        "test": test_sizes(study, at),
        "cut": cut_test(study, at),
    }
