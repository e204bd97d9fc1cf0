"""RepAdapter: Towards Efficient Visual Adaption via Structural Re-parameterization
(Luo et al., 2023, arXiv:2302.08106).

    z = x + s (U dropout(D x + a) + b)      D: (r, d)    U: (d, r) block-diagonal, g blocks of (d/g, r/g)
    y = W z + w                             W: every linear map that x feeds

A linear adapter in front of the query, key and value projections of every block, and another one in front of the
feed-forward ("repblock"; with the sites of the attention alone, "repattn"). The maps of one branch share it. D starts
Xavier-uniform, U and both biases at zero, so the output is unchanged; s is chosen for each task from 0.1, 0.5, 1, 5 and
10. Merges exactly: W <- W + s (W U) D, w <- w + s W (U a + b). Trained and stored: d r + d r / g + r + d an adapter.

Where one of the maps has no bias (Llama, T5, ...), a and b are left out, so that merging adds nothing. Each map
computes z by itself, so that in training q, k and v draw their dropout apart; the paper's code computes it once. In a
post-norm block only the branch sees z, the residual does not. Cross-attention gets none: its query and its keys have
different inputs. The paper's count of 0.22M for ViT-B/16 leaves the biases out (221,184), its code has 239,808; its
drop-path of 0.1 is the network's affair. Its tables show the best accuracy on test of every tenth epoch.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings, Plan
from methods.base.contract import key


class Adapter(nn.Module):
    """z = x + s (U dropout(D x + a) + b). U is kept as its blocks on top of one another, (d, r / g)."""

    def __init__(self, width, bias, settings):
        super().__init__()
        r, g = settings.rank, settings.groups
        self.D, self.U = nn.Parameter(empty(r, width)), nn.Parameter(empty(width, r // g))
        self.a, self.b = (nn.Parameter(empty(size)) if bias else None for size in (r, width))
        self.groups, self.scale, self.dropout = g, settings.scale, settings.dropout

    def initialise(self, rng):
        for parameter in self.parameters():
            parameter.zero_()
        self.D.copy_(nn.init.xavier_uniform_(empty(self.D.shape), generator=rng))

    def forward(self, x):
        D, U, a, b = (p if p is None else p.to(x.dtype) for p in (self.D, self.U, self.a, self.b))
        u = F.dropout(F.linear(x, D, a), self.dropout, self.training).unflatten(-1, (self.groups, -1))
        change = torch.einsum("...gi,goi->...go", u, U.unflatten(0, (self.groups, -1))).flatten(-2)
        return x + self.scale * (change if b is None else change + b)

    def fold(self, W, w):
        U = torch.block_diag(*self.U.chunk(self.groups))
        bias = w if self.b is None else w + self.scale * W @ (U @ self.a + self.b)
        return W + self.scale * (W @ U) @ self.D, bias


class RepAdapter(LinearMethod):
    name, family, paper = "repadapter", "adapter", "2302.08106"
    title = "Towards Efficient Visual Adaption via Structural Re-parameterization"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "mlp.up", "mlp.gate")
        rank: int = 8
        groups: int = 2
        scale: float = 1.0
        dropout: float = 0.1

    class Map(LinearMap):
        def __init__(self, shape, settings, adapter):
            super().__init__(shape, settings, adapter)
            self.adapter = adapter

        def forward(self, x, base):
            return base(self.adapter(x))

        def weight(self, W, b):
            return self.adapter.fold(W, b)

    def supports(self, shape, task):
        first, groups = ("attn.q", "attn.k", "attn.v", "mlp.up", "mlp.gate"), self.settings.groups
        if other := set(self.settings.sites) - set(first):
            return f"an adapter stands in front of {', '.join(first)}, not of {', '.join(sorted(other))}"
        sizes = {self.settings.rank} | {inp for _, inp, _ in shape.at(self.settings.sites, self.settings.layers)}
        if uneven := [size for size in sorted(sizes) if size % groups]:
            return f"{uneven[0]} is not divisible into {groups} groups"
        return super().supports(shape, task)

    def plan(self, shape):
        groups = {}
        for site in shape.find(self.settings.sites, self.settings.layers):
            branch = key(site._replace(name=site.name.split(".")[0]))
            groups[branch] = (*groups.get(branch, ()), site)
        return Plan(tuple(site for sites in groups.values() for site in sites), groups=groups)

    def make_map(self, site, shape):
        branch = key(site._replace(name=site.name.split(".")[0]))
        bias = all(self.backbone.shape.linears[s].bias for s in self.planned.groups[branch])
        adapter = self.shared(branch, lambda: Adapter(shape.inp, bias, self.settings))
        return self.Map(shape, self.settings, adapter)

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            if isinstance(module, Adapter):
                module.initialise(ctx.rng(f"init/{name}"))

    def expected_parameters(self, shape):
        r, g, count = self.settings.rank, self.settings.groups, 0
        for sites in self.plan(shape).groups.values():
            d, bias = shape.linears[sites[0]].inp, all(shape.linears[site].bias for site in sites)
            count += d * r + d * r // g + (r + d) * bias
        return Count(count)
