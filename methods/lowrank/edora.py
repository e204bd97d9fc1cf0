"""EDoRA: Efficient Weight-Decomposed Low-Rank Adaptation via Singular Value Decomposition
(Nasiri and Garraghan, 2025, arXiv:2501.12067).

    W = U diag(S) V                                U: (out, k)    S: (k,), falling    V: (k, in)    k = min(out, in)
    W' = W + (alpha / r) B R A                     A = diag(S[:r]) V[:r]: (r, in)    B = U[:, :r]: (out, r)    R: (r, r)
    h = m / |W'| * (W' x) + b                      m: (out,)    |W'|: (out,), the norm of each row, no gradient

Trained and stored: R and the magnitudes m, r^2 + out parameters a site; A and B are frozen and come back from W, as
in LoRA-XS. R starts from Normal(0, sigma^2) and m at |W|, so the output is nearly unchanged. b is never scaled.
Merges to m / |W'| * W'.

The norms need no product of the size of W: rows of U and V being orthonormal, W' is the sum of
U_r (I + (alpha / r) R) diag(S_r) V_r and of what the first r components leave of W, and the two are orthogonal. Row
norms of the rest are kept, r^2 out operations a step remain. The authors decay R and m by 0.01 a step; no weight
decay here. Sites and the exact SVD are those of LoRA-XS; per-task learning rates of the paper were not to be had.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, FactorMethod, LinearMap, LinearSettings
from methods.base.factors import frozen, svd


class EDoRA(FactorMethod):
    name, family, paper = "edora", "lowrank", "2501.12067"
    title = "EDoRA: Efficient Weight-Decomposed Low-Rank Adaptation via Singular Value Decomposition"
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
            self.S, self.rest, self.b = frozen(settings.rank), frozen(shape.out), frozen(shape.out)
            self.R = nn.Parameter(empty(settings.rank, settings.rank))
            self.m = nn.Parameter(empty(shape.out))
            self.scale, self.sigma = settings.alpha / settings.rank, settings.sigma

        def initialise(self, W, b, rng, found):
            U, S, V = svd(W)
            r = len(self.R)
            self.A.copy_(S[:r, None] * V[:r])
            self.B.copy_(U[:, :r])
            self.S.copy_(S[:r])
            self.rest.copy_((U[:, r:] * S[r:]).norm(dim=1))
            self.b.copy_(torch.zeros_like(self.b) if b is None else b)
            self.R.copy_(empty(r, r).normal_(0, self.sigma, generator=rng))
            self.m.copy_(W.norm(dim=1))

        @torch.no_grad()
        def norm(self):
            """|W'| (out,)."""
            kept = (self.B + self.scale * self.B @ self.R) * self.S
            return (self.rest**2 + kept.square().sum(1)).sqrt()

        def forward(self, x, base):
            g, b = (self.m / self.norm()).to(x.dtype), self.b.to(x.dtype)
            z = F.linear(F.linear(x, self.A.to(x.dtype)), self.R.to(x.dtype))
            return g * (base(x) - b + F.linear(z, self.B.to(x.dtype)) * self.scale) + b

        def weight(self, W, b):
            return (self.m / self.norm())[:, None] * (W + self.scale * self.B @ self.R @ self.A), b

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(settings.rank**2 + out for out, _, _ in shape.at(settings.sites, settings.layers)))
