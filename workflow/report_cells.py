"""The cells of a study as plain data for the browser: short columns of all of them, and the details of each."""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from workflow.index import NOT_FIGURES
from workflow.outcomes import Outcome, Place, Row, Study, count_mismatches
from workflow.table_columns import Figure
from workflow.table_costs import MEMORY, OPERATIONS, STEP, STORED, TIME, TRAIN_PEAK

DIGITS = 5  # significant digits of measured figures: tables show three
SCORE_DIGITS = 9
CURVE = 50  # points of a curve that are kept
WRONG, RIGHT = 3, 2  # examples that a sample of predictions shows, the first of each
LONGEST = 400  # characters of a text that a sample shows
MILLISECOND = 1e-3
FIGURES = {
    "trained": Figure("trained", "parameters", ("parameters", "trained", "peak"), combine=max),
    "stored": STORED,
    "added": Figure("added at inference", "parameters", ("parameters", "added_at_inference"), combine=max),
    "memory": TRAIN_PEAK,
    "inference_memory": MEMORY[3],
    "step": STEP,
    "train": TIME[0],
    "total": Figure("whole cell", "s", ("time", "total")),
    "bare": Figure("latency bare, batch 1", "ms", ("latency", "batch_1", "bare", "median"), MILLISECOND),
    "attached": Figure("latency attached, batch 1", "ms", ("latency", "batch_1", "attached", "median"), MILLISECOND),
    "merged": Figure("latency merged, batch 1", "ms", ("latency", "batch_1", "merged", "median"), MILLISECOND),
    "token": Figure("a token attached, batch 1", "ms", ("latency", "token_batch_1", "attached", "median"), MILLISECOND),
    "token_merged": Figure(
        "a token merged, batch 1", "ms", ("latency", "token_batch_1", "merged", "median"), MILLISECOND
    ),
    "flops": OPERATIONS[0],
    "energy": OPERATIONS[5],
}
COUNTS = {
    "backbone": ("backbone",),
    "trained": ("trained", "peak"),
    "mean": ("trained", "mean"),
    "final": ("trained", "final"),
    "stored": ("stored",),
    "stored_bytes": ("stored_bytes",),
    "added": ("added_at_inference",),
}
WHOLE = ("trained", "added")  # counts, kept to the last digit


class Shared(list):
    """Things that many cells have in common, each kept once; `at` gives a thing's index."""

    def __init__(self) -> None:
        super().__init__()
        self._index: dict[str, int] = {}

    def at(self, value: Any) -> int:
        text = json.dumps(value, sort_keys=True)
        if text not in self._index:
            self._index[text] = len(self)
            self.append(value)
        return self._index[text]


def listed(study: Study) -> list[tuple[Row, Place, Outcome]]:
    """Every cell in the order that the browser's data has."""
    return [(row, place, outcome) for (row, place), same in study.outcomes.items() for outcome in same]


def columns(study: Study, cells: list[tuple[Row, Place, Outcome]]) -> dict[str, Any]:
    """One list a column, as long as the cells; what repeats is an index into a list of `shared`.

    Scores and their standard errors are on the metric's own scale, figures in the units of FIGURES. A figure that no
    cell has is left out.
    """
    rows = {row: index for index, row in enumerate(study.rows)}
    places = {place: index for index, place in enumerate(study.places)}
    shared = {name: Shared() for name in ("status", "reason", "division", "source", "settings", "recipe")}
    found: dict[str, list] = {}

    def put(name: str, value: Any) -> None:
        found.setdefault(name, []).append(value)

    for row, place, outcome in cells:
        cell = outcome.cell
        put("row", rows[row])
        put("place", places[place])
        put("seed", cell.seed)
        put("key", cell.key)
        put("config", cell.config_key)
        put("status", shared["status"].at(outcome.status))
        put("reason", shared["reason"].at(outcome.reason))
        for name in ("division", "source", "settings", "recipe"):
            put(name, shared[name].at(getattr(cell, name)))
        for name, part in (("value", "value"), ("stderr", "stderr"), ("n", "n")):
            put(name, rounded(outcome.estimate(part=part), SCORE_DIGITS) if outcome.ok else None)
        for name, figure in FIGURES.items():
            put(name, shown_figure(outcome, name, figure))
    kept = {name: values for name, values in found.items() if name not in FIGURES or any(v is not None for v in values)}
    return kept | {"shared": shared}


