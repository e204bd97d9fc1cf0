"""One training step looked at closely: floating-point operations, and the bytes of what it holds.

The step is taken after the cell's scores are, and the weights are put back.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from methods.base import Method
from models.backbone import Backbone
from models.batch import Batch
from workflow import cache
from workflow.latency import bare
from workflow.train import Training, synchronise

MATMUL_SIZES = {"cpu": 1024, "cuda": 8192}  # of the square matrices that the peak is taken with
MATMUL_SECONDS = 1.0


# ---- operations ------------------------------------------------------------------------------------------------


def _attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad, query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# torch counts the attention kernels of GPUs, not that of the CPU
_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Count multiplications and additions of matrix products, convolutions and attention, two a multiply-add."""
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        yield counter


@torch.inference_mode()
def inference_flops(backbone: Backbone, method: Method, batch: Batch) -> dict[str, int]:
    """Operations of one forward pass: of the bare backbone, with the method attached, and what it adds.

    added: after merging where the method merges, which is nothing.
    """
    backbone.train(False)
    method.parts.train(False)
    with backbone.as_written(), counting() as attached:
        method.forward(batch, backbone.forward)
    with backbone.as_written(), bare(backbone), counting() as plain:
        backbone.forward(batch)
    found = {"bare": plain.get_total_flops(), "attached": attached.get_total_flops()}
    return found | {"added": 0 if method.mergeable else max(0, found["attached"] - found["bare"])}


# ---- bytes -----------------------------------------------------------------------------------------------------


def tensor_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Bytes of the storages behind these tensors, each storage once."""
    storages = {}
    for tensor in tensors:
        if tensor is not None:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class Saved:
    """Storages that autograd keeps for the backward pass, beside those of parameters and buffers."""

    def __init__(self, known: Iterable[Tensor]):
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.storages: dict[int, int] = {}

    def note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def bytes(self) -> int:
        return sum(self.storages.values())


@contextmanager
def saved(backbone: Backbone, method: Method, checkpointing: bool = False) -> Iterator[Saved]:
    """Collect what autograd saves in the forward passes inside; with checkpointing, the inputs of blocks too.

    What a checkpointed block saves while it is computed again is not seen.
    """
    modules = [backbone.model, method.parts] + ([backbone.head] if backbone.head is not None else [])
    found = Saved(t for m in modules for t in (*m.parameters(), *m.buffers()))
    hooks = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs: _note_inputs(found, args, kwargs), with_kwargs=True
        )
        for block in (backbone.modules("block").values() if checkpointing else ())
    ]
    try:
        with torch.autograd.graph.saved_tensors_hooks(found.note, lambda tensor: tensor):
            yield found
    finally:
        for hook in hooks:
            hook.remove()


def _note_inputs(found: Saved, args: tuple, kwargs: dict) -> None:
    for value in (*args[:1], *([kwargs["hidden_states"]] if "hidden_states" in kwargs else [])):
        if isinstance(value, Tensor):
            found.note(value)


def training_step(training: Training, batch: Batch) -> tuple[int, dict[str, int]]:
    """(operations, bytes by what they are for) of one training step on a batch; the weights are left as they were.

    Bytes: `base` (the backbone's weights and buffers), `method`, `head`, `gradients` (of what is trained),
    `optimizer` (its state) and `activations` (what autograd keeps between forward and backward).
    """
    backbone, method, before = training.backbone, training.method, training.weights("cpu")
    backbone.train(True)
    method.parts.train(True)
    with (
        backbone.as_written(),
        counting() as counter,
        saved(backbone, method, training.recipe["gradient_checkpointing"]) as kept,
    ):
        training.forward_backward(batch)
    trained = [*method.parameters(), *(backbone.head.parameters() if backbone.head is not None else ())]
    figures = held(backbone, method, training.optimizer) | {
        "gradients": tensor_bytes(p.grad for p in trained),
        "activations": kept.bytes,
    }
    for parameter in trained:
        parameter.grad = None
    training.load_weights(before)
    return counter.get_total_flops(), figures


def held(backbone: Backbone, method: Method, optimizer: torch.optim.Optimizer | None) -> dict[str, int]:
    """Bytes that are there between two steps: weights and optimiser state."""
    states = [] if optimizer is None else optimizer.state.values()
    return {
        "base": tensor_bytes([*backbone.model.parameters(), *backbone.model.buffers()]),
        "method": tensor_bytes([*method.parts.parameters(), *method.parts.buffers()]),
        "head": 0 if backbone.head is None else tensor_bytes(backbone.head.parameters()),
        "optimizer": tensor_bytes(t for state in states for t in state.values() if isinstance(t, Tensor)),
    }


# ---- the device ------------------------------------------------------------------------------------------------


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of square matrix products on this device, measured for a second and kept for this machine."""
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.node()}-{torch.get_num_threads()}"
    )
    parts = ("matmul", name.replace(" ", "_").replace("/", "_"), str(dtype).removeprefix("torch."), torch.__version__)
    path = cache.made(f"machine/{'-'.join(parts)}.json", lambda new: new.write_text(json.dumps(_matmul(device, dtype))))
    return json.loads(path.read_text())


def _matmul(device: torch.device, dtype: torch.dtype) -> float:
    """The best of the repeats of a second: others only tell what else the machine did."""
    n = MATMUL_SIZES.get(device.type, 1024)
    a, b = torch.ones(n, n, device=device, dtype=dtype), torch.ones(n, n, device=device, dtype=dtype)
    out = a @ b
    synchronise(device)
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < MATMUL_SECONDS:
        start = time.perf_counter()
        torch.matmul(a, b, out=out)
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best
