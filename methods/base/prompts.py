"""Prompt tokens at the input and prefixes in the attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.backbone import Backbone
from models.shape import SiteId


class KVPrefix(nn.Module):
    """Extra keys and values (KV heads, P, D) of one attention, visible to every query.

    They are appended behind the cache, so text positions do not move. A prefix in front of the text through a
    key/value cache (the form of the papers) shifts learned positions by P; for rotary networks the two differ by
    a fixed rotation of the prefix keys.
    """

    def __init__(self, heads: int, length: int, head_dim: int):
        super().__init__()
        self.key = nn.Parameter(torch.empty(heads, length, head_dim))
        self.value = nn.Parameter(torch.empty(heads, length, head_dim))

    @torch.no_grad()
    def initialise(self, std: float, rng: torch.Generator) -> None:
        for parameter in (self.key, self.value):
            parameter.copy_(torch.empty(parameter.shape).normal_(0, std, generator=rng))

    def attach(self, backbone: Backbone, core: SiteId) -> None:
        self.to(backbone.device_of(core))
        backbone.attention(core, lambda call, proceed: call.attend_with(self.key[None], self.value[None]))


class InputPrompt(nn.Module):
    """Embeddings (P, d) of prompt tokens at the input."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.rows = nn.Parameter(torch.empty(length, width))

    @torch.no_grad()
    def initialise(self, std: float, rng: torch.Generator) -> None:
        self.rows.copy_(torch.empty(self.rows.shape).normal_(0, std, generator=rng))

    def attach(self, backbone: Backbone) -> None:
        self.to(backbone.device)
        backbone.slots(len(self.rows), lambda: self.rows)

    def forward(self) -> Tensor:
        return self.rows
