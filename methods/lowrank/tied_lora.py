"""Tied-LoRA: Enhancing parameter efficiency of LoRA with Weight Tying
(Renduchintala, Konuk and Kuchaiev, 2023, arXiv:2311.09578).

    h = W_l x + b_l + (alpha / r) diag(v_l) B diag(u_l) A dropout(x)      A: (r, in)    B: (3 d, r)
                                                                          u_l: (r,)     v_l: (3 d,)

One pair A, B for all layers, u_l and v_l for each. The paper adapts the fused query-key-value projection (in = d,
out = 3 d). Here q, k and v are sites of their own: with `fused` they read one A and, in a layer, one u, and each has
its rows of B and v, which is the same map. Other sites, and q, k and v without `fused` (the reading of VB-LoRA's
baseline), have a pair for each kind of site and shape and a u and a v at each site.

`trained` says which of A, B, u and v are trained: all of them by default, the paper's recommended form (TL6); u and v
alone are the corner that VeRA is. A starts as in LoRA, U(-1/sqrt(in), 1/sqrt(in)). Where B is trained it starts at
zero and v at one; where it is frozen it is Kaiming-uniform and v starts at zero; u starts at one. So the output is
unchanged. This start, and rank, alpha and learning rate, could not be confirmed: there is no official code.
4 d r + L (r + 3 d) parameters; what is frozen comes back from the seed. Merges exactly up to rounding.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearSettings, SharedMethod, constant, kaiming_uniform
from methods.base.contract import key


class TiedLoRA(SharedMethod):
    name, family, paper = "tied_lora", "lowrank", "2311.09578"
    title = "Tied-LoRA: Enhancing parameter efficiency of LoRA with Weight Tying"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v")
        rank: int = 8
        alpha: float = 16.0
        dropout: float = 0.0
        trained: tuple[str, ...] = ("A", "B", "u", "v")
        fused: bool = True

    class Map(LinearMap):
        def __init__(self, shape, settings, tied):
            super().__init__(shape, settings, tied)
            self.A, self.B, self.u = tied["A"], tied["B"], tied["u"]
            self.v = nn.Parameter(empty(shape.out), requires_grad="v" in settings.trained)
            self.v_initial = float("B" in settings.trained)
            self.scale, self.dropout = settings.alpha / settings.rank, settings.dropout

        def initialise(self, W, b, rng, found):
            self.v.fill_(self.v_initial)

        def delta(self):
            A, B, u = (t.to(self.v) for t in (self.A.weight, self.B.weight, self.u.weight))
            return self.scale * (self.v[:, None] * B) @ (u[:, None] * A)

        def forward(self, x, base):
            A, B, u, v = (t.to(x) for t in (self.A.weight, self.B.weight, self.u.weight, self.v))
            z = u * F.linear(F.dropout(x, self.dropout, self.training), A)
            return base(x) + self.scale * v * F.linear(z, B)

    def supports(self, shape, task):
        unknown = set(self.settings.trained) - set("ABuv")
        reason = f"`trained` may name A, B, u and v, not {', '.join(sorted(unknown))}"
        return reason if unknown else super().supports(shape, task)

    def names(self, site, shape):
        """Names of the A, B and u that a site reads."""
        kind = site.name.replace(".", "/")
        fused = self.settings.fused and site.name.endswith((".q", ".k", ".v"))
        group = f"{kind[:-2]}/qkv" if fused else kind
        u = key(site._replace(name=group))
        return {"A": f"A/{group}/{shape.inp}", "B": f"B/{kind}/{shape.out}x{shape.inp}", "u": f"u/{u}"}

    def make_map(self, site, shape):
        r, trained = self.settings.rank, self.settings.trained
        sizes = {"A": (r, shape.inp), "B": (shape.out, r), "u": (r,)}
        starts = {
            "A": partial(kaiming_uniform, a=math.sqrt(5)),
            "B": constant(0.0) if "B" in trained else kaiming_uniform,
            "u": constant(1.0),
        }
        tied = {}
        for name, place in self.names(site, shape).items():
            make = self.factors if name in trained else self.bases
            tied[name] = make(site, place, starts[name], weight=sizes[name])
        return self.Map(shape, self.settings, tied)

    def expected_parameters(self, shape):
        r, numbers = self.settings.rank, {name: {} for name in "ABuv"}
        for site in self.plan(shape).sites:
            out, inp, _ = shape.linears[site]
            names = self.names(site, shape.linears[site])
            numbers["A"][names["A"]], numbers["B"][names["B"]] = r * inp, r * out
            numbers["u"][names["u"]], numbers["v"][site] = r, out
        return Count(sum(sum(numbers[name].values()) for name in self.settings.trained))
