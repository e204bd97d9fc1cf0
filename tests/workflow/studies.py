"""Grids with made-up results, for the tests of tables and report."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

from tasks.base import TaskInfo
from workflow import registry
from workflow.cells import Cell
from workflow.errors import AtlasError
from workflow.grid import BASE_RECIPE, Grid
from workflow.versions import RESULT_SCHEMA

PROVENANCE = {
    "started": "2026-03-01T10:00:00Z",
    "finished": "2026-03-01T10:05:00Z",
    "host": "node1",
    "platform": "Linux",
    "cpu": "a processor",
    "threads": 2,
    "device": "cpu",
    "python": "3.11.2",
    "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False},
    "data": {"fingerprint": "d" * 16, "source": "made from a seed"},
    "model": {"fingerprint": "e" * 16, "source": "package"},
}


def task(suite: str, name: str, **more) -> TaskInfo:
    """The facts of a made-up task: classification of texts by accuracy, if nothing else is said."""
    facts = {"kind": "classification", "modality": "text", "fields": ("text",), "labels": ("a", "b")}
    facts |= {"metrics": ("accuracy",), "primary": "accuracy", "max_length": 64, "title": name, "chance": 0.5}
    return TaskInfo(suite=suite, name=name, **facts | more)


ANSWERED = ("accuracy", "accuracy_flexible", "accuracy_likelihood", "unparsed", "nll")
GENERATION = {"kind": "generation", "labels": (), "metrics": ANSWERED, "chance": None}
TASKS = (
    task("glue", "cola", metrics=("matthews", "accuracy"), primary="matthews", chance=0.0),
    *(task("glue", name) for name in ("sst2", "mrpc", "rte")),
    task("glue", "mnli", parts=("matched", "mismatched"), headline="matched"),
    task("glue", "wnli", ranked=False),
    *(task("demo_glue", name) for name in ("sst2", "acceptability", "entailment", "similarity")),
    *(task("vtab", name, group="natural", modality="image") for name in ("cifar", "dtd", "pets")),
    *(task("vtab", name, group="structured", modality="image") for name in ("clevr", "dsprites")),
    task(
        "cost",
        "generate",
        kind="generation",
        labels=(),
        metrics=("nll",),
        primary="nll",
        max_length=768,
        cost_only=True,
    ),
    task("math", "gsm8k", **GENERATION, select="nll"),
    task("math", "math10k", **GENERATION, parts=("gsm8k", "svamp", "addsub"), contaminated=("addsub",)),
)


methods = cache(registry.methods)  # reading every plugin anew takes longer than most tests


def no_data(*_):
    raise AtlasError("made-up tasks have no data")


def suites() -> dict:
    """Suites of the made-up tasks, in place of those of workflow.registry."""
    found = {info.suite: {} for info in TASKS}
    for info in TASKS:
        found[info.suite][info.name] = info
    return {
        name: SimpleNamespace(
            title=name, protocols=(), tasks=tasks, facts=lambda task, protocol, tasks=tasks: tasks[task], load=no_data
        )
        for name, tasks in found.items()
    }


def cell(method="lora", seed=0, task="sst2", model="minilm-l6", suite="glue", label=None, **more) -> Cell:
    identity = {
        "settings": {},
        "recipe": dict(BASE_RECIPE),
        "protocol": {"name": suite, "version": 1},
        "model_revision": "r1",
        "plugin": "0" * 64,
        "building_blocks": 1,
        "training_loop": 1,
        "division": "author",
    }
    return Cell(suite=suite, task=task, model=model, method=method, label=label or method, seed=seed, **identity | more)


def grid(*cells: Cell, **more) -> Grid:
    return Grid(**{"name": "study", "path": Path("config/study.yaml"), "title": "A study", "cells": cells} | more)


def result(of: Cell, value=0.9, stderr=0.01, metric="accuracy", trained=1000, others=None, n=500, **more) -> dict:
    """A complete result that ended well; a section given as None is left out. `others`: values of further metrics."""
    values = {metric: value} | (others or {})
    scores = {name: {"value": value, "stderr": stderr, "n": n} for name, value in values.items()}
    timed = {"median": 0.002, "p25": 0.0019, "p75": 0.0022}
    document = {
        "schema": RESULT_SCHEMA,
        "key": of.key,
        "cell": of.to_json(),
        "status": "ok",
        "reason": None,
        "metrics": {
            "primary": metric,
            "rule": "selected",
            "selected": scores,
            "last": scores,
            "validation": scores,
            "selected_step": 30,
        },
        "curves": {"train_loss": [[1, 0.7], [30, 0.2]], "validation": [[30, value]]},
        "parameters": {
            "backbone": 100_000,
            "head": 770,
            "trained": {
                "attached": trained,
                "after_optimizer": trained,
                "peak": trained,
                "mean": trained,
                "final": trained,
            },
            "expected": {"trained": trained, "stored": trained, "added": 0},
            "stored": trained,
            "stored_bytes": 4 * trained,
            "head_bytes": 3080,
            "added_at_inference": 0,
        },
        "memory": {"device": "cpu", "train_peak": 256 * 2**20, "inference_peak": 128 * 2**20, "load_peak": 64 * 2**20},
        "time": {
            "train": 12.5,
            "step_median": 0.025,
            "step_p95": 0.05,
            "total": 20.0,
            "tokens_per_s": 4000.0,
            "examples_per_s": 640.0,
        },
        "latency": {
            "batch_1": {"bare": timed, "attached": timed, "merged": timed},
            "batch_32": {"bare": timed, "attached": timed},
            "length": 32,
        },
        "training": {"steps": 30, "epochs": 3.0, "examples": 960, "tokens": 9600, "resumed": 0},
        "provenance": PROVENANCE,
    }
    return {name: section for name, section in (document | more).items() if section is not None or name == "reason"}


def failed(of: Cell, status: str, reason: str) -> dict:
    return {
        "schema": RESULT_SCHEMA,
        "key": of.key,
        "cell": of.to_json(),
        "status": status,
        "reason": reason,
        "provenance": PROVENANCE,
    }


def store(root: Path, *documents: dict) -> None:
    for document in documents:
        path = root / Cell.from_json(document["cell"]).path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
