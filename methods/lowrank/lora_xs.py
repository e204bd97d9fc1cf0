"""LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters (Balazy et al., 2024, arXiv:2405.17604).

    W = U diag(S) V                                U: (out, k)    S: (k,), falling    V: (k, in)    k = min(out, in)
    h = W x + b + (alpha / r) B R A x              A = diag(S[:r]) V[:r]: (r, in)    B = U[:, :r]: (out, r)    R: (r, r)

Only R is trained and stored, r^2 parameters a site whatever its size; A and B are frozen and come back from W. All
singular values are in A, on the side of the input: in B they would make another method. R starts from
Normal(0, sigma^2), so the output is nearly unchanged. Merges to W + (alpha / r) B R A.

Sites are those of the authors' GLUE runs on RoBERTa (all linear maps of a block in Llama, Mistral and Gemma). The
authors decompose W with a randomised SVD of ten iterations; here it is exact. They start MRPC, RTE and STS-B from an
MNLI model of the same rank. No dropout in any of their runs, and none here.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, FactorMethod, LinearMap, LinearSettings
from methods.base.factors import frozen, svd


class LoRAXS(FactorMethod):
    name, family, paper = "lora_xs", "lowrank", "2405.17604"
    title = "LoRA-XS: Low-Rank Adaptation with Extremely Small Number of Parameters"
    mergeable = True
    recipe = {"lr": 1e-3}
    tiny = {"rank": 8}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.v", "attn.o", "mlp.down")
        rank: int = 16
        alpha: float = 16.0
        sigma: float = 1e-5

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.A, self.B = frozen(settings.rank, shape.inp), frozen(shape.out, settings.rank)
            self.R = nn.Parameter(empty(settings.rank, settings.rank))
            self.scale, self.sigma = settings.alpha / settings.rank, settings.sigma

        def initialise(self, W, b, rng, found):
            U, S, V = svd(W)
            r = len(self.R)
            self.A.copy_(S[:r, None] * V[:r])
            self.B.copy_(U[:, :r])
            self.R.copy_(empty(r, r).normal_(0, self.sigma, generator=rng))

        def delta(self):
            return self.scale * self.B @ self.R @ self.A

        def forward(self, x, base):
            z = F.linear(F.linear(x, self.A.to(x.dtype)), self.R.to(x.dtype))
            return base(x) + F.linear(z, self.B.to(x.dtype)) * self.scale

    def expected_parameters(self, shape):
        sites = shape.find(self.settings.sites, self.settings.layers)
        return Count(self.settings.rank**2 * len(sites))
