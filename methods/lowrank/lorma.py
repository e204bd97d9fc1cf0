"""LoRMA: Low-Rank Multiplicative Adaptation for LLMs (Bihany, Patel, Modi, 2025, arXiv:2506.07621).

    "plus":  h = (I + s B A) W x + b       A: (r, out)    B: (out, r)    s = alpha / r
    "pi":    h = s pi(B A) W x + b         pi(M)[i, j] = M[i, (j - i) mod out]

W is multiplied from the left. pi turns row i of the product by i places to the right, which lifts its rank from r to as
much as out. Start of "plus": A Kaiming-uniform in [-1/sqrt(out), 1/sqrt(out)], B zero. Start of "pi": A zero but for
A[0, 0] = 1, B uniform in [-1/sqrt(r), 1/sqrt(r)] but for a first column of ones, both divided by sqrt(s), so that
s pi(B A) = I. Both leave the output unchanged. Dropout acts on x and so on W x as well, as in the authors' code. Only A
and B are trained and stored, 2 r out parameters a site. Merges exactly up to rounding; the bias stays as it is.

Weight decay draws "pi" to W' = 0 and not to W. Here A and B act on W x, which costs 2 r out operations a token ("pi":
out^2); the authors build W' in each pass, B (A W). They recommend s = 1 or 1/2; alpha is r here. Their other order,
W (I + s B A), and a plain B A without inflation are left out, as is GPT-2's transposed layout, in which their
left product falls on the input side: here it is the output side of every network.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class LoRMA(LinearMethod):
    name, family, paper = "lorma", "lowrank", "2506.07621"
    title = "LoRMA: Low-Rank Multiplicative Adaptation for LLMs"
    mergeable = identity_at_init = True
    recipe = {"lr": 4e-4, "weight_decay": 0.1}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 8
        alpha: float = 8.0
        variant: str = "plus"
        dropout: float = 0.0

        def __post_init__(self):
            if self.variant not in ("plus", "pi"):
                raise ValueError(f"variant must be 'plus' or 'pi', not '{self.variant}'")

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.A = nn.Parameter(empty(settings.rank, shape.out))
            self.B = nn.Parameter(empty(shape.out, settings.rank))
            self.register_buffer("b", torch.zeros(shape.out), persistent=False)
            self.scale, self.dropout = settings.alpha / settings.rank, settings.dropout

        def initialise(self, W, b, rng, found):
            bound = 1 / math.sqrt(self.A.shape[1])
            self.A.copy_(empty(self.A.shape).uniform_(-bound, bound, generator=rng))
            self.B.zero_()
            if b is not None:
                self.b.copy_(b)

        def change(self, y):
            """s B A y for y = W x."""
            return F.linear(F.linear(y, self.A.to(y.dtype)), self.B.to(y.dtype)) * self.scale

        def forward(self, x, base):
            y = base(F.dropout(x, self.dropout, self.training))
            return y + self.change(y - self.b.to(y.dtype))

        def weight(self, W, b):
            return W + self.scale * self.B @ (self.A @ W), b

    class PiMap(Map):
        def initialise(self, W, b, rng, found):
            super().initialise(W, b, rng, found)
            bound = 1 / math.sqrt(self.B.shape[1])
            self.B.copy_(empty(self.B.shape).uniform_(-bound, bound, generator=rng))
            self.B[:, 0] = 1.0
            self.A.zero_()
            self.A[0, 0] = 1.0
            self.A /= math.sqrt(self.scale)
            self.B /= math.sqrt(self.scale)

        def multiplier(self):
            """s pi(B A), (out, out)."""
            n = torch.arange(len(self.B), device=self.B.device)
            return self.scale * (self.B @ self.A).gather(1, (n - n[:, None]) % len(n))

        def change(self, y):
            M = self.multiplier()
            return F.linear(y, (M - torch.eye(len(M), device=M.device)).to(y.dtype))

        def weight(self, W, b):
            return self.multiplier() @ W, b

    def make_map(self, site, shape):
        kind = {"plus": self.Map, "pi": self.PiMap}[self.settings.variant]
        return kind(shape, self.settings, self.shared)

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(2 * settings.rank * out for out, _, _ in shape.at(settings.sites, settings.layers)))
