"""Demo suite: sentence tasks made by code from a seed, so that a study runs offline. Not a benchmark of anything.

`acceptability` stands in for CoLA and `entailment` for RTE; numbers on them say only that the harness works and that
methods differ. Test sentences use combinations of subject and verb that train does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks._demo_glue import acceptability, entailment
from tasks._draw import Draw, generated
from tasks.base import Option, Protocol, Split, Suite, TaskData, TaskInfo

_task = partial(TaskInfo, "demo_glue", kind="classification", modality="text", max_length=48, demo=True)
TASKS = (
    _task(
        "acceptability",
        fields=("sentence",),
        labels=acceptability.LABELS,
        metrics=("matthews", "accuracy"),
        primary="matthews",
        title="Acceptability (demo)",
        chance=0.0,
    ),
    _task(
        "entailment",
        fields=("premise", "hypothesis"),
        labels=entailment.LABELS,
        metrics=("accuracy",),
        primary="accuracy",
        title="Entailment (demo)",
        chance=0.5,
    ),
)
# task -> example(draw, positive, test): a text whose label is the positive one (its id, or the other) or not
GENERATORS: dict[str, tuple[Callable[[Draw, bool, bool], tuple[str, ...]], int]] = {
    "acceptability": (acceptability.example, acceptability.LABELS.index("acceptable")),
    "entailment": (entailment.example, entailment.LABELS.index("entailment")),
}


class DemoGLUE(Suite):
    name, title, version, demo = "demo_glue", "Demo sentences", 1, True
    tasks = {task.name: task for task in TASKS}
    protocols = (
        Protocol(
            name="generated",
            version=1,
            options={
                "data_seed": Option(0, int, minimum=0),
                "train": Option(2000, int, minimum=2, maximum=20000),
                "validation": Option(300, int, minimum=2, maximum=5000),
                "test": Option(600, int, minimum=2, maximum=5000),
            },
        ),
    )

    def load(self, task: str, protocol: Mapping[str, Any], data_root: Path | None) -> TaskData:
        """The data of a task; `data_root` is not looked at."""
        self.info(task)
        return generated(partial(_generate, task), protocol)


def _generate(task: str, split: str, size: int, seed: int, seen: set[tuple[str, ...]]) -> Split:
    """A split with both labels in turn, then shuffled. No input that is in `seen` comes again; `seen` grows."""
    example, positive = GENERATORS[task]
    draw = Draw(seed, task, split)
    rows: list[tuple[tuple[str, ...], int]] = []
    while len(rows) < size:
        is_positive = len(rows) % 2 == 0
        inputs = example(draw, is_positive, split == "test")
        if inputs not in seen:
            seen.add(inputs)
            rows.append((inputs, positive if is_positive else 1 - positive))
    rows = draw.shuffled(rows)
    return Split([inputs for inputs, _ in rows], np.array([label for _, label in rows]), np.arange(size))


suite = DemoGLUE()
