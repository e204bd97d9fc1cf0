"""Weight deltas and other maps of a linear map, one module a site."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base.contract import Context, Count, MergeReport, Method, Plan, key
from methods.base.settings import LinearSettings
from models.backbone import Backbone
from models.shape import BackboneShape, LinearShape, SiteId


class LinearMap(nn.Module):
    """A learned change of y = W x + b at one site; W is (out, in), x is (..., in).

    A subclass allocates its parameters in `__init__`, gives them values in `initialise`, and says either `delta`
    (for W' = W + ΔW) or `forward` and `weight`. `gate` multiplies the contribution; `merged` switches it off. Once
    attached, `W()` is the pretrained weight (out, in) as it stands, without grad and not kept twice.
    """

    gate: float = 1.0
    merged: bool = False
    site: SiteId
    W: Callable[[], Tensor]

    def __init__(self, shape: LinearShape, settings: Any, shared: Callable[[str, Callable], Any]):
        super().__init__()

    def initialise(self, W: Tensor, b: Tensor | None, rng: torch.Generator, found: Any) -> None:
        """Values. W, b: the pretrained weights, not to be changed; found: what `calibrate` stored for this site."""

    def delta(self) -> Tensor:
        """ΔW (out, in), for additive maps."""
        raise NotImplementedError(f"{type(self).__name__} is not additive: it must define forward and weight")

    def forward(self, x: Tensor, base: Callable[[Tensor], Tensor]) -> Tensor:
        """y for x; `base(x)` is W x + b."""
        return base(x) + F.linear(x, self.delta().to(x.dtype))

    def through_weight(self, x: Tensor, base: Callable[[Tensor], Tensor]) -> Tensor:
        """y for x by one product with W + ΔW, for a ΔW that has to be formed anyway: `forward` may return this.

        Two products, as by default, where something else is attached to the site, where W is a slice of a fused weight
        or is quantised, and in types so short that adding to W would round ΔW away.
        """
        linear = base.args[0] if isinstance(base, partial) and base.func is nn.Linear.forward else None
        if linear is None or x.dtype not in (torch.float32, torch.float64) or linear.weight.dtype != x.dtype:
            return base(x) + F.linear(x, self.delta().to(x.dtype))
        if torch.is_autocast_enabled(x.device.type):
            return base(x) + F.linear(x, self.delta())
        return F.linear(x, linear.weight + self.delta(), linear.bias)

    def weight(self, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W' and b' that compute the same, in fp32."""
        return W + self.delta(), b

    def merged_weight(self, W: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """W' and b' with the contribution scaled by `gate`, as in the forward pass."""
        weight, bias = self.weight(W, b)
        if isinstance(self.gate, float) and self.gate == 1.0:
            return weight, bias
        b = 0.0 if b is None else b
        bias = bias if bias is None else b + self.gate * (bias - b)
        return W + self.gate * (weight - W), bias


class LinearMethod(Method):
    """A method that puts one `Map` at each of its linear sites; merging and counting come with it."""

    Settings = LinearSettings
    Map: type[LinearMap]

    def supports(self, shape: BackboneShape, task: Any) -> str | None:
        reason = super().supports(shape, task)
        if reason is None and not self.plan(shape).sites:
            return f"{shape.architecture} has none of the sites {', '.join(self.settings.sites)}"
        return reason

    def plan(self, shape: BackboneShape) -> Plan:
        return Plan(tuple(shape.find(self.settings.sites, self.settings.layers)))

    def attach(self, backbone: Backbone, ctx: Context | None) -> None:
        self.backbone = backbone
        self.planned = self.planned if self.planned.sites else self.plan(backbone.shape)
        for site in map(backbone.site, self.planned.sites):
            with torch.device(backbone.device_of(site.id)):
                self.parts[key(site.id)] = self.make_map(site.id, site.shape)
        for site_id, module in self.maps().items():
            site = backbone.site(site_id)
            module.W = site.weight
            backbone.map(site, module)

    def make_map(self, site: SiteId, shape: LinearShape) -> LinearMap:
        """The map of one site."""
        return self.Map(shape, self.settings, self.shared)

    def maps(self) -> dict[SiteId, LinearMap]:
        """The attached maps by site."""
        return {site: self.parts[key(site)] for site in self.planned.sites}

    def shared(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A module that several sites use: made once, stored once."""
        if f"shared/{name}" not in self.parts:
            self.parts[f"shared/{name}"] = make()
        return self.parts[f"shared/{name}"]

    @torch.no_grad()
    def initialise(self, backbone: Backbone, ctx: Context) -> None:
        for site_id, module in self.maps().items():
            site = backbone.site(site_id)
            bias = site.bias()
            module.initialise(
                site.weight().float(),
                None if bias is None else bias.float(),
                ctx.rng(f"init/{site_id}"),
                self.found.get(site_id),
            )

    @torch.no_grad()
    def merge(self) -> MergeReport:
        error = 0.0
        for site_id, module in self.maps().items():
            site, bias = self.backbone.site(site_id), self.backbone.site(site_id).bias()
            weight, new_bias = module.merged_weight(site.weight().float(), None if bias is None else bias.float())
            self.backbone.write(site, weight, new_bias, merging=True)
            error = max(error, (site.weight().float() - weight).abs().max().item())
            module.merged = True
        return MergeReport(self.planned.sites, error)

    def unmerge(self) -> None:
        self.backbone.unmerge()
        for module in self.maps().values():
            module.merged = False

    def expected_parameters(self, shape: BackboneShape) -> Count:
        raise NotImplementedError(f"{self.name} must state its parameter count in closed form")
