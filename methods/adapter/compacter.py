"""Compacter: Efficient Low-Rank Hypercomplex Adapter Layers
(Karimi Mahabadi, Henderson and Ruder, 2021, arXiv:2106.04647).

    y <- y + gelu(y H_down + b_down) H_up + b_up      H_down: (d, m)    H_up: (m, d)    m = d / reduction
    H = sum_i A_i kron (s_i t_i)                      A_i: (n, n)    s_i: (in / n, rank)    t_i: (rank, out / n)

Two adapters a block, on the output of the attention and of the feed-forward branch; cross-attention gets none. The n
matrices A_i are one tensor for the whole network, both projections of every adapter; s, t and b are each projection's
own. A starts from Normal(0, 1e-4), every s_i and t_i Xavier-uniform with gain sqrt(2), biases at zero: the output is
only nearly unchanged (H is about 2e-5). GELU in its tanh form. H is built in fp32, rank at most n^2 rank. Trained and
stored: s, t, b, A and every layer norm of the backbone; 2 rank (d + m) + d + m an adapter, n^3 once, and the norms.
Not mergeable. d and m must be multiples of n.

The paper's formula leaves out biases and norms, its percentages count them. Rate and reduction are those of the T5
runs (500 warm-up steps, batch 100, 3 to 20 epochs, no weight decay). The branch is read before its output dropout, in
BERT before its norm. AdapterHub's version differs: s and t Xavier-normal with gain 1, the norms frozen, and in its
"++" the place of `pfeiffer`, and GELU in its exact form. peft has no such adapter.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.adapter.houlsby import Houlsby
from methods.base import Count
from methods.base.shared import Factors


class PHMLinear(nn.Module):
    """x H + b for x (..., in); the rule A (n, n, n) belongs to all of them."""

    def __init__(self, rule, inp, out, n, rank):
        super().__init__()
        self.rule = rule
        self.s, self.t = nn.Parameter(empty(n, inp // n, rank)), nn.Parameter(empty(n, rank, out // n))
        self.b = nn.Parameter(empty(out))

    @torch.no_grad()
    def initialise(self, rng):
        for factor in (*self.s, *self.t):
            factor.copy_(nn.init.xavier_uniform_(empty(factor.shape), gain=2**0.5, generator=rng))
        self.b.zero_()

    def H(self):
        """(in, out), multiplied entry by entry, which autocast leaves in full precision."""
        A, st = self.rule.A.to(self.s.device), (self.s[..., None] * self.t[:, None]).sum(2)
        return (A[:, :, None, :, None] * st[:, None, :, None]).sum(0).flatten(2, 3).flatten(0, 1)

    def forward(self, x):
        return F.linear(x, self.H().T, self.b)


class HyperComplexAdapter(nn.Module):
    gate = 1.0

    def __init__(self, rule, width, size, n, rank):
        super().__init__()
        self.down, self.up = PHMLinear(rule, width, size, n, rank), PHMLinear(rule, size, width, n, rank)

    def initialise(self, rng):
        self.down.initialise(rng)
        self.up.initialise(rng)

    def forward(self, x):
        hidden = F.gelu(self.down(x.to(self.down.b.dtype)), approximate="tanh")
        return (self.up(hidden) * self.gate).to(x.dtype)


class Compacter(Houlsby):
    name, family, paper = "compacter", "adapter", "2106.04647"
    title = "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers"
    recipe = {"lr": 3e-3}
    tiny = {"reduction": 4}

    @dataclass(frozen=True)
    class Settings:
        reduction: int = 32
        n: int = 4
        rank: int = 1
        rule_std: float = 1e-4
        train_norms: bool = True
        layers: tuple[int, ...] | None = None

    def supports(self, shape, task):
        n, reduction = self.settings.n, self.settings.reduction
        for d in {block.width for block in shape.blocks.values()}:
            if d % n or d // reduction % n or d < reduction:
                return f"width {d} and bottleneck {d // reduction} must be multiples of n = {n}"
        return super().supports(shape, task)

    def make(self, width):
        settings = self.settings
        return HyperComplexAdapter(self.parts["rule"], width, width // settings.reduction, settings.n, settings.rank)

    def attach(self, backbone, ctx):
        with torch.device(backbone.device):
            self.parts["rule"] = Factors("rule", self.draw_rule, {"A": (self.settings.n,) * 3})
        super().attach(backbone, ctx)

    def draw_rule(self, shape, rng):
        return empty(shape).normal_(0, self.settings.rule_std, generator=rng)

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            module.initialise(ctx.rng(f"init/{name}"))

    def expected_parameters(self, shape):
        settings, widths = self.settings, [shape.block(site).width for site in self.plan(shape).sites]
        adapters = sum((2 * settings.rank + 1) * (d + d // settings.reduction) for d in widths) + settings.n**3
        norms = sum(size * (1 + bias) for size, bias in shape.norms.values()) if settings.train_norms else 0
        return Count(trained=adapters + norms, added=adapters)
