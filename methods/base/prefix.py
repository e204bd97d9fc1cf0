"""Modules inside the attention: prefixes of keys and values, and prompts with a softmax of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base.contract import Context, Method, Plan, key
from methods.base.prompts import KVPrefix
from models.attention import AttentionCall
from models.backbone import Backbone
from models.shape import BackboneShape, BlockShape, SiteId


def attentions(shape: BackboneShape, kinds: Iterable[str] = ("attn",)) -> list[SiteId]:
    """Addresses of the attentions of these kinds (self-attention `attn`, cross-attention `cross`), in model order."""
    sites = [SiteId(part, layer, f"{kind}.core") for part, layer in shape.blocks for kind in kinds]
    return [site for site in sites if site._replace(name=site.name.replace("core", "k")) in shape.linears]


class AttentionMethod(Method):
    """A method with one module at each attention.

    A subclass makes the modules: each has `initialise(rng)`, and `module(call, proceed) -> (B, H, L, D)` (or `attend`)
    stands in the place of the attention. The module's `gate` multiplies what it changes.
    """

    def supports(self, shape: BackboneShape, task: Any) -> str | None:
        reason = super().supports(shape, task)
        return reason or (None if shape.dispatches else f"{shape.architecture} computes its attention itself")

    def make(self, site: SiteId, block: BlockShape) -> nn.Module:
        raise NotImplementedError

    def attend(self, site: SiteId, call: AttentionCall, proceed: Callable[[], Tensor]) -> Tensor:
        return self.parts[key(site)](call, proceed)

    def plan(self, shape: BackboneShape) -> Plan:
        return Plan(tuple(attentions(shape)))

    def shared(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A module that several attentions use: made once, stored once."""
        if f"shared/{name}" not in self.parts:
            self.parts[f"shared/{name}"] = make()
        return self.parts[f"shared/{name}"]

    def attach(self, backbone: Backbone, ctx: Context | None) -> None:
        self.backbone = backbone
        self.planned = self.planned if self.planned.sites else self.plan(backbone.shape)
        for site in self.planned.sites:
            with torch.device(backbone.device_of(site)):
                self.parts[key(site)] = self.make(site, backbone.shape.block(site))
        for site in self.planned.sites:
            self.parts[key(site)].gate = 1.0
            backbone.attention(site, partial(self._gated, site))

    @torch.no_grad()
    def initialise(self, backbone: Backbone, ctx: Context) -> None:
        for name, module in self.parts.items():
            module.initialise(ctx.rng(f"init/{name}"))

    def _gated(self, site: SiteId, call: AttentionCall, proceed: Callable[[], Tensor]) -> Tensor:
        """The attention, its change scaled by the module's gate."""
        gate, out = self.parts[key(site)].gate, self.attend(site, call, proceed)
        if isinstance(gate, float) and gate == 1.0:
            return out
        plain = proceed()
        return plain + gate * (out - plain)


class Prefix(KVPrefix):
    """`KVPrefix` from Normal(0, std) with dropout on both, drawn for each example."""

    def __init__(self, block: BlockShape, length: int, std: float, dropout: float):
        super().__init__(block.kv_heads, length, block.head_dim)
        self.std, self.dropout = std, dropout

    def initialise(self, rng: torch.Generator) -> None:
        super().initialise(self.std, rng)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Keys and values (KV heads, P, D)."""
        return self.key, self.value

    def forward(self, call: AttentionCall, proceed: Callable[[], Tensor]) -> Tensor:
        rows = (r.expand(len(call.q), -1, -1, -1) for r in self.rows())
        return call.attend_with(*(F.dropout(r, self.dropout, self.training) for r in rows))


def prompt_attention(call: AttentionCall, prompt: Tensor, gate: Tensor) -> Tensor:
    """gate_h softmax(scale q (A W_k + b_k)^T) (A W_v + b_v): (B, H, L, D), with the layer's own W_k and W_v.

    prompt: A (K, d), visible to every query, never rotated; gate (H,). The softmax is over the prompt alone, so the
    kernel stays fused.
    """
    rows = prompt.to(call.q.device, call.q.dtype)[None]
    k, v = (call.project(name, rows).expand(len(call.q), -1, -1, -1) for name in "kv")
    return gate.to(call.q.dtype)[:, None, None] * call.attend(call.q, k, v)
