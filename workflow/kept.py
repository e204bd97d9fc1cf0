"""What cells of one job load once: the data of their task, and the network, as it was before a method was attached."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch

from methods.base import Method
from models.backbone import Backbone

LARGEST = 1 << 31  # bytes of a network that is kept: to look at a larger one costs more than to load it


class Kept:
    """Data and network of the last cell, for the next one that asks for the same.

    A network is handed on only if its method says that it leaves the weights alone, and only if they are then found
    bit for bit as they were loaded. Otherwise the next cell loads it again.
    """

    def __init__(self):
        self._data: tuple[Any, Any] | None = None
        self._network: tuple[Any, Backbone] | None = None
        self._loaded: tuple[Any, int] | None = None

    def data(self, key: Any, load: Callable[[], Any]) -> Any:
        if self._data is None or self._data[0] != key:
            self._data = key, load()
        return self._data[1]

    def network(self, key: Any, load: Callable[[], Backbone]) -> tuple[Backbone, bool]:
        """The network, and whether it was there already. It is not kept any more until it is given back."""
        kept, self._network = self._network, None
        if kept is not None and kept[0] == key:
            return kept[1], True
        kept = None
        backbone = load()
        small = sum(p.nbytes for p in backbone.model.parameters()) <= LARGEST
        self._loaded = (key, checksum(backbone)) if small else None
        return backbone, False

    def give_back(self, key: Any, backbone: Backbone, method: Method) -> None:
        """After a cell: detach the method and keep the network, if it is what it was."""
        if method.edits_base != "no" or self._loaded is None:
            return
        method.detach()
        if self._loaded == (key, checksum(backbone)):
            self._network = key, backbone


def checksum(backbone: Backbone) -> int:
    """CRC-32 over all weights and buffers, and over the classes of the modules, which hooks change."""
    found = 0
    for module in backbone.model.modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        found = zlib.crc32(f"{type(module)}{hooks}".encode(), found)
    for tensor in (*backbone.model.parameters(), *backbone.model.buffers()):
        found = zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy(), found)
    return found
