"""NLoRA: Nystrom-Initiated Low-Rank Adaptation for Large Language Models (Guo et al., 2025, arXiv:2502.14482),
with SLoRA and IntTune.

    h = W x + b + (alpha / r) B N A x              A: (r, in)      N: (r, r)      B: (out, r)
    NLoRA, IntTune:    A = W[:r, :]      N = W[:r, :r]      B = W[:, :r]
    SLoRA:             A and N Kaiming-uniform with a = sqrt(5)      B zero

All three are trained, r (in + out) + r^2 parameters a site; in IntTune (`train_n_only`) only N, r^2, and A and B come
back from W. SLoRA is `nystrom: false`. Merges to W + (alpha / r) B N A.

As in the authors' code, N is the corner block of W itself and W is not reduced by the product, so NLoRA and IntTune
change the output at the start, by a few percent of W in language models; only SLoRA leaves it unchanged. Nystrom's
formula has the inverse of the corner: without a residual W that would add a matrix as large as W. Which of the two the
paper's text means could not be read. Sites, rank and learning rate are those of the authors' language model runs; no
dropout in them, and none here.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, FactorMethod, LinearMap, LinearSettings


class NLoRA(FactorMethod):
    name, family, paper = "nlora", "lowrank", "2502.14482"
    title = "NLoRA: Nystrom-Initiated Low-Rank Adaptation for Large Language Models"
    mergeable = True
    recipe = {"lr": 2e-4, "schedule": "cosine", "warmup": 0.03}
    tiny = {"rank": 4, "alpha": 4.0}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 128
        alpha: float = 128.0
        nystrom: bool = True
        train_n_only: bool = False

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            outer = not settings.train_n_only
            self.A = nn.Parameter(empty(settings.rank, shape.inp), requires_grad=outer)
            self.N = nn.Parameter(empty(settings.rank, settings.rank))
            self.B = nn.Parameter(empty(shape.out, settings.rank), requires_grad=outer)
            self.scale, self.nystrom = settings.alpha / settings.rank, settings.nystrom

        def initialise(self, W, b, rng, found):
            r = len(self.N)
            if self.nystrom:
                self.A.copy_(W[:r])
                self.N.copy_(W[:r, :r])
                self.B.copy_(W[:, :r])
            else:
                for factor in (self.A, self.N):
                    bound = 1 / math.sqrt(factor.shape[1])
                    factor.copy_(empty(factor.shape).uniform_(-bound, bound, generator=rng))
                self.B.zero_()

        def delta(self):
            return self.scale * self.B @ self.N @ self.A

        def forward(self, x, base):
            z = F.linear(F.linear(x, self.A.to(x.dtype)), self.N.to(x.dtype))
            return base(x) + F.linear(z, self.B.to(x.dtype)) * self.scale

    def supports(self, shape, task):
        if self.settings.train_n_only and not self.settings.nystrom:
            return "with B at zero, N by itself would never get a gradient: train_n_only needs nystrom"
        return super().supports(shape, task)

    def expected_parameters(self, shape):
        r, outer = self.settings.rank, not self.settings.train_n_only
        sites = shape.at(self.settings.sites, self.settings.layers)
        return Count(sum(r * r + outer * r * (i + o) for o, i, _ in sites))
