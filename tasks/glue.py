"""GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding (Wang et al., 2018,
arXiv:1804.07461).

Test is GLUE's development set (the split called `validation` on the hub; MNLI has two), because the labels of GLUE's
own test set are hidden; validation is a fixed stratified slice of train. The protocols differ in where a cell on a
small task starts: at the pretrained network, or at what the same method learned on MNLI.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks.base import (
    HubData,
    Option,
    Protocol,
    Source,
    Split,
    Suite,
    TaskData,
    TaskInfo,
    at_most,
    divided,
    joined,
    label_ids,
    stratified_draw,
)
from workflow.errors import AtlasError

HUB_ID = "nyu-mll/glue"
REVISION = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"
SMALLEST_VALIDATION = 100  # rows; below this a choice between checkpoints is mostly noise
BEST_SCORE = 5.0  # of STS-B; the worst is 0
PART_STRIDE = 1_000_000  # both development sets of MNLI number their rows from 0: the second's ids begin here
STARTED = ("rte", "mrpc", "stsb")  # the tasks that LoRA's paper starts from MNLI

PAIR = ("sentence1", "sentence2")
_task = partial(TaskInfo, "glue", modality="text", max_length=128)
_labelled = partial(_task, kind="classification")
_by_accuracy = partial(_labelled, fields=PAIR, metrics=("accuracy",), primary="accuracy", chance=0.5)
TASKS = (
    _labelled(
        "cola",
        fields=("sentence",),
        labels=("unacceptable", "acceptable"),
        metrics=("matthews", "accuracy"),
        primary="matthews",
        title="CoLA",
        chance=0.0,
    ),
    _by_accuracy("sst2", fields=("sentence",), labels=("negative", "positive"), title="SST-2"),
    _by_accuracy("mrpc", labels=("not_equivalent", "equivalent"), metrics=("accuracy", "f1"), title="MRPC"),
    _task(
        "stsb",
        kind="regression",
        fields=PAIR,
        labels=(),
        metrics=("pearson", "spearman"),
        primary="pearson",
        title="STS-B",
        chance=0.0,
    ),
    _by_accuracy(
        "qqp",
        fields=("question1", "question2"),
        labels=("not_duplicate", "duplicate"),
        metrics=("accuracy", "f1"),
        title="QQP",
    ),
    _by_accuracy(
        "mnli",
        fields=("premise", "hypothesis"),
        labels=("entailment", "neutral", "contradiction"),
        title="MNLI",
        chance=1 / 3,
        parts=("matched", "mismatched"),
        headline="matched",
    ),
    _by_accuracy("qnli", fields=("question", "sentence"), labels=("entailment", "not_entailment"), title="QNLI"),
    _by_accuracy("rte", labels=("entailment", "not_entailment"), title="RTE"),
    # the other way round than in RTE; and dev repeats sentences of train with the label flipped, so that whoever
    # learns them scores below chance
    _by_accuracy("wnli", labels=("not_entailment", "entailment"), title="WNLI", ranked=False),
)

OPTIONS = {
    "revision": Option(REVISION, str),
    "validation_fraction": Option(0.1, float, minimum=0.0, maximum=0.5),
    "validation_max": Option(1000, int, minimum=1),
    "split_seed": Option(0, int, minimum=0),
    "max_train": Option(None, int, minimum=1, optional=True),
}
SELECT_ON_TRAIN_SLICE = """
Test is GLUE's development set; the hidden labels of GLUE's own test set are not used. Validation is a slice of train,
the same for every seed and method, with the share of each label kept (STS-B: of each score, rounded to a whole
number). Its size is `validation_fraction` of train, raised to 100 rows or a fifth of train (the smaller of the two),
and never above `validation_max`. Rows are drawn by the hash of `split_seed` and the row's id. Train is the rest;
`max_train` cuts it to that many rows.

The tables show the checkpoint that is best on validation. Most published tables choose it on the development set that
they report, so their numbers are higher, most of all on CoLA and RTE, and are not to be compared row by row.

Headlines: Matthews correlation for CoLA, Pearson correlation for STS-B (Spearman beside it), accuracy for the others
(F1 beside it for MRPC and QQP). MNLI's headline is accuracy on the matched development set, and both sets are scored
apart. WNLI is left out of averages: its development set repeats sentences of train with the label flipped. Texts are
cut at 128 tokens unless the recipe's `max_length` says otherwise.
"""
MNLI_START = """
As `select-on-train-slice`, but RTE, MRPC and STS-B continue from MNLI, as in the RoBERTa experiments of LoRA
(arXiv:2106.09685): their cells begin with what a cell on MNLI with the same method, settings, model and seed had
learned at its selected checkpoint. Only the method's own state is taken over, never the head, which has three outputs
on MNLI. The cells on MNLI are part of the grid whether or not it names MNLI. The other tasks begin as usual.

