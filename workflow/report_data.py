"""What the report's pages need, embedded in its one file: a small document, the cells' columns, and details in blocks.

`#atlas-data` is plain JSON: what was run, the facts of methods, tasks and models, standings. `#atlas-cells` holds a
column of every cell's figures, and each `.atlas-block` one part of the details of BLOCK cells from `data-from` on; both
are JSON, deflated (raw) and in base64, and are read only when a page wants them.
"""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from workflow import report_cells, report_facts
from workflow.outcomes import CONTROLS, Outcome, Place, Row
from workflow.report_texts import Texts
from workflow.standing import BASELINES, Standing
from workflow.tables import Tables

STATIC = Path(__file__).parent.parent / "reports" / "static"
SCRIPTS = (
    "data.js",
    "statistics.js",
    "plots.js",
    "elements.js",
    "methods.js",
    "places.js",
    "cells.js",
    "compare.js",
    "pages.js",
)
BLOCK = 200  # cells whose details are read together
ROOM = 14_000_000  # bytes
LEAST = 100  # bytes a cell below which its details are not even tried
PARTS = {  # the last is the first to be left out
    "figures": "every figure of a cell and its provenance",
    "right": "which test examples each cell got right, for paired comparisons with one seed",
    "curves": "learning curves",
    "predictions": "samples of predictions",
}
SEEDS = 64  # seeds for which the t distribution is given, at least


class Block(NamedTuple):
    """A <script> that holds data: its text has no `<` and may stand in a page as it is."""

    id: str
    type: str
    attributes: dict[str, str]
    text: str

    @property
    def size(self) -> int:
        return len(self.text)


def embed(built: Tables, room: int = ROOM) -> Any:
    """The blocks as <script> elements, safe to put into the page."""
    from markupsafe import Markup

    element = Markup('<script id="{}" type="{}"{}>{}</script>')
    attribute = Markup(' {}="{}"')
    return Markup("\n").join(
        element.format(
            one.id,
            one.type,
            Markup("").join(attribute.format(*pair) for pair in one.attributes.items()),
            Markup(one.text),
        )
        for one in blocks(built, room)
    )


def script() -> str:
    """The scripts of the pages, in one scope of their own."""
    return "\n".join(["(() => {", '"use strict";', *((STATIC / name).read_text() for name in SCRIPTS), "})();"])


def blocks(built: Tables, room: int = ROOM) -> list[Block]:
    """All that the pages need in at most `room` bytes, if the cells' columns fit: of the details whole parts are left
    out until they do, in the order of PARTS from its end, and the document says which. The same study gives the same
    blocks."""
    study = built.study
    cells = report_cells.listed(study)
    columns = packed("atlas-cells", {}, report_cells.columns(study, cells))
    kept, lost = fitting(built, cells, room - columns.size)
    return [packed_plain("atlas-data", document(built, cells, lost)), columns, *kept]


def fitting(built: Tables, cells: list[tuple[Row, Place, Outcome]], room: int) -> tuple[list[Block], list[str]]:
    """The details that fit, and the parts that do not."""
    inputs = Texts(built.grid.data_root).of
    parts = list(PARTS) if room > LEAST * len(cells) else []
    made: dict[str, list[Block]] = {part: [] for part in parts}
    for start in range(0, len(cells), BLOCK):
        for part, values in report_cells.details(built.study, cells[start : start + BLOCK], parts, inputs).items():
            attributes = {"class": "atlas-block", "data-part": part, "data-from": str(start)}
            if any(values):
                made[part].append(packed(f"atlas-{part}-{start}", attributes, values))
    kept: list[Block] = []
    for part in parts:
        room -= sum(block.size for block in made[part])
        if room < 0:
            break
        kept += made[part]
    held = {block.attributes["data-part"] for block in kept}
    return kept, [part for part in PARTS if part not in parts or made[part] and part not in held]


def packed(id: str, attributes: dict[str, str], value: Any) -> Block:
    squeezer = zlib.compressobj(9, wbits=-15)
    squeezed = squeezer.compress(compact(value).encode()) + squeezer.flush()
    return Block(id, "text/plain", attributes, base64.b64encode(squeezed).decode())


def packed_plain(id: str, value: Any) -> Block:
    return Block(id, "application/json", {}, compact(value).replace("<", "\\u003c"))


def compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def document(built: Tables, cells: list[tuple[Row, Place, Outcome]], lost: list[str]) -> dict[str, Any]:
    """All but the cells. `t` has the 97.5 % point of Student's t for 1, 2, … degrees of freedom."""
    study, grid = built.study, built.grid
    tasks, models = report_facts.tasks(study), report_facts.models(study)
    at_task = {(task["suite"], task["task"]): index for index, task in enumerate(tasks)}
    at_model = {model["name"]: index for index, model in enumerate(models)}
    return {
        "grid": {"name": built.name, "title": built.title, "file": grid.path.as_posix(), "measure": grid.measure},
        "methods": report_facts.methods(study, grid),
        "tasks": tasks,
        "models": models,
        "places": [
            report_facts.place(study, place)
            | {"task": at_task[place.suite, place.task], "model": at_model[place.model]}
            for place in study.places
        ],
        "standings": standings(built),
        "counts": report_cells.counts(study, cells),
        "figures": report_cells.figures(),
        "controls": {"all": CONTROLS, "easy": BASELINES},
        "t": quantiles(max((len(same) for same in study.outcomes.values()), default=0)),
        "block": BLOCK,
        "cells": len(cells),
        "lost": {part: PARTS[part] for part in lost},
    }


def standings(built: Tables) -> list[list]:
    """[row, place, mean, half-width or null, seeds, whether best or tied, controls above]."""
    rows = {row: index for index, row in enumerate(built.study.rows)}
    places = {place: index for index, place in enumerate(built.study.places)}
    return [
        [rows[row], places[place], *shown(standing)]
        for place, ranked in built.ranked.items()
        for row, standing in ranked.items()
    ]


def shown(standing: Standing) -> list:
    score = standing.score
    numbers = [report_cells.rounded(value, 7) for value in (score.mean, score.half)]
    return [*numbers, score.seeds, standing.best, standing.below]


def quantiles(seeds: int) -> list[float]:
    from scipy.stats import t

    return [float(t.ppf(0.975, freedom)) for freedom in range(1, max(seeds, SEEDS))]
