"""ABBA: Highly Expressive Hadamard Product Adaptation for Large Language Models
(Singhal, Ponkshe et al., 2025, arXiv:2505.14238).

    h = W x + b + s ((B1 A1) * (B2 A2)) x      A1: (r1, in)    B1: (out, r1)    A2: (r2, in)    B2: (out, r2)
    s = alpha^2 / sqrt(r1 r2)                  *: entry by entry

The change has rank up to r1 r2. It is never formed in training: with the products of rows of the factors (Khatri-Rao)
K_B[o, (j, k)] = B1[o, j] B2[o, k] and K_A[(j, k), i] = A1[j, i] A2[k, i] it is s K_B K_A, of r1 r2 activations a token.
B1 A1 starts as the best rank-r1 approximation of W, B1 = U sqrt(S) and A1 = sqrt(S) V^T, by a randomised SVD of ten
rounds as in the authors' code; W is left whole. A2 starts Kaiming-uniform with gain sqrt(2), in [-sqrt(6/in),
sqrt(6/in)], B2 at zero, so the output is unchanged and only B2 has a gradient in the first step. Trained and stored:
all four, (r1 + r2)(in + out) parameters a site; at r1 = r2 = r / 2 as many as LoRA of rank r. Merges exactly up to
rounding. Needs r1 <= min(in, out).

s is the paper's; the authors' code has s = alpha, which is the same where alpha = sqrt(r1 r2), as by default here.
Their scripts give both pairs the full rank instead of half of it; their dropout is never applied, so there is none.
Sites and rate are theirs.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings
from methods.base.factors import fast_svd


class ABBA(LinearMethod):
    name, family, paper = "abba", "lowrank", "2505.14238"
    title = "ABBA: Highly Expressive Hadamard Product Adaptation for Large Language Models"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        r1: int = 16
        r2: int = 16
        alpha: float = 16.0

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.B1, self.A1 = nn.Parameter(empty(shape.out, settings.r1)), nn.Parameter(empty(settings.r1, shape.inp))
            self.B2, self.A2 = nn.Parameter(empty(shape.out, settings.r2)), nn.Parameter(empty(settings.r2, shape.inp))
            self.scale = settings.alpha**2 / math.sqrt(settings.r1 * settings.r2)

        def initialise(self, W, b, rng, found):
            U, S, V = fast_svd(W, len(self.A1), niter=10, rng=rng)
            self.B1.copy_(U * S.sqrt())
            self.A1.copy_(S.sqrt()[:, None] * V)
            bound = math.sqrt(6 / self.A2.shape[1])
            self.A2.copy_(empty(self.A2.shape).uniform_(-bound, bound, generator=rng))
            self.B2.zero_()

        def delta(self):
            return self.scale * (self.B1 @ self.A1) * (self.B2 @ self.A2)

        def forward(self, x, base):
            K_B = (self.B1[:, :, None] * self.B2[:, None, :]).flatten(1)
            K_A = (self.A1[:, None, :] * self.A2[None, :, :]).flatten(0, 1)
            return base(x) + F.linear(F.linear(x, K_A.to(x.dtype)), K_B.to(x.dtype)) * self.scale

    def supports(self, shape, task):
        settings = self.settings
        smallest = min((min(o, i) for o, i, _ in shape.at(settings.sites, settings.layers)), default=None)
        if smallest is not None and settings.r1 > smallest:
            return f"r1 = {settings.r1} exceeds the {smallest} singular values of a site"
        return super().supports(shape, task)

    def expected_parameters(self, shape):
        settings = self.settings
        both = settings.r1 + settings.r2
        return Count(sum(both * (i + o) for o, i, _ in shape.at(settings.sites, settings.layers)))
