"""Step time and memory of methods relative to another one, LoRA by default, on a network with random weights.

The two are attached to two copies of the network in one process and their training steps are taken in turn, so that
drifts of the machine fall on both. The other method gets the sites (where they are linear maps), layers and dropout of
the first, where both have such settings. Definitions are in docs/measurements.md.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from methods.base import Method, Phase, Step
from models.backbone import Unsupported
from models.entries import model as model_entry
from models.load import load
from models.shape import BackboneShape
from workflow import encode, latency, probe, provenance, registry
from workflow.grid import BASE_RECIPE
from workflow.train import Training, synchronise

SUITE = {"vision": "images", "decoder": "generate", "encoder_decoder": "generate", "encoder": "classify"}
COLUMNS = ("model", "method", "against", "status", "batch", "length", "steps", "trained", "step_s", "against_step_s",
           "ratio", "ratio_p25", "ratio_p75", "memory", "against_memory", "memory_ratio", "threads", "cpu", "torch",
           "transformers", "commit", "dirty")  # fmt: skip


def pace(method: str, model: str, against: str, batch: int, length: int, steps: int) -> dict[str, Any]:
    """Seconds of a training step of both, the ratio of steps that followed each other, and the bytes of a step.

    memory: bytes of a training step beside the backbone's own weights: method, head, gradients, optimiser state and
    what autograd keeps. steps: pairs of steps that are timed, after one that is not.
    """
    row = {"model": model, "method": method, "against": against, "batch": batch, "length": length, "steps": steps}
    try:
        own = _started(method, model, batch, length)
    except Unsupported as problem:
        return row | {"status": f"unsupported: {problem}"} | _provenance()
    other = _started(against, model, batch, length, own[0].method.settings)
    seconds = {"own": [], "other": []}
    for index in range(1 + steps):
        turns = (("own", own), ("other", other))
        for name, (training, data) in turns if index % 2 else turns[::-1]:  # neither always follows the other
            taken = _step(training, data, Step(index, training.total_steps, Phase()))
            if index:
                seconds[name].append(taken)
    ratios = latency.quantiles([a / b for a, b in zip(seconds["own"], seconds["other"], strict=True)])
    memory, beside = (_bytes(*started) for started in (own, other))
    return row | {
        "status": "ok",
        "trained": sum(p.numel() for p in own[0].method.trained()),
        "step_s": round(latency.quantiles(seconds["own"])["median"], 4),
        "against_step_s": round(latency.quantiles(seconds["other"])["median"], 4),
        "ratio": round(ratios["median"], 3),
        "ratio_p25": round(ratios["p25"], 3),
        "ratio_p75": round(ratios["p75"], 3),
        "memory": memory,
        "against_memory": beside,
        "memory_ratio": round(memory / beside, 3),
        **_provenance(),
    }


def write(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a CSV file, which is begun if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def known(found: Sequence[dict[str, Any]], method: str, model: str, against: str, batch: int, length: int) -> bool:
    """Whether these rows have this comparison."""
    asked = (method, model, against, str(batch), str(length))
    return any(
        asked == tuple(str(r[name]) for name in ("method", "model", "against", "batch", "length")) for r in found
    )


def table(found: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """What a person reads of these rows."""
    return [_line(row) for row in found]


def _line(row: dict[str, Any]) -> dict[str, str]:
    line = {"method": row["method"], "model": row["model"]}
    if row["status"] != "ok":
        return line | dict.fromkeys(("trained", "step s", "memory MB"), "-") | {"beside": row["status"]}
    times, low, high = (f"{float(row[name]):.2f}" for name in ("ratio", "ratio_p25", "ratio_p75"))
    return line | {
        "trained": f"{int(row['trained']):,}",
        "step s": f"{float(row['step_s']):.3f}",
        "memory MB": f"{int(row['memory']) / 1e6:,.0f}",
        "beside": f"{row['against']}: step x {times} [{low} to {high}], memory x {float(row['memory_ratio']):.2f}",
    }


def _started(name: str, model: str, batch: int, length: int, like: Any = None) -> tuple[Training, Any]:
    """A method attached to its own copy of the network, ready for its first step, and its batch.

    like: settings of another method, whose sites, layers and dropout are taken over.
    """
    suite, entry = registry.suites()["cost"], model_entry(model).with_random_weights()
    task = SUITE[entry.kind]
    options = {} if entry.kind == "vision" else {"length": length, "answer": length // 2}
    protocol = suite.protocol(task, options)
    info = suite.facts(task, protocol)
    backbone = load(entry, info.kind, len(info.labels), seed=0)
    backbone.restorable = False
    plugin = registry.load_method(registry.methods()[name])
    method = plugin.create(_shared(plugin, like, backbone.shape))
    if reason := method.supports(backbone.shape, info):
        raise Unsupported(reason)
    recipe = BASE_RECIPE | {"batch_size": batch, "max_steps": 200, "lr": 1e-4} | method.recipe | {"evaluations": 0}
    data = suite.load(task, protocol, None)
    encoded = {s: encode.encode(info, getattr(data, s), backbone, length, info.learn) for s in ("train", "validation")}
    training = Training(backbone, method, recipe, encoded["validation"], lambda split: 0.0, seed=0)
    training.splits["train"] = encoded["train"]
    method.planned = method.plan(backbone.shape)
    method.calibrate(backbone, training)
    method.attach(backbone, training)
    method.initialise(backbone, training)
    training.optimizer = training._build_optimizer()
    backbone.train(True)
    method.parts.train(True)
    (rows_,) = latency.batches(encoded["train"], (batch,), training.device).values()
    return training, rows_


def _shared(plugin: type[Method], like: Any, shape: BackboneShape) -> dict[str, Any]:
    """What a method takes over from the settings `like`.

    Left out are sites without a linear map (norms), and a number of layers in the place of their indices.
    """
    names = {f.name for f in fields(plugin.Settings)} & {"sites", "layers", "dropout"}
    found = {name: getattr(like, name) for name in names if hasattr(like, name)}
    if not shape.find(found.get("sites", ())):
        found.pop("sites", None)
    if isinstance(found.get("layers"), int):
        found.pop("layers")
    return found


def _step(training: Training, batch, step: Step) -> float:
    for group in training.optimizer.param_groups:
        group["lr"] = group["initial_lr"]
    synchronise(training.device)
    start = time.perf_counter()
    training._step(batch, step)
    synchronise(training.device)
    return time.perf_counter() - start


def _bytes(training: Training, batch) -> int:
    _, parts = probe.training_step(training, batch)
    return sum(size for name, size in parts.items() if name != "base")


def _provenance() -> dict[str, Any]:
    state = provenance.collect(torch.device("cpu"), threads=torch.get_num_threads())
    packages = {name: state["packages"][name] for name in ("torch", "transformers")}
    git = {"commit": state["git"]["commit"], "dirty": state["git"]["dirty"]}
    return {name: state[name] for name in ("threads", "cpu")} | packages | git
