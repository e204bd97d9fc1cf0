"""R-Adapter: Efficient and Versatile Robust Fine-Tuning of Zero-shot Models (Kim et al., 2024, arXiv:2408.05749).

    H = X W + b,    training:  H + g H W_adp,  g = 0 with probability p, else 1 / (1 - p)      W_adp: (d, d), or B A
                    else:      H + alpha H W~,  W~ <- m W~ + (1 - m) W_adp after each step     B: (d, r)  A: (r, d)

Rows are tokens. A linear adapter without bias follows the last linear map of attention and feed-forward of each block,
before the residual is added, and ensembles itself: it is dropped at random, averaged over the steps, and scaled by
alpha towards the pretrained network. W_adp is trained; its average W~ is what is evaluated and stored, d^2 parameters a
site (2 d r with a rank). Merges exactly up to rounding: W (I + alpha W~), b (I + alpha W~). The output is unchanged at
the start: W_adp (of two factors the last) starts at zero, B Kaiming-uniform.

The paper adapts both encoders of CLIP with a contrastive loss over image-text pairs; here the task's own loss is used,
since a classifier has no text encoder. Full rank is the paper's main form, the low rank its few-shot form. alpha = 0.5
is that of classification (0.8 retrieval, 0.4 segmentation). As in the authors' code there is no bias, W_adp starts at
zero, and the average starts as a copy, is not corrected for its start, and is taken factor by factor. That code departs
from the formula above, which is the paper's: it scales the adapter by a trained number of its own from 0.1, draws g for
each entry of the first axis instead of for an adapter, and starts B Xavier-uniform. After T steps W~ still holds m^T of
its start: in runs of a few hundred steps m = 0.999 hardly leaves the pretrained network. The rate is the paper's, there
with a cosine schedule.
"""

import math
from dataclasses import dataclass

import torch
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class RAdapter(LinearMethod):
    name, family, paper = "r_adapter", "adapter", "2408.05749"
    title = "Efficient and Versatile Robust Fine-Tuning of Zero-shot Models"
    mergeable = identity_at_init = True
    recipe = {"lr": 5e-4}
    tiny = {"m": 0.5}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.o", "mlp.down")
        rank: int | None = None
        p: float = 0.2
        m: float = 0.999
        alpha: float = 0.5

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            d, r = shape.out, settings.rank
            sizes = [(d, d)] if r is None else [(d, r), (r, d)]
            self.factors = nn.ParameterList(nn.Parameter(empty(size)) for size in sizes)
            for i, size in enumerate(sizes):
                self.register_buffer(f"average{i}", empty(size))
            self.alpha, self.g = settings.alpha, 1.0

        def averages(self):
            return [getattr(self, f"average{i}") for i in range(len(self.factors))]

        def initialise(self, W, b, rng, found):
            for factor in self.factors[:-1]:
                bound = 1 / math.sqrt(len(factor))
                factor.copy_(empty(factor.shape).uniform_(-bound, bound, generator=rng))
            self.factors[-1].zero_()
            self.restart()

        @torch.no_grad()
        def restart(self):
            """W~ <- W_adp."""
            for average, factor in zip(self.averages(), self.factors, strict=True):
                average.copy_(factor)

        @torch.no_grad()
        def average(self, m):
            """W~ <- m W~ + (1 - m) W_adp."""
            for average, factor in zip(self.averages(), self.factors, strict=True):
                average.mul_(m).add_(factor, alpha=1 - m)

        def adapt(self, rows, factors):
            for factor in factors:
                rows = rows @ factor.to(rows.dtype)
            return rows

        def forward(self, x, base):
            h = base(x)
            if self.training:
                return h + self.g * self.adapt(h, self.factors)
            return h + self.alpha * self.adapt(h, self.averages())

        def weight(self, W, b):
            W = W + self.alpha * self.adapt(W.T, self.averages()).T
            return W, None if b is None else b + self.alpha * self.adapt(b, self.averages())

    def on_step_start(self, step, ctx):
        p, maps = self.settings.p, self.maps().values()
        draws = torch.rand(len(maps), generator=ctx.rng("drop")).tolist()
        for module, draw in zip(maps, draws, strict=True):
            module.g = 0.0 if draw < p else 1 / (1 - p)

    def on_step(self, step, ctx):
        for module in self.maps().values():
            module.average(self.settings.m)

    def state_dict(self):
        names = {id(factor): name for name, factor in self.parts.named_parameters()}
        pairs = [pair for m in self.maps().values() for pair in zip(m.factors, m.averages(), strict=True)]
        return {names[id(factor)]: average.clone() for factor, average in pairs}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        for module in self.maps().values():
            module.restart()

    def expected_parameters(self, shape):
        r, sites = self.settings.rank, shape.at(self.settings.sites, self.settings.layers)
        return Count(sum(d * d if r is None else 2 * d * r for d, _, _ in sites))
