"""PMSS: Pretrained Matrices Skeleton Selection for LLM Fine-tuning (Wang et al., 2024, arXiv:2409.16722).

    h = W x + b + s C U R x        C = W[:, J]: (out, r)    R = W[I, :]: (r, in)    U: (r, r), zeros

C and R, the skeleton, are r columns and r rows of the pretrained W itself and stay frozen; only U is trained and
stored, r^2 parameters a site, and gives an update of rank up to r. U starts at zero, so the output is unchanged; it
gets a gradient from the first step. C and R come back from W. Merges to W + s C U R.

The authors' code is not public and of the paper only the abstract could be read, so these are this project's choices:
J are the columns that QR with column pivoting of W takes first, I those of W^T; U starts at zero; s = 1; all linear
maps of a block; rank and learning rate. C and R hold raw weights, so that C U R is small beside U.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, FactorMethod, LinearMap, LinearSettings
from methods.base.factors import frozen, pivoted_qr


class PMSS(FactorMethod):
    name, family, paper = "pmss", "lowrank", "2409.16722"
    title = "PMSS: Pretrained Matrices Skeleton Selection for LLM Fine-tuning"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3}
    tiny = {"rank": 8}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 64
        scale: float = 1.0

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.C, self.R = frozen(shape.out, settings.rank), frozen(settings.rank, shape.inp)
            self.U = nn.Parameter(empty(settings.rank, settings.rank))
            self.scale = settings.scale

        def initialise(self, W, b, rng, found):
            columns, rows = pivoted_qr(W, len(self.U))[2], pivoted_qr(W.T, len(self.U))[2]
            self.C.copy_(W[:, columns])
            self.R.copy_(W[rows])
            self.U.zero_()

        def delta(self):
            return self.scale * self.C @ self.U @ self.R

        def forward(self, x, base):
            z = F.linear(F.linear(x, self.R.to(x.dtype)), self.U.to(x.dtype))
            return base(x) + F.linear(z, self.C.to(x.dtype)) * self.scale

    def expected_parameters(self, shape):
        sites = shape.find(self.settings.sites, self.settings.layers)
        return Count(self.settings.rank**2 * len(sites))
