"""Inference time of the bare backbone, of the method attached, and of the method merged, each timed in turn.

Seconds. A pair that is timed in turn gives ratios that no drift of the machine can move.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from methods.base import Method
from models.backbone import Backbone
from models.batch import Batch, ForwardState
from workflow.data import Encoded, Ragged
from workflow.train import synchronise

SECONDS = 2.0  # spent on each pair, at most about this long
REPEATS = (7, 50)  # at least, at most
SLOW, SLOW_REPEATS = 2.0, 3  # a round of calls that takes more seconds is repeated so often, and warm from the first
SIZES = {"classification": (1, 32), "regression": (1, 32), "generation": (1, 8)}  # examples of a batch
NEW_TOKENS = 8  # generated after the first, to time one token

Seconds = dict[str, float]  # by what was timed: the whole call, or its parts
Call = Callable[[], Seconds]


def interleaved(calls: dict[str, Call]) -> dict[str, list[Seconds]]:
    """The seconds that each call gives, taken in turn. The first round warms up and is dropped, unless it is slow."""
    found: dict[str, list[Seconds]] = {name: [] for name in calls}
    least, most = REPEATS
    began = time.perf_counter()
    for repeat in range(1 + most):
        for name, call in calls.items():
            found[name].append(call())
        spent = time.perf_counter() - began
        slow = spent > SLOW * (repeat + 1)
        if repeat == 0 and not slow:
            found = {name: [] for name in calls}
            began = time.perf_counter()
        elif len(next(iter(found.values()))) >= (SLOW_REPEATS if slow else least) and spent > SECONDS:
            break
    return found


def quantiles(values: list[float]) -> dict[str, float]:
    """Median, quartiles and number of repeated timings."""
    if len(values) == 1:
        return {"median": values[0], "p25": values[0], "p75": values[0], "n": 1}
    p25, median, p75 = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "p25": p25, "p75": p75, "n": len(values)}


def batches(data: Encoded, sizes: tuple[int, ...], device: torch.device) -> dict[str, Batch]:
    """`batch_<n>`: a batch of each size from the examples of middle length."""
    order = np.argsort(data.lengths, kind="stable")
    middle = len(order) // 2
    rows = {size: order[max(0, middle - size // 2) :][:size] for size in sizes}
    return {f"batch_{size}": data.batch(rows[size]).to(device) for size in sizes}


@torch.inference_mode()
def latency(backbone: Backbone, method: Method, call: Call) -> dict[str, dict[str, dict[str, float]]]:
    """For each part that the call times: quantiles of `bare`, `attached` and where the method merges `merged`.

    The call runs the network once with whatever is attached. `attached_over_bare` and `merged_over_bare` are quantiles
    of ratios of two calls that followed each other. The method is left as it was.
    """
    backbone.train(False)
    method.parts.train(False)
    figures = _pair(backbone, call, "attached")
    if method.mergeable:
        method.merge()
        try:
            for part, found in _pair(backbone, call, "merged").items():
                figures[part] |= {name: values for name, values in found.items() if name != "bare"}
        finally:
            method.unmerge()
    return figures


def _pair(backbone: Backbone, call: Call, name: str) -> dict[str, dict[str, dict[str, float]]]:
    """The bare backbone and the network as it is now, in turn. Merged weights take the time of the pretrained ones."""
    found = interleaved({"bare": partial(_bare, backbone, call), name: call})
    figures = {}
    for part in found[name][0]:
        seconds = {state: [one[part] for one in found[state]] for state in found}
        ratios = [own / bare for own, bare in zip(seconds[name], seconds["bare"], strict=True)]
        figures[part] = {state: quantiles(values) for state, values in seconds.items()}
        figures[part][f"{name}_over_bare"] = quantiles(ratios)
    return figures


def _bare(backbone: Backbone, call: Call) -> Seconds:
    with bare(backbone):
        return call()


@contextmanager
def bare(backbone: Backbone) -> Iterator[None]:
    """Without what is attached; the weights stay as they are."""
    backbone.switch.on = False
    try:
        yield
    finally:
        backbone.switch.on = True


def forward(backbone: Backbone, method: Method, batch: Batch) -> Seconds:
    """The seconds of one forward pass."""
    synchronise(backbone.device)
    start = time.perf_counter()
    method.forward(batch, backbone.forward)
    synchronise(backbone.device)
    return {"": time.perf_counter() - start}


def generation(backbone: Backbone, batch: Batch) -> Seconds:
    """Greedy generation: seconds until the first token (`prefill_`), and of each token after it (`token_`)."""
    ends: list[float] = []

    def note(scores: Tensor, state: ForwardState) -> Tensor:
        synchronise(backbone.device)
        ends.append(time.perf_counter())
        return scores

    synchronise(backbone.device)
    start = time.perf_counter()
    backbone.generate(batch, 1 + NEW_TOKENS, logits=note)
    return {"prefill_": ends[0] - start, "token_": (ends[-1] - ends[0]) / (len(ends) - 1)}


def figures(backbone: Backbone, method: Method, data: Encoded, kind: str) -> dict[str, Any]:
    """The latencies of a kind of task: `batch_<n>` of one forward pass over n examples; of a task that generates
    `prefill_batch_<n>` of reading the prompts and giving the first token, and `token_batch_<n>` of a token after it.

    length: tokens of the examples of middle length (of prompts, where texts are generated).
    """
    data = prompts(data, backbone) if kind == "generation" else data
    found: dict[str, Any] = {"length": middle_length(data)}
    for name, batch in batches(data, SIZES[kind], backbone.device).items():
        call = partial(generation, backbone, batch)
        if kind != "generation":
            call = partial(forward, backbone, method, batch)
        found |= {f"{part}{name}": timed for part, timed in latency(backbone, method, call).items()}
    return found


def middle_length(data: Encoded) -> int:
    return int(np.sort(data.lengths)[len(data) // 2])


def prompts(data: Encoded, backbone: Backbone) -> Encoded:
    """The prompts of encoded examples, with room for the tokens that are generated here; a decoder's padded left."""
    if backbone.kind == "encoder_decoder":
        return replace(data, labels=np.zeros(len(data), np.int64), targets=False)
    room = max(1, (backbone.shape.tokens or 1 << 30) - backbone.slot_count - 1 - NEW_TOKENS)
    ids = Ragged.of([data.ids[row][: data.prompt[row]][-room:] for row in range(len(data))])
    return Encoded(np.zeros(len(data), np.int64), ids, prompt=ids.lengths, pad=data.pad, pad_left=True)
