"""Null-LoRA: Low-Rank Adaptation on Null Space (Zhang et al., 2025, arXiv:2512.15233).

    h = W x + b + B diag(s_1) A_f x + B_f diag(s_2) A x
    trained: B (out, r / 2), A (r / 2, in), zeros; s = (s_1, s_2) (r,), ones   frozen: A_f (r / 2, in), B_f (out, r / 2)

Cross-freezing: each trained half is paired with a frozen one, so that r / 2 (in + out) + r parameters a site give a
change of rank r. Rows of A_f are orthonormal and lie in the null space of W, columns of B_f in that of W^T. The output
is unchanged at the start; B and A get gradients at once, s from the second step on. A_f, B_f are not stored. Merges.

Pretrained matrices rarely have an exact null space beyond |in - out| dimensions on one side, so the smallest singular
directions stand in where it is too small: what A_f and B_f may use is orthogonal to all singular vectors but the last
ones. Inside it they are drawn from the seed, since its own basis would not be unique.

There is no public code, and of the paper the abstract and summaries could be read. They tell of frozen halves, the
null space of W by SVD, a scaling that balances the norms, and ranks that follow a site's nullity. This project's
choices: the trained halves are not projected; the scaling is the trained vector s, and there is no further factor; r is
the same everywhere; the start at zero; sites, rank and learning rate.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, float64, nn

from methods.base import Count, FactorMethod, LinearMap, LinearSettings
from methods.base.factors import frozen, qr, svd


def null_basis(V, size, rng):
    """(size, n), orthonormal rows orthogonal to rows of V (k, n), the last ones left out if size > n - k."""
    kept = V[: V.shape[1] - size]
    G = empty(V.shape[1], size, dtype=float64).normal_(generator=rng).to(V.device)
    return qr(G - kept.T @ (kept @ G))[0].T


class NullLoRA(FactorMethod):
    name, family, paper = "null_lora", "lowrank", "2512.15233"
    title = "Null-LoRA: Low-Rank Adaptation on Null Space"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3}
    tiny = {"rank": 8}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 16

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            half = settings.rank // 2
            self.A_f, self.B_f = frozen(half, shape.inp), frozen(shape.out, half)
            self.A, self.B = nn.Parameter(empty(half, shape.inp)), nn.Parameter(empty(shape.out, half))
            self.s = nn.Parameter(empty(2 * half))

        def initialise(self, W, b, rng, found):
            U, S, V = svd(W)
            self.A_f.copy_(null_basis(V, len(self.A), rng))
            self.B_f.copy_(null_basis(U.T, len(self.A), rng).T)
            self.A.zero_()
            self.B.zero_()
            self.s.fill_(1.0)

        def delta(self):
            s_1, s_2 = self.s.chunk(2)
            return self.B * s_1 @ self.A_f + self.B_f * s_2 @ self.A

        def forward(self, x, base):
            A_f, B_f, A, B, s = (p.to(x.dtype) for p in (self.A_f, self.B_f, self.A, self.B, self.s))
            s_1, s_2 = s.chunk(2)
            return base(x) + F.linear(F.linear(x, A_f) * s_1, B) + F.linear(F.linear(x, A) * s_2, B_f)

    def supports(self, shape, task):
        if self.settings.rank % 2:
            return f"rank {self.settings.rank} has no half: half of the rank is trained on either side"
        return super().supports(shape, task)

    def expected_parameters(self, shape):
        r = self.settings.rank
        return Count(sum(r // 2 * (i + o) + r for o, i, _ in shape.at(self.settings.sites, self.settings.layers)))
