"""LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition for Parameter-Efficient Fine-Tuning
(Shi et al., 2024, arXiv:2410.13618).

    W = P L diag(D) U              P L: (out, k)    D: (k,)    U: (k, in)    k = min(out, in)    r <= k
    W' = W_res + sigma P L_r diag(z) U_r           W_res = W - (alpha / rank) P L_r diag(D_r) U_r
       = W + P L_r diag(sigma z - (alpha / rank) D_r) U_r

L (unit lower triangular), U (unit upper triangular) and the permutation P come from LU with partial pivoting; L_r, U_r
are the first r columns and rows, in the order of elimination and not of size. Trained and stored: z, r numbers a
site, from D_r, and with `train_scale` also sigma, from alpha / rank. The output is unchanged at the start. The factors
are frozen and come back from W. Merges to W'.

W_res and the part taken out of it are one sum here, the last line above: the same function, exactly W at the start.
In the authors' code sigma is a parameter that their selection does not train; whether the paper's runs train it is not
confirmed. Its default rank 768 is all of W in a network of that width, and r = min(rank, k) here; its other starts of z
are left out. No learning rate or list of sites is published: those here are this project's choice. A singular W has no
such factors and is refused.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings
from methods.base.factors import frozen, ldu


class LoLDU(LinearMethod):
    name, family, paper = "loldu", "lowrank", "2410.13618"
    title = "LoLDU: Low-Rank Adaptation via Lower-Diag-Upper Decomposition for Parameter-Efficient Fine-Tuning"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-2}
    tiny = {"rank": 16, "alpha": 4.0}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 768
        alpha: float = 1.0
        train_scale: bool = False

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            r = min(settings.rank, *shape[:2])
            self.PL, self.D, self.U = frozen(shape.out, r), frozen(r), frozen(r, shape.inp)
            self.z = nn.Parameter(empty(r))
            self.sigma = nn.Parameter(empty(1), requires_grad=settings.train_scale)
            self.scale = settings.alpha / settings.rank

        def initialise(self, W, b, rng, found):
            PL, D, U = ldu(W)
            r = len(self.z)
            self.PL.copy_(PL[:, :r])
            self.D.copy_(D[:r])
            self.U.copy_(U[:r])
            self.z.copy_(self.D)
            self.sigma.fill_(self.scale)

        def diagonal(self):
            return self.sigma * self.z - self.scale * self.D

        def delta(self):
            return self.PL * self.diagonal() @ self.U

        def forward(self, x, base):
            z = F.linear(x, self.U.to(x.dtype)) * self.diagonal().to(x.dtype)
            return base(x) + F.linear(z, self.PL.to(x.dtype))

    def expected_parameters(self, shape):
        rank, scale = self.settings.rank, self.settings.train_scale
        sites = shape.at(self.settings.sites, self.settings.layers)
        return Count(sum(min(rank, o, i) + scale for o, i, _ in sites))