def shown_figure(outcome: Outcome, name: str, figure: Figure) -> float | None:
    value = outcome.figure(*figure.path)
    if value is None or name in WHOLE:
        return value
    return rounded(value / figure.divisor, DIGITS)


def rounded(value: float | None, digits: int) -> float | int | None:
    """To so many significant digits; whole numbers as integers, what is not finite as None."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{digits}g}")
    return int(short) if short.is_integer() and abs(short) < 2**53 else short


def figures() -> dict[str, dict]:
    """How the columns of figures are shown: title, unit, and whether seeds are put together by median or maximum."""
    return {
        name: {"title": one.title, "unit": one.unit, "combine": one.combine.__name__} for name, one in FIGURES.items()
    }


def counts(study: Study, cells: list[tuple[Row, Place, Outcome]]) -> list[dict]:
    """The different counts of parameters of each row on each model, with the closed form's and where they disagree."""
    order = {row: index for index, row in enumerate(study.rows)}
    found: Counter = Counter()
    sentences = count_mismatches([outcome for _, _, outcome in cells])
    for (row, place, outcome), mismatched in zip(cells, sentences, strict=True):
        counted = [outcome.figure("parameters", *path) for path in COUNTS.values()]
        if any(count is not None for count in counted):
            closed = [expected(outcome, name) for name in ("trained", "stored", "added")]
            found[order[row], place.model, *counted, *closed, *mismatched] += 1
    names = ["row", "model", *COUNTS, *(f"expected_{name}" for name in ("trained", "stored", "added"))]
    return [
        tidy(dict(zip(names, one, strict=False)) | {"mismatch": one[len(names) :], "cells": number})
        for one, number in found.items()
    ]


def expected(outcome: Outcome, name: str) -> tuple | None:
    """The lowest and the highest count that the closed form allows."""
    ends = tuple(outcome.figure("parameters", "expected", name, end) for end in ("low", "high"))
    return None if None in ends else ends


# --- details, in parts that can be left out one by one ----------------------------------------------------------------


def figures_of(outcome: Outcome) -> dict:
    """Every figure of the result and where it was taken, in the result's own units."""
    return tidy({name: part for name, part in outcome.result.items() if name not in NOT_FIGURES})


def curves_of(outcome: Outcome) -> dict[str, dict]:
    """Each curve thinned evenly to CURVE points, the first and the last among them; `of` is how many there were."""
    curves = outcome.result.get("curves") or {}
    thin = {name: [points[index] for index in spread(len(points))] for name, points in curves.items() if points}
    return {
        name: {
            "of": len(curves[name]),
            "steps": [step for step, _ in points],
            "values": [rounded(value, DIGITS) for _, value in points],
        }
        for name, points in thin.items()
    }


def spread(length: int) -> list[int]:
    """At most CURVE indices below `length`, evenly apart, with both ends."""
    if length <= CURVE:
        return list(range(length))
    return [round(index * (length - 1) / (CURVE - 1)) for index in range(CURVE)]


