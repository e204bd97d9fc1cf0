"""A study with made-up results that has one of everything, and strings that would run if a page believed them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from tests.workflow.studies import PROVENANCE, failed, result, store
from workflow import registry, verdicts
from workflow import report_links as links
from workflow.cells import Cell
from workflow.grid import Grid, load

EVIL = {
    name: f"{name} \"'></script></title></textarea><script>ran('{name}')</script><img src=x onerror=ran('{name}')>"
    for name in ("title", "label", "source", "reason", "prediction", "host", "package")
}
HOSTILE = "vera"  # the method whose row has the hostile label
METHODS = {"head": 0.74, "full": 0.93, "lora": 0.91, "houlsby": 0.90, "ia3": 0.88, "bitfit": 0.72, HOSTILE: 0.89}
TRAINED = {"head": 0, "full": 100_000, "lora": 1_000, "houlsby": 4_000, "ia3": 150, "bitfit": 300, HOSTILE: 77}
HARDER = {"sst2": 0.0, "mrpc": 0.1, "rte": 0.2}  # by how much the accuracies above are lower
SEEDS = {"lora": (0.912, 0.921, 0.905), "houlsby": (0.899, 0.914, 0.893)}  # accuracies on SST-2
CHECKED = {"lora": [], "bitfit": [], "ia3": ["3.1 count: expected 2, found 1", "8.1 merge: " + EVIL["reason"]]}
PAIRED = {"both": 300, "lora": 31, "houlsby": 12, "neither": 57}  # who is right on how many examples of RTE
GRID = {
    "title": EVIL["title"],
    "tasks": {"glue": list(HARDER)},
    "models": ["minilm-l6"],
    "methods": [
        *("head", "full", "ia3", "bitfit"),
        *({"method": name, "tasks": ["glue/sst2"], "seeds": [0, 1, 2]} for name in SEEDS),
        *({"method": name, "tasks": ["glue/rte", "glue/mrpc"]} for name in SEEDS),
        {"method": HOSTILE, "label": EVIL["label"], "source": EVIL["source"]},
    ],
}


def write(root: Path) -> Grid:
    """Store results below `root` and return their grid, which lies there too.

    SST-2 has three seeds of LoRA and Houlsby, RTE one seed with predictions, MRPC one seed without. Of the method with
    the hostile label, SST-2 is ok, RTE has run out of memory, and MRPC has not run. LoRA conforms, IA3 does not, the
    verdict on BitFit is of another file, and there is none on the others.
    """
    path = root / "config" / "study.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(GRID))
    grid = load(path)
    for cell in grid.cells:
        if cell.method != HOSTILE:
            store(root, result(cell, accuracy(cell), trained=TRAINED[cell.method], curves=curves(accuracy(cell))))
    hostile, lost = of(grid, HOSTILE, "sst2"), of(grid, HOSTILE, "rte")
    store(root, result(hostile, accuracy(hostile), trained=TRAINED[HOSTILE], provenance=provenance()))
    store(root, failed(lost, "oom", EVIL["reason"]))
    predict(root, hostile, np.ones(3, bool), EVIL["prediction"])
    for method, right in answers().items():
        predict(root, of(grid, method, "rte"), right)
    for method, broken in CHECKED.items():
        verdicts.write(verdicts.made(registry.methods()[method], 21 - len(broken), 2, broken), root)
    old = verdicts.read("bitfit", root)
    verdicts.write(replace(old, file=old.checks), root)
    return grid


def of(grid: Grid, method: str, task: str, seed: int = 0) -> Cell:
    return next(cell for cell in grid.cells if (cell.method, cell.task, cell.seed) == (method, task, seed))


def accuracy(cell: Cell) -> float:
    if cell.task == "sst2" and cell.method in SEEDS:
        return SEEDS[cell.method][cell.seed]
    return METHODS[cell.method] - HARDER[cell.task]


def curves(value: float) -> dict:
    return {"train_loss": [[step, 0.7 / step] for step in range(1, 31)], "validation": [[15, value - 0.1], [30, value]]}


def provenance() -> dict:
    packages = PROVENANCE["packages"] | {EVIL["package"]: EVIL["package"]}
    return PROVENANCE | {"host": EVIL["host"], "packages": packages}


def answers() -> dict[str, np.ndarray]:
    """Right or wrong on each example of RTE, so that two methods differ as PAIRED says."""
    groups = np.repeat(list(PAIRED), list(PAIRED.values()))
    return {method: np.isin(groups, ("both", method)) for method in ("lora", "houlsby")}


def predict(root: Path, cell: Cell, right: np.ndarray, text: str = "fine") -> None:
    """The file of predictions beside a result; the reference answer is always 1."""
    ids = [f"{text}-{i}" for i in range(len(right))]
    columns = {name: right.astype(int) for name in ("prediction_selected", "prediction_last")}
    frame = pd.DataFrame({"id": ids, "reference": 1, **columns, "text": text})
    frame.to_parquet((root / cell.path).with_suffix(".predictions.parquet"))


def pages(grid: Grid) -> list[str]:
    """A route of every kind of page, and every page with a hostile string."""
    rows = [links.method(label) for label in ("lora", "head", "ia3", EVIL["label"])]
    compared = [links.compare("lora", "houlsby"), links.compare("lora", EVIL["label"])]
    shown = [of(grid, "lora", "sst2"), *(of(grid, HOSTILE, task) for task in HARDER)]
    places = [links.task("glue", "sst2"), links.model("minilm-l6"), links.cells(), links.cells("oom")]
    return [*rows, *compared, *places, *(links.cell(cell.key) for cell in shown)]


def one_of_each(grid: Grid) -> list[str]:
    """A route of every kind of page."""
    return list({route.split("/")[1]: route for route in reversed(pages(grid))}.values())
