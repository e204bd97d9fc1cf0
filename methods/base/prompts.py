"""Prompt tokens at the input and prefixes in the attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from methods.base.contract import Context, Count, Method
from models.backbone import Backbone
from models.shape import BackboneShape, SiteId


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


class PromptMethod(Method):
    """Prompt tokens in every input, as many as `settings.tokens`; a subclass gives their values in `initialise`."""

    def supports(self, shape: BackboneShape, task: Any) -> str | None:
        reason = super().supports(shape, task)
        if reason is None and shape.first_slot is None:
            return f"prompt tokens do not fit into the windows of {shape.architecture}"
        if reason is None and shape.kind != "vision" and 0 < shape.tokens <= self.settings.tokens:
            return f"{self.settings.tokens} prompt tokens leave no room: {shape.architecture} reads {shape.tokens}"
        return reason

    def make(self, width: int) -> nn.Module:
        """The module that gives the tokens (P, d) when it is called."""
        return InputPrompt(self.settings.tokens, width)

    def rows(self) -> Tensor:
        """What is inserted, (P, d) or (B, P, d)."""
        return self.parts["prompt"]()

    def attach(self, backbone: Backbone, ctx: Context | None) -> None:
        self.backbone = backbone
        with torch.device(backbone.device):
            self.parts["prompt"] = self.make(backbone.shape.embedding_width)
        backbone.slots(self.settings.tokens, self.rows)

    def expected_parameters(self, shape: BackboneShape) -> Count:
        return Count(self.settings.tokens * shape.embedding_width)


@torch.no_grad()
def embedded(backbone: Backbone, ids: Tensor) -> Tensor:
    """Embeddings (..., d) of token ids in fp32 as the network reads them, scaled where it scales them."""
    part = "encoder" if backbone.kind == "encoder_decoder" else ""
    (table,) = backbone.modules("embed.token", part).values()
    with backbone.disabled():
        return table(ids.to(table.weight.device)).float()


def sampled(backbone: Backbone, count: int, first: int, rng: torch.Generator) -> Tensor:
    """Embeddings (count, d) of different tokens, drawn among the `first` ids of the vocabulary."""
    return embedded(backbone, torch.randperm(min(first, backbone.shape.vocab), generator=rng)[:count])


def token_bound(backbone: Backbone) -> float:
    """v of the start of VPT's prompts, Uniform(-v, v): sqrt(6 / (3 P P + d)), Xavier's for the patch embedding.

    Text has no patches: there P = 16 as in ViT-B/16.
    """
    found = [module for site, module in backbone.map_.modules.items() if site.name == "embed.patch"]
    inputs = found[0].weight[0].numel() if found else 3 * 16 * 16
    return (6 / (inputs + backbone.shape.embedding_width)) ** 0.5
