"""LoRA: Low-Rank Adaptation of Large Language Models (Hu et al., 2021, arXiv:2106.09685).

    h = W x + b + (alpha / r) B A dropout(x)      A: (r, in)    B: (out, r)

A starts Kaiming-uniform with a = sqrt(5), that is U(-1/sqrt(in), 1/sqrt(in)), as in the authors' code (the paper
says Gaussian); B starts at zero, so the output is unchanged. Dropout acts on the input of A only. The paper adapts
the query and value projections. r (in + out) parameters a site; merges exactly up to rounding.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class LoRA(LinearMethod):
    name, family, paper = "lora", "lowrank", "2106.09685"
    title = "LoRA: Low-Rank Adaptation of Large Language Models"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 8
        alpha: float = 16.0
        dropout: float = 0.0

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.A = nn.Parameter(empty(settings.rank, shape.inp))
            self.B = nn.Parameter(empty(shape.out, settings.rank))
            self.scale, self.dropout = settings.alpha / settings.rank, settings.dropout

        def initialise(self, W, b, rng, found):
            bound = 1 / math.sqrt(self.A.shape[1])
            self.A.copy_(empty(self.A.shape).uniform_(-bound, bound, generator=rng))
            self.B.zero_()

        def delta(self):
            return self.scale * self.B @ self.A

        def forward(self, x, base):
            z = F.dropout(x, self.dropout, self.training)
            return base(x) + F.linear(F.linear(z, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(settings.rank * (i + o) for o, i, _ in shape.at(settings.sites, settings.layers)))