class Predictions:
    """What is stored of a cell's test examples, at the checkpoint that counts; empty where nothing usable is."""

    def __init__(self, study: Study, place: Place, outcome: Outcome):
        self.facts = study.facts[place]
        self.table = self._read(study, outcome) if outcome.ok else None
        self.column = f"prediction_{outcome.rule}"

    @staticmethod
    def _read(study: Study, outcome: Outcome):
        from pyarrow import ArrowException, parquet

        path = (study.root / outcome.cell.path).with_suffix(".predictions.parquet")
        try:
            with path.open("rb") as file:
                table = parquet.ParquetFile(file).read(use_threads=False)
        except (OSError, ArrowException):
            return None
        return table if {"id", "reference", f"prediction_{outcome.rule}"} <= set(table.column_names) else None

    @property
    def scored(self) -> bool:
        """Whether an example is either right or wrong."""
        return self.table is not None and self.facts.kind != "regression"

    def right(self) -> dict:
        """A bit an example in the order of the ids, packed and as base64, and a digest of ids and right answers that
        says which examples they are: two cells are paired where it is the same. Of a test split with parts, those
        that the headline counts."""
        if not self.scored:
            return {}
        import numpy as np

        names = ["id", "reference", self.column, *(["part"] if "part" in self.table.column_names else [])]
        rows = {name: self.table.column(name).to_pylist() for name in names}
        counted = [index for index, part in enumerate(rows.get("part", rows["id"])) if self._counts(part)]
        counted.sort(key=lambda index: str(rows["id"][index]))
        ids = [str(rows["id"][index]) for index in counted]
        if len(set(ids)) < len(ids) or not ids:
            return {}
        references = [rows["reference"][index] for index in counted]
        bits = [reference == rows[self.column][index] for reference, index in zip(references, counted, strict=True)]
        return {
            "examples": f"{zlib.crc32(json.dumps([ids, references], default=str).encode()):08x}",
            "n": len(bits),
            "bits": base64.b64encode(np.packbits(bits).tobytes()).decode(),
        }

    def _counts(self, part: Any) -> bool:
        """Whether examples of a part are in the headline score."""
        if not self.facts.parts:
            return True
        return part == self.facts.headline if self.facts.headline != "mean" else part not in self.facts.contaminated

    def sample(self, inputs: Callable[[Any], dict[str, str]]) -> dict:
        """The first examples that are wrong and the first that are right, with classes by name and texts cut.

        inputs: the input of the example with an id, by column, as far as it is known.
        """
        if self.table is None:
            return {}
        names = [name for name in self.table.column_names if name not in ("prediction_selected", "prediction_last")]
        chosen = sorted(self._chosen())
        rows = self.table.select([*names, self.column]).take(chosen).to_pylist()
        return {"of": len(self.table), "rows": [self._example(row, inputs(row["id"])) for row in rows]}

    def _chosen(self) -> Iterator[int]:
        if not self.scored:
            yield from range(min(WRONG + RIGHT, len(self.table)))
            return
        left = {False: WRONG, True: RIGHT}
        pairs = zip(self.table.column("reference").to_pylist(), self.table.column(self.column).to_pylist(), strict=True)
        for index, (reference, predicted) in enumerate(pairs):
            if left[reference == predicted]:
                left[reference == predicted] -= 1
                yield index
            if not any(left.values()):
                return

    def _example(self, row: Mapping, inputs: dict[str, str]) -> dict:
        shown = {
            "id": row["id"],
            **{name: text for name, text in inputs.items() if name not in row},
            "reference": self._answer(row["reference"]),
            "prediction": self._answer(row[self.column]),
        }
        if self.scored:
            shown["right"] = row["reference"] == row[self.column]
        rest = {name: value for name, value in row.items() if name not in ("id", "reference", self.column)}
        scores = [rest.pop(f"score_{k}") for k in range(len(rest)) if f"score_{k}" in rest]
        if scores and self.facts.kind == "classification":
            shown["confidence"] = max(scores)
        return tidy({name: cut(value) for name, value in (shown | rest).items()})

    def _answer(self, value: Any) -> Any:
        """A class by its name."""
        labels = self.facts.labels
        return labels[value] if isinstance(value, int) and 0 <= value < len(labels) else value


def cut(value: Any) -> Any:
    return value[:LONGEST] + " …" if isinstance(value, str) and len(value) > LONGEST else value


def tidy(value: Any) -> Any:
    """The same with short figures; what is not finite becomes None."""
    kind = type(value)  # of documents as JSON has them; every figure of every cell passes here
    if kind is dict:
        return {name: tidy(item) for name, item in value.items()}
    if kind is float:
        return rounded(value, DIGITS + 1)
    return [tidy(item) for item in value] if kind is list or kind is tuple else value


def details(
    study: Study,
    cells: Iterable[tuple[Row, Place, Outcome]],
    parts: Iterable[str],
    inputs: Callable[[Outcome, Any], dict[str, str]],
) -> dict[str, list[dict]]:
    """The parts asked for (of `figures`, `right`, `curves` and `predictions`) of these cells.

    inputs: the texts of a cell's test example with an id, by column, as far as they are known.
    """
    found: dict[str, list[dict]] = {part: [] for part in parts}
    for _, place, outcome in cells:
        stored = Predictions(study, place, outcome) if {"right", "predictions"} & set(found) else None
        made = {
            "figures": lambda outcome=outcome: figures_of(outcome),
            "curves": lambda outcome=outcome: curves_of(outcome),
            "right": lambda stored=stored: stored.right(),
            "predictions": lambda stored=stored, outcome=outcome: stored.sample(partial(inputs, outcome)),
        }
        for part, values in found.items():
            values.append(made[part]())
    return found
