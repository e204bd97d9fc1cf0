"""Bottleneck adapters at the end of a branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base.contract import Context, Method, Plan, key
from models.backbone import Backbone
from models.shape import BackboneShape, SiteId

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


class Bottleneck(nn.Module):
    """scale (W2 act(W1 x + b1) + b2) with W1 (m, d) and W2 (d, m); 2 d m + m + d parameters. No skip of its own.

    dropout acts on the m activated units. `site` is where the module was attached.
    """

    site: SiteId

    def __init__(self, width: int, size: int, activation: str, scale: float = 1.0, dropout: float = 0.0):
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        self.activation = ACTIVATIONS[activation]
        self.scale, self.dropout = scale, dropout
        self.gate: float | Tensor = 1.0

    @torch.no_grad()
    def initialise(self, std: float, rng: torch.Generator) -> None:
        """Weights from Normal(0, std) truncated at two standard deviations, biases zero."""
        for linear in (self.down, self.up):
            values = nn.init.trunc_normal_(
                torch.empty(linear.weight.shape), std=std, a=-2 * std, b=2 * std, generator=rng
            )
            linear.weight.copy_(values)
            linear.bias.zero_()

    @torch.no_grad()
    def initialise_as_lora(self, rng: torch.Generator) -> None:
        """W1 Kaiming-uniform in [-1 / sqrt(d), 1 / sqrt(d)], W2 and the biases zero: at the start it gives nothing."""
        self.down.weight.copy_(nn.init.kaiming_uniform_(torch.empty(self.down.weight.shape), a=5**0.5, generator=rng))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            zero.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) -> (..., d), computed in fp32 outside autocast and returned in the type of x."""
        hidden = self.activation(self.down(x.to(self.down.weight.dtype)))
        hidden = F.dropout(hidden, self.dropout, self.training)
        return (self.up(hidden) * (self.scale * self.gate)).to(x.dtype)


class BottleneckMethod(Method):
    """A method with one adapter module at the end of each chosen branch of each block.

    A subclass says which branches (`branches`), makes a module (`make`) and combines it (`combine`).
    """

    def branches(self) -> tuple[str, ...]:
        return ("attn", "mlp")

    def make(self, width: int) -> nn.Module:
        raise NotImplementedError

    def combine(self, module: nn.Module, x: Tensor, y: Tensor, residual: Tensor) -> Tensor:
        """x, y, residual as in `Backbone.branch`; serial by default: y + adapter(y)."""
        return y + module(y)

    def plan(self, shape: BackboneShape) -> Plan:
        layers = getattr(self.settings, "layers", None)
        blocks = [b for b in shape.blocks if layers is None or b[1] in layers]
        return Plan(tuple(SiteId(part, layer, name) for part, layer in blocks for name in self.branches()))

    def attach(self, backbone: Backbone, ctx: Context | None) -> None:
        self.backbone = backbone
        self.planned = self.planned if self.planned.sites else self.plan(backbone.shape)
        for site in self.planned.sites:
            with torch.device(backbone.device_of(site)):
                self.parts[key(site)] = self.make(backbone.shape.block(site).width)
            self.parts[key(site)].site = site
        for site in self.planned.sites:
            backbone.branch(site, site.name, self._function(self.parts[key(site)]))

    def _function(self, module: nn.Module) -> Callable[..., Any]:
        return lambda x, y, residual: self.combine(module, x, y, residual)


class ParallelBottleneckMethod(BottleneckMethod):
    """One adapter beside the feed-forward branch of each chosen block: it reads the residual stream that the branch's
    output y joins, y' = y + adapter(residual)."""

    def branches(self) -> tuple[str, ...]:
        return ("mlp",)

    def combine(self, module: nn.Module, x: Tensor, y: Tensor, residual: Tensor) -> Tensor:
        return y + module(residual)
