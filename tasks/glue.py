"""GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding (Wang et al., 2018,
arXiv:1804.07461).

Protocol `select-on-train-slice`: validation is a fixed stratified slice of train, test is GLUE's development set (the
split called `validation` on the hub). The labels of GLUE's own test set are hidden, and it is not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import HubData, Option, Protocol, Split, Suite, TaskData, TaskInfo, label_ids, stratified_draw

HUB_ID = "nyu-mll/glue"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
SMALLEST_VALIDATION = 100  # rows; below this a choice between checkpoints is mostly noise


def _task(
    name: str, title: str, fields: tuple[str, ...], labels: tuple[str, ...], metrics: tuple[str, ...], chance: float
) -> TaskInfo:
    return TaskInfo(
        suite="glue",
        name=name,
        kind="classification",
        modality="text",
        fields=fields,
        labels=labels,
        metrics=metrics,
        primary=metrics[0],
        max_length=128,
        title=title,
        chance=chance,
    )


PAIR = ("sentence1", "sentence2")
TASKS = (
    _task("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), ("matthews", "accuracy"), 0.0),
    _task("sst2", "SST-2", ("sentence",), ("negative", "positive"), ("accuracy",), 0.5),
    _task("rte", "RTE", PAIR, ("entailment", "not_entailment"), ("accuracy",), 0.5),
    # the other way round than in RTE; and dev repeats sentences of train with the label flipped, so that whoever
    # learns them scores below chance: averages leave this task out
    _task("wnli", "WNLI", PAIR, ("not_entailment", "entailment"), ("accuracy",), 0.5),
)


class GLUE(Suite):
    name, title, version = "glue", "GLUE", 1
    tasks = {task.name: task for task in TASKS}
    protocols = (
        Protocol(
            name="select-on-train-slice",
            version=1,
            options={
                "revision": Option(REVISION, str),
                "validation_fraction": Option(0.1, float, minimum=0.0, maximum=0.5),
                "validation_max": Option(1000, int, minimum=1),
                "split_seed": Option(0, int, minimum=0),
                "max_train": Option(None, int, minimum=1, optional=True),
            },
        ),
    )

    def load(self, task: str, protocol: Mapping[str, Any], data_root: Path | None) -> TaskData:
        info = self.info(task)
        hub = HubData(HUB_ID, protocol["revision"])
        train, test = (_read(hub, info, split, data_root) for split in ("train", "validation"))
        validation_rows = _validation_rows(train, protocol)
        rest = train.take(np.setdiff1d(np.arange(len(train)), validation_rows))
        if protocol["max_train"] is not None and protocol["max_train"] < len(rest):
            rest = rest.take(stratified_draw(rest.labels, rest.ids, protocol["max_train"], protocol["split_seed"]))
        return TaskData.of(rest, train.take(validation_rows), test, hub.source(data_root))


def _read(hub: HubData, info: TaskInfo, split: str, data_root: Path | None) -> Split:
    table = hub.read(info, split, (*info.fields, "label", "idx"), data_root)
    inputs = list(zip(*(table.column(field).to_pylist() for field in info.fields), strict=True))
    labels = label_ids(table, "label", info.labels, f"{hub.source(data_root)}: {info.suite}/{info.name}/{split}")
    return Split(inputs, labels, table.column("idx").to_numpy().astype(np.int64))


def _validation_rows(train: Split, protocol: Mapping[str, Any]) -> np.ndarray:
    """Positions of the slice: the fraction asked for, raised to 100 rows or a fifth of train (the smaller of the two),
    but never above the maximum."""
    wanted = round(protocol["validation_fraction"] * len(train))
    floor = min(SMALLEST_VALIDATION, len(train) // 5)
    size = min(protocol["validation_max"], max(wanted, floor))
    return stratified_draw(train.labels, train.ids, size, protocol["split_seed"])


suite = GLUE()
