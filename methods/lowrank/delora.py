"""DeLoRA: Decoupling Angles and Strength in Low-rank Adaptation (Bini, Girrbach, Akata, 2025, arXiv:2503.18225).

    D(A, B) = sum over i of b_i a_i' / (||b_i|| ||a_i||)            A: (r, in), rows a_i    B: (out, r), columns b_i
    h = W x + b + lambda / r (D(A, B) - D(A0, B0)) (w * dropout(x))                w: (in,), norms of the columns of W

D has norm r at most, whatever A and B are: they learn the angles, lambda the strength, a trained scalar of the site. w
is that of the pretrained W. A and B start Kaiming-uniform, in [-1/sqrt(in), 1/sqrt(in)] and [-1/sqrt(r), 1/sqrt(r)];
A0 and B0 are their starts, never trained, and take the first update away, so that the output is unchanged. A, B and
lambda are trained and stored, r (in + out) + 1 parameters a site; A0 and B0 come back from the seed. lambda has a
learning rate of its own. Merges exactly up to rounding.

The paper writes one norm of W; the authors' code and this file take the norms of its columns, to which its lambdas of
4 to 15 belong. As in the code, lambda multiplies the subtracted start too (the paper fixes it at the first lambda), so
that lambda alone changes nothing at the start. In the authors' code A0 and B0 may share memory with A and B, and the
update then stays zero; here they are copies. huggingface/peft has B = 0 and nothing to subtract, with which the first
step of Adam takes the update to its full size; its norms are cut off at 1e-4, as here. Sites, rank and rates are those
of RoBERTa-base on MNLI and SST-2, where lambda (`strength`) starts at 12.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class DeLoRA(LinearMethod):
    name, family, paper = "delora", "lowrank", "2503.18225"
    title = "Decoupling Angles and Strength in Low-rank Adaptation"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 8
        strength: float = 12.0
        strength_lr: float = 3e-3
        dropout: float = 0.0

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.A = nn.Parameter(empty(settings.rank, shape.inp))
            self.B = nn.Parameter(empty(shape.out, settings.rank))
            self.A0 = nn.Parameter(empty(settings.rank, shape.inp), requires_grad=False)
            self.B0 = nn.Parameter(empty(shape.out, settings.rank), requires_grad=False)
            self.strength = nn.Parameter(empty(1))
            self.register_buffer("w", empty(shape.inp), persistent=False)
            self.start, self.dropout = settings.strength, settings.dropout

        def initialise(self, W, b, rng, found):
            for factor, first in ((self.A, self.A0), (self.B, self.B0)):
                bound = 1 / math.sqrt(factor.shape[1])
                first.copy_(empty(factor.shape).uniform_(-bound, bound, generator=rng))
                factor.copy_(first)
            self.strength.fill_(self.start)
            self.w.copy_(W.norm(dim=0))

        @staticmethod
        def directions(A, B):
            """Rows of A and columns of B at norm 1."""
            return A / A.norm(dim=1, keepdim=True).clamp_min(1e-4), B / B.norm(dim=0, keepdim=True).clamp_min(1e-4)

        def delta(self):
            (A, B), (A0, B0) = self.directions(self.A, self.B), self.directions(self.A0, self.B0)
            return self.strength / len(A) * (B @ A - B0 @ A0) * self.w

        def forward(self, x, base):
            (A, B), (A0, B0) = self.directions(self.A, self.B), self.directions(self.A0, self.B0)
            z, dtype = F.dropout(x, self.dropout, self.training) * self.w.to(x.dtype), x.dtype
            learned = F.linear(F.linear(z, A.to(dtype)), B.to(dtype))
            at_start = F.linear(F.linear(z, A0.to(dtype)), B0.to(dtype))
            return base(x) + (self.strength / len(A)).to(dtype) * (learned - at_start)

    def parameter_groups(self, recipe):
        groups = super().parameter_groups(recipe)
        for group in groups:
            if group["params"][0].dim() == 1:
                group["lr"] = self.settings.strength_lr
        return groups

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(settings.rank * (i + o) + 1 for o, i, _ in shape.at(settings.sites, settings.layers)))
