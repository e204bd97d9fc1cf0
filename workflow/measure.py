"""Memory, time, size and latency of a cell. Every figure has a unit; one that cannot be had is absent.

Seconds for times, bytes for memory. Definitions are in docs/measurements.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save

from methods.base import Method
from models.backbone import Backbone
from models.batch import Batch
from workflow.train import synchronise

LATENCY_SECONDS = 0.4  # spent on each of the batch sizes, at most about this long
LATENCY_REPEATS = (4, 30)  # at least, at most
SLOW, SLOW_REPEATS = 1.0, 2  # a round of calls that takes more seconds than this is repeated so often
WARM_UP = 1


class Memory:
    """Peaks by phase: allocated and reserved bytes on CUDA, resident bytes of this process on the CPU.

    The peak is reset when a phase begins. A CPU peak includes the interpreter and its libraries.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.figures: dict[str, int | str] = {"device": device.type}

    def _reset(self) -> bool:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    @contextmanager
    def phase(self, name: str):
        known = self._reset()
        try:
            yield
        finally:
            if known:
                self._note(name)

    def _note(self, name: str) -> None:
        if self.device.type == "cuda":
            self._keep(f"{name}_peak", torch.cuda.max_memory_allocated(self.device))
            self._keep(f"{name}_reserved", torch.cuda.max_memory_reserved(self.device))
        elif (peak := resident_peak()) is not None:
            self._keep(f"{name}_peak", peak)

    def _keep(self, name: str, value: int) -> None:
        self.figures[name] = max(value, int(self.figures.get(name, 0)))


def resident_peak() -> int | None:
    """Largest resident size of this process since the last reset, in bytes (Linux)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("VmHWM:")]
    return int(found[0].split()[1]) * 1024 if found else None


def stored_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Size of the safetensors file with these tensors."""
    return len(save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})) if tensors else 0


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles of repeated timings."""
    if len(seconds) == 1:
        return {"median": seconds[0], "p25": seconds[0], "p75": seconds[0]}
    p25, median, p75 = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median": median, "p25": p25, "p75": p75}


def step_times(seconds: list[float]) -> dict[str, float]:
    """First step apart; median and 95th percentile of the others."""
    if not seconds:
        return {}
    later = sorted(seconds[1:]) or seconds
    return {
        "first_step": seconds[0],
        "step_median": statistics.median(later),
        "step_p95": later[min(len(later) - 1, int(0.95 * len(later)))],
    }


def interleaved(runs: dict[str, Callable[[], None]], device: torch.device) -> dict[str, dict[str, float]]:
    """Time several functions in turn, so that drift of the machine hits all alike; seconds a call."""
    for run in runs.values():
        for _ in range(WARM_UP):
            run()
    synchronise(device)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    least, most = LATENCY_REPEATS
    began = time.perf_counter()
    for repeat in range(most):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            synchronise(device)
            seconds[name].append(time.perf_counter() - start)
        spent = time.perf_counter() - began
        if repeat + 1 >= (SLOW_REPEATS if spent > SLOW * (repeat + 1) else least) and spent > LATENCY_SECONDS:
            break
    return {name: quantiles(values) for name, values in seconds.items()}


@torch.inference_mode()
def forward(backbone: Backbone, method: Method, batch: Batch) -> None:
    """One pass without dropout and without gradients."""
    backbone.train(False)
    method.parts.train(False)
    method.forward(batch, backbone.forward)


@torch.inference_mode()
def latency(backbone: Backbone, method: Method, batches: dict[str, Batch]) -> dict[str, dict]:
    """Seconds of one forward pass: bare backbone, with the method attached, and merged where it merges.

    batches: by name, for example `batch_1` and `batch_32`. Bare and attached are timed in turn; then bare and
    merged. The method is left as it was.
    """
    backbone.train(False)
    method.parts.train(False)

    def attached(batch):
        return lambda: method.forward(batch, backbone.forward)

    def bare(batch):
        def run():
            backbone.switch.on = False
            try:
                backbone.forward(batch)
            finally:
                backbone.switch.on = True

        return run

    figures = {
        name: interleaved({"bare": bare(batch), "attached": attached(batch)}, backbone.device)
        for name, batch in batches.items()
    }
    if method.mergeable:
        method.merge()
        try:
            for name, batch in batches.items():
                figures[name]["merged"] = interleaved({"merged": attached(batch)}, backbone.device)["merged"]
        finally:
            method.unmerge()
    return figures


@torch.inference_mode()
def merge_error(backbone: Backbone, method: Method, batch: Batch) -> dict[str, float | bool]:
    """Largest change of the output by merging, absolute and relative to the largest output; exact: no rounding."""
    backbone.train(False)
    method.parts.train(False)
    before = method.forward(batch, backbone.forward).logits.float()
    report = method.merge()
    try:
        after = method.forward(batch, backbone.forward).logits.float()
    finally:
        method.unmerge()
    error = (after - before).abs().max().item()
    return {"max_abs_error": error, "relative": error / max(before.abs().max().item(), 1e-30), "exact": report.exact}
