"""Grids of any size, and made-up result files for them: a real result with its figures varied from a seed."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.workflow import projects
from workflow import registry
from workflow.cells import Cell
from workflow.grid import Grid, load

REAL = "results/reference/glue_small/cells/glue/sst2/minilm-l6"
VARIED = ("metrics", "memory", "time", "latency", "curves")
TEXT = """
title: {cells:,} made-up cells
tasks: {{glue: [sst2, qnli, rte, mrpc]}}
models: [minilm-l6, tiny-bert, tiny-roberta, bert-base, roberta-base]
methods:
  - head
  - full
  - {{method: lora, settings: {{rank: {{grid: {ranks}}}}}}}
seeds: [0, 1, 2, 3, 4]
"""
ROW = 4 * 5 * 5  # cells of one configuration: tasks, models, seeds


def grid(folder: Path, cells: int) -> Grid:
    """A grid of about so many cells (a multiple of 100, 300 at least): controls, and LoRA at many ranks."""
    ranks = list(range(1, max(1, cells // ROW - 2) + 1))
    return load(projects.write(folder, "grid.yaml", TEXT.format(cells=cells, ranks=ranks)))


def real() -> dict:
    """A result of a real run."""
    paths = sorted((registry.ROOT / REAL).glob("lora-*/seed0.json"))
    return json.loads(paths[0].read_bytes())


def store(root: Path, cells: tuple[Cell, ...], failing: int = 50) -> None:
    """A result file for every cell below `root`; one in `failing` is out of memory."""
    of, random_ = real(), random.Random(0)
    for position, cell in enumerate(cells):
        path = root / cell.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(made(of, cell, random_, "oom" if position % failing == failing - 1 else "ok")))


def made(of: dict, cell: Cell, random_: random.Random, status: str = "ok") -> dict:
    """The result of a cell with the figures of another one, varied."""
    found = of | {"key": cell.key, "cell": cell.to_json(), "status": status}
    if status != "ok":
        return {name: part for name, part in found.items() if name not in VARIED} | {"reason": "out of memory"}
    found |= {name: varied(of[name], random_.gauss(1, 0.05)) for name in VARIED if name in of}
    trained = cell.settings.get("rank", 1) * 9216
    counts = {name: trained for name in ("attached", "after_optimizer", "peak", "mean", "final")}
    found["parameters"] = of["parameters"] | {"trained": counts, "stored": trained, "stored_bytes": 4 * trained}
    found["parameters"]["expected"] = {"trained": trained, "stored": trained, "added": 0}
    return found


def varied(part: object, factor: float) -> object:
    """Every measured number times a factor; whole numbers (steps, counts, bytes of a phase) stay whole."""
    if isinstance(part, dict):
        return {name: varied(value, factor) for name, value in part.items()}
    if isinstance(part, list):
        return [varied(value, factor) for value in part]
    if isinstance(part, float):
        return abs(part * factor)
    return int(part * factor) if isinstance(part, int) and part > 1 << 20 else part
