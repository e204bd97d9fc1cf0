"""Demo suite: small image tasks made offline, so that a study of a vision network runs anywhere. Not a benchmark.

They stand in for the three groups of VTAB-1k: `digits` (natural) are scikit-learn's handwritten digits, `texture`
(specialized), `count`, `position` and `orientation` (structured) are drawn by code from a seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks._demo_vtab import digits, objects, texture
from tasks._demo_vtab.canvas import random_state
from tasks.base import Option, Protocol, Split, Suite, TaskData, TaskInfo
from workflow.errors import AtlasError

SPLITS = ("train", "validation", "test")


def _task(name: str, title: str, group: str, labels: tuple[str, ...]) -> TaskInfo:
    return TaskInfo(
        suite="demo_vtab",
        name=name,
        kind="classification",
        modality="image",
        fields=("image",),
        labels=labels,
        metrics=("accuracy",),
        primary="accuracy",
        max_length=0,
        title=title,
        chance=1 / len(labels),
        demo=True,
        group=group,
    )


TASKS = (
    _task("digits", "Digits (demo)", "natural", digits.LABELS),
    _task("texture", "Texture (demo)", "specialized", texture.LABELS),
    _task("count", "Count (demo)", "structured", objects.COUNTS),
    _task("position", "Position (demo)", "structured", objects.CELLS),
    _task("orientation", "Orientation (demo)", "structured", objects.ANGLES),
)
DRAWN = {  # task -> image(random state, label)
    "texture": texture.texture,
    "count": objects.count,
    "position": objects.position,
    "orientation": objects.orientation,
}


class DemoVTAB(Suite):
    name, title, version, demo = "demo_vtab", "Demo images", 1, True
    tasks = {task.name: task for task in TASKS}
    protocols = (
        Protocol(
            name="generated",
            version=1,
            report="last",
            options={
                "data_seed": Option(0, int, minimum=0),
                "train": Option(800, int, minimum=20, maximum=20000),
                "validation": Option(200, int, minimum=20, maximum=5000),
                "test": Option(500, int, minimum=20, maximum=5000),
            },
            text="""\
Images of 32 by 32 pixels, made from `data_seed`: classes are balanced, colours, contrast (light on dark or dark on
light), background, noise, size and place vary at random, and no image is in two splits. `digits` shares out the 1,797
scans of scikit-learn, so that its splits can hold 1,740 images together; the other tasks are drawn by code that shares
nothing with that of the images on which `atlas-vit` was pretrained.

As in VTAB-1k the table shows the last checkpoint. Validation data is not learned from. Numbers on these tasks say that
the harness works and that methods differ; they are comparable with nothing else.
""",
        ),
    )

    def recipe(self, task: str) -> dict[str, Any]:
        self.info(task)
        return {"epochs": 20, "batch_size": 32, "weight_decay": 1e-4, "warmup": 0.1, "schedule": "cosine"}

    def load(self, task: str, protocol: Mapping[str, Any], data_root: Path | None) -> TaskData:
        """The data of a task; `data_root` is not looked at."""
        info, seed = self.info(task), protocol["data_seed"]
        made = _scanned(protocol) if task == "digits" else [_drawn(info, split, protocol) for split in SPLITS]
        return TaskData.of(*made, source=f"generated, data seed {seed}")


def _labels(classes: int, size: int, rng: np.random.RandomState) -> np.ndarray:
    """(size,) class ids, as many of each as can be, in random order"""
    return rng.permutation(np.arange(size) % classes)


def _drawn(info: TaskInfo, split: str, protocol: Mapping[str, Any]) -> Split:
    rng = random_state("demo_vtab", info.name, split, protocol["data_seed"])
    labels = _labels(len(info.labels), protocol[split], rng)
    return Split(np.stack([DRAWN[info.name](rng, label) for label in labels]), labels, np.arange(len(labels)))


def _scanned(protocol: Mapping[str, Any]) -> list[Split]:
    """Digits: each scan is used once at most, in the one split or the other."""
    seed, scans = protocol["data_seed"], digits.scans()
    rng = random_state("demo_vtab", "digits", seed)
    left = [list(rng.permutation(len(found))) for found in scans]
    splits = []
    for split in SPLITS:
        labels = _labels(len(scans), protocol[split], rng)
        if any(sum(labels == digit) > len(left[digit]) for digit in range(len(scans))):
            raise AtlasError(
                "train, validation and test together ask for more digits than there are",
                key="protocol.demo_vtab",
                mend="at most 1740 images in all; the other tasks have no such limit: give them a grid of their own",
            )
        images = [digits.digit(rng, scans[label][left[label].pop()]) for label in labels]
        splits.append(Split(np.stack(images), labels, np.arange(len(labels))))
    return splits


suite = DemoVTAB()