Departures from the paper, which takes for each of five seeds the epoch that is best on the development set, reports the
median over the seeds, and starts every run from its best MNLI run: here the checkpoint is chosen on a slice of train,
the start is the MNLI cell of the same seed, and tables show the mean over seeds. An RTE score with this start lies far
above one without it, and the two are not to be mixed in a column.
"""


class GLUE(Suite):
    name, title, version = "glue", "GLUE", 1
    tasks = {task.name: task for task in TASKS}
    protocols = (
        Protocol("select-on-train-slice", 1, OPTIONS, text=SELECT_ON_TRAIN_SLICE.strip()),
        Protocol("mnli-start", 1, OPTIONS, text=MNLI_START.strip()),
    )

    def start(self, task: str, protocol: Mapping[str, Any]) -> str | None:
        return "mnli" if protocol["name"] == "mnli-start" and task in STARTED else None

    def sources(self, task: str, protocol: Mapping[str, Any]) -> list[Source]:
        development = tuple(_development_splits(self.info(task)))
        return [Source(HUB_ID, task, protocol["revision"], ("train", *development))]

    def load(self, task: str, protocol: Mapping[str, Any], data_root: Path | None) -> TaskData:
        info = self.info(task)
        hub = HubData(HUB_ID, protocol["revision"])
        train = _read(hub, info, "train", data_root)
        test = _joined(info, {split: _read(hub, info, split, data_root) for split in _development_splits(info)})
        rest, validation = divided(train, _validation_rows(train, protocol))
        rest = at_most(rest, protocol["max_train"], protocol["split_seed"], _draw)
        return TaskData.of(rest, validation, test, hub.source(data_root))


def _development_splits(info: TaskInfo) -> list[str]:
    return [f"validation_{part}" for part in info.parts] or ["validation"]


def _read(hub: HubData, info: TaskInfo, split: str, data_root: Path | None) -> Split:
    table = hub.read(info, split, (*info.fields, "label", "idx"), data_root)
    origin = f"{hub.source(data_root)}: {info.suite}/{info.name}/{split}"
    inputs = list(zip(*(table.column(field).to_pylist() for field in info.fields), strict=True))
    labels = label_ids(table, "label", info.labels, origin) if info.labels else _scores(table, origin)
    return Split(inputs, labels, table.column("idx").to_numpy().astype(np.int64))


def _scores(table, origin: str) -> np.ndarray:
    """The label column as float32 scores, (n,); AtlasError where one is missing or out of range (-1 is hidden)."""
    scores = table.column("label").to_numpy().astype(np.float32)
    if not np.all((scores >= 0) & (scores <= BEST_SCORE)):
        mend = f"scores are numbers from 0 to {BEST_SCORE:g}; a split without its labels cannot be used"
        raise AtlasError("missing or impossible scores in column 'label'", file=origin, mend=mend)
    return scores


def _joined(info: TaskInfo, splits: dict[str, Split]) -> Split:
    """The development sets one after the other as the parts of one split, with ids that stay unique."""
    if not info.parts:
        (split,) = splits.values()
        return split
    for i, (part, split) in enumerate(zip(info.parts, splits.values(), strict=True)):
        split.ids, split.parts = split.ids + i * PART_STRIDE, np.repeat(part, len(split))
    return joined(list(splits.values()))


def _validation_rows(train: Split, protocol: Mapping[str, Any]) -> np.ndarray:
    """Positions of the slice: the fraction asked for, raised to 100 rows or a fifth of train (the smaller of the two),
    but never above the maximum."""
    wanted = round(protocol["validation_fraction"] * len(train))
    floor = min(SMALLEST_VALIDATION, len(train) // 5)
    return _draw(train, min(protocol["validation_max"], max(wanted, floor)), protocol["split_seed"])


def _draw(split: Split, size: int, seed: int) -> np.ndarray:
    """Positions of rows drawn with the share of each label kept, or of each score rounded to a whole number."""
    return stratified_draw(np.round(split.labels), split.ids, size, seed)


suite = GLUE()
