"""RandLoRA: Full-Rank Parameter-Efficient Fine-Tuning of Large Models
(Albert, Zhang, Saratchandran, Rodriguez-Opazo, van den Hengel and Abbasnejad, 2025, arXiv:2502.00987).

    h = W x + bias + (scale / sqrt(n)) ΔW dropout(x)      ΔW = sum_j B_j diag(lambda_j) A diag(gamma_j),  j = 1 .. n
    D = max(out, in)    d = min(out, in)    n = ceil(d / r)      ΔW is (D, d), transposed where out < in
    A: (r, d)    B_j: (D, r)    lambda_j: (r,)    gamma_j: (d,)

A and all B_j are one frozen random set for the whole network, of which a site uses the leading part; lambda and gamma
are trained at each site, n (r + d) parameters, fewer with a larger r. lambda starts at zero and gamma at 1 / max(n, d),
so the output is unchanged, and ΔW can reach full rank. Entries of A and B are uniform and divided by their standard
deviation, as in the authors' code. They come back from the seed. Merges exactly up to rounding.

Defaults are those of RoBERTa-base (r 64, on every linear map; large: r 100); Llama has r 6 to 15, dropout 0.05 and no
output projection. scale is 2 in the paper's work on language (alpha / r with alpha = 2 r); vision uses 10 / r without
the root. peft says alpha / r with r 32 and alpha 640 and no root; its B_j are these with columns permuted, and it
takes n from the largest out and in of all sites rather than from the largest d, which makes its B larger, not
different. In this order of multiplication autograd keeps A, lambda and gamma only, where the authors have a function
of their own.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearSettings, SharedMethod


def unit_uniform(shape, rng):
    drawn = empty(shape).uniform_(-1, 1, generator=rng)
    return drawn / drawn.std()


class RandLoRA(SharedMethod):
    name, family, paper = "randlora", "lowrank", "2502.00987"
    title = "RandLoRA: Full-Rank Parameter-Efficient Fine-Tuning of Large Models"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-4}
    tiny = {"rank": 8}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down")
        rank: int = 64
        scale: float = 2.0
        dropout: float = 0.0

    class Map(LinearMap):
        def __init__(self, shape, settings, bases):
            super().__init__(shape, settings, bases)
            self.bases, self.wide = bases, shape.out < shape.inp
            self.D, self.d = max(shape[:2]), min(shape[:2])
            self.n = math.ceil(self.d / settings.rank)
            self.lambda_, self.gamma = nn.Parameter(empty(self.n, settings.rank)), nn.Parameter(empty(self.n, self.d))
            self.scale, self.dropout = settings.scale / math.sqrt(self.n), settings.dropout

        def initialise(self, W, b, rng, found):
            self.lambda_.zero_()
            self.gamma.fill_(1 / max(self.gamma.shape))

        def factors(self):
            """The (in, n r)-side and the (n r, out)-side of ΔW, as weights of two linear maps."""
            B = self.bases.B[: self.D, : self.n].flatten(1)
            A = (self.lambda_[:, :, None] * self.gamma[:, None, :]) * self.bases.A[:, : self.d]
            A = A.flatten(0, 1)
            return (B.T, A.T) if self.wide else (A, B)

        def delta(self):
            first, second = self.factors()
            return self.scale * second @ first

        def forward(self, x, base):
            first, second = (factor.to(x.dtype) for factor in self.factors())
            return base(x) + F.linear(F.linear(F.dropout(x, self.dropout, self.training), first), second) * self.scale

    def make_map(self, site, shape):
        r, shapes = self.settings.rank, [self.backbone.shape.linears[s] for s in self.planned.sites]
        D, d = max(max(s[:2]) for s in shapes), max(min(s[:2]) for s in shapes)
        bases = self.bases(site, "AB", unit_uniform, A=(r, d), B=(D, math.ceil(d / r), r))
        return self.Map(shape, self.settings, bases)

    def expected_parameters(self, shape):
        r, sizes = self.settings.rank, shape.at(self.settings.sites, self.settings.layers)
        smaller = [min(out, inp) for out, inp, _ in sizes]
        return Count(sum(math.ceil(d / r) * (r + d) for d in smaller))
