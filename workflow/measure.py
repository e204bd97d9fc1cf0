"""Figures of a cell that are worked out from what it left: stored bytes, times of steps, the error of a merge.

Peaks and energy: workflow/meter.py; inference: workflow/latency.py; operations and bytes of a step: workflow/probe.py.
Definitions are in docs/measurements.md.
"""

from __future__ import annotations

import torch
from safetensors.torch import save

from methods.base import Method
from models.backbone import Backbone
from models.batch import Batch
from workflow import latency


def stored_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Size of the safetensors file with these tensors."""
    return len(save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})) if tensors else 0


def step_times(seconds: list[float]) -> dict[str, float]:
    """First step apart; median, quartiles and 95th percentile of the others."""
    if not seconds:
        return {}
    later = sorted(seconds[1:]) or seconds
    middle = latency.quantiles(later)
    return {
        "first_step": seconds[0],
        "step_median": middle["median"],
        "step_p25": middle["p25"],
        "step_p75": middle["p75"],
        "step_p95": later[min(len(later) - 1, int(0.95 * len(later)))],
    }


@torch.inference_mode()
def forward(backbone: Backbone, method: Method, batch: Batch) -> None:
    """One pass without dropout and without gradients."""
    backbone.train(False)
    method.parts.train(False)
    method.forward(batch, backbone.forward)


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
