"""MAP: Revisiting Weight Decomposition for Low-Rank Adaptation (Si et al., 2025, arXiv:2505.23094).

    W' = alpha W / ||W||_F + beta B A / ||B A||_F           A: (r, in)    B: (out, r)    alpha, beta: scalars of a site
    h = alpha / ||W||_F W x + b + beta / ||B A||_F B A dropout(x)

A weight is seen as one long vector: its direction, the direction of a low-rank update, and a trained length of each.
||W||_F is computed once, ||B A||_F in each pass and with a gradient, as sqrt(tr((B' B) (A A'))). alpha starts at
||W||_F and beta at 0, so the output is unchanged. alpha, beta, A and B are trained and stored, r (in + out) + 2
parameters a site. Merges exactly up to rounding; the bias is not scaled.

The starts of alpha, beta, A and B were not found in the paper's public record: they are this file's. LoRA's start B = 0
does not do, because B A / ||B A|| is then 0 / 0 and, with beta = 0, nothing would ever learn. So A and B start
Kaiming-uniform, in [-1/sqrt(in), 1/sqrt(in)] and [-1/sqrt(r), 1/sqrt(r)], beta moves first and A and B follow. For the
same reason the update is LoRA's (the paper's LoMAP) and not any method's: most of them start at zero. No LoRA scale is
left, as the update is normalised. alpha is the length itself, tens in a large network, so that Adam's steps of equal
size hardly move it; weight decay never acts on it here. Recipe and settings were not found: they are LoRA's.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class MAP(LinearMethod):
    name, family, paper = "map", "lowrank", "2505.23094"
    title = "MAP: Revisiting Weight Decomposition for Low-Rank Adaptation"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 8
        dropout: float = 0.0

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.A = nn.Parameter(empty(settings.rank, shape.inp))
            self.B = nn.Parameter(empty(shape.out, settings.rank))
            self.alpha, self.beta = nn.Parameter(empty(1)), nn.Parameter(empty(1))
            self.register_buffer("b", torch.zeros(shape.out), persistent=False)
            self.register_buffer("norm", empty(1), persistent=False)
            self.dropout = settings.dropout

        def initialise(self, W, b, rng, found):
            for factor in (self.A, self.B):
                bound = 1 / math.sqrt(factor.shape[1])
                factor.copy_(empty(factor.shape).uniform_(-bound, bound, generator=rng))
            self.norm.copy_(W.norm())
            self.alpha.copy_(self.norm)
            self.beta.zero_()
            if b is not None:
                self.b.copy_(b)

        def update_norm(self):
            """||B A||_F."""
            return ((self.B.T @ self.B) * (self.A @ self.A.T)).sum().clamp_min(1e-30).sqrt()

        def forward(self, x, base):
            y, z = base(x), F.dropout(x, self.dropout, self.training)
            scale, step = self.alpha / self.norm - 1, self.beta / self.update_norm()
            update = F.linear(F.linear(z, self.A.to(x.dtype)), self.B.to(x.dtype))
            return y + scale.to(x.dtype) * (y - self.b.to(x.dtype)) + step.to(x.dtype) * update

        def weight(self, W, b):
            return self.alpha / self.norm * W + self.beta / self.update_norm() * self.B @ self.A, b

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(settings.rank * (i + o) + 2 for o, i, _ in shape.at(settings.sites, settings.layers)))
