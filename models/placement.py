"""The blocks of one network spread over several devices in one process, when it does not fit on one of them.

The devices work one after the other (naive model parallelism): more memory, no more speed, and the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.quantise import base_bytes

LATE = ("norm.final", "pool", "head.project")  # sites behind the blocks


def plan(blocks: Sequence[int], outside: tuple[int, int], capacities: Sequence[int]) -> list[int]:
    """The device of each block: neighbours stay together, and the fullest device is as empty as can be.

    blocks: bytes of each block in order; outside: bytes that go with the first and with the last device
    (embeddings; final norm and output layer); capacities: bytes that each device can take. A device may get no
    block. Raises MemoryError where it does not fit.
    """
    count, last = len(blocks), len(capacities) - 1
    before = [sum(blocks[:n]) for n in range(count + 1)]

    def share(device: int, start: int, end: int) -> float:
        own = before[end] - before[start] + outside[0] * (device == 0) + outside[1] * (device == last)
        return own / capacities[device]

    # best[device][n]: the fullest device's share, and the first block of this one, with n blocks up to this device
    best = [[(share(0, 0, n), 0) for n in range(count + 1)]]
    for device in range(1, last + 1):
        above = best[-1]
        best.append([min((max(above[k][0], share(device, k, n)), k) for k in range(n + 1)) for n in range(count + 1)])
    if best[last][count][0] > 1:
        need, room = (before[count] + sum(outside)) / 2**30, sum(capacities) / 2**30
        raise MemoryError(f"{need:.1f} GiB of weights do not fit into {room:.1f} GiB on {last + 1} devices")
    places, end = [0] * count, count
    for device in range(last, -1, -1):
        start = best[device][end][1]
        places[start:end], end = [device] * (end - start), start
    return places


def spread(backbone: Backbone, devices: Sequence[str | torch.device]) -> None:
    """Move the blocks to these devices, and let what a module is called with follow it to its own.

    Embeddings go to the first device; final norm, output layer and head to the last. An output layer that is tied to
    the embeddings stays with them, and so do its scores. Call it before a method is attached.
    """
    devices = [torch.device(device) for device in devices]
    blocks = list(backbone.modules("block").values())
    first, last = _outside(backbone, {module for block in blocks for module in block.modules()})
    sizes = (sum(map(_own_bytes, first)), sum(map(_own_bytes, last)))
    places = plan([base_bytes(block) for block in blocks], sizes, _capacities(devices, backbone.model))
    at: dict[nn.Module, torch.device] = {block: devices[place] for block, place in zip(blocks, places, strict=True)}
    at |= dict.fromkeys(first, devices[0]) | dict.fromkeys(last, devices[-1])
    if backbone.head is not None:
        at[backbone.head] = devices[-1]
    for module, device in at.items():
        module.to(device)
        module.register_forward_pre_hook(_follow(device), with_kwargs=True)


def _outside(backbone: Backbone, inside: set[nn.Module]) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules outside the blocks that hold tensors of their own: those for the first device, those for the last."""
    late = {module for site, module in backbone.map_.modules.items() if site.name in LATE}
    output = backbone.model.get_output_embeddings()
    if output is not None and output.weight is not backbone.model.get_input_embeddings().weight:
        late.add(output)
    found = [module for module in backbone.model.modules() if module not in inside and _holds_tensors(module)]
    return [module for module in found if module not in late], [module for module in found if module in late]


def _holds_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False)))


def _own_bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters(recurse=False))


def _capacities(devices: list[torch.device], model: nn.Module) -> list[int]:
    """Free bytes of GPUs; other devices are taken to hold everything."""
    whole = base_bytes(model)
    return [torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else whole for device in devices]


def _follow(device: torch.device) -> Callable:
    """A forward pre-hook that moves all tensors among the arguments of a call. Caches live with their blocks anyway."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if type(value) in (tuple, list):
            return type(value)(move(item) for item in value)
        if type(value) is dict:
            return {key: move(item) for key, item in value.items()}
        return value

    def hook(module, args, kwargs):
        return move(args), move(kwargs)

    return hook
