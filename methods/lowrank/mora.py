"""MoRA: High-Rank Updating for Parameter-Efficient Fine-Tuning (Jiang et al., 2024, arXiv:2405.12130).

    h = W x + b + decompress(M compress(x))      M: (s, s), s = sqrt((in + out) r)

One square matrix of the size of a LoRA of rank r, between two operators without parameters. x is continued with its own
first entries to n = ceil(in / s) blocks x_0 ... x_{n-1} of s entries, and

    rotation   y = [M R_0 x_0, M R_1 x_1, ...]   R_i turns the pair (j, j + s/2) by the angle i 10000^(-2j/s)
    sharing    y = [M (x_0 + x_1 + ...)]

y is cut to `out` entries, or repeated where it is shorter. Rotation (equation 9; type 6 of the authors' code) is meant
for small r and reaches the rank min(in, out); sharing (equation 6; type 1) for large r, of rank s at most. The types in
between are not here: the authors advise these two.

M starts at zero and the scale is 1. Only M is trained and stored; both operators are linear, so it merges exactly up to
rounding. s is rounded to the nearest integer as in the authors' code (the paper says down), and then down to an even
one for rotation. Where in > out rotation never reads the blocks beyond `out`, as in their code. Dropout acts on x. All
linear maps are adapted.
"""

from dataclasses import dataclass
from math import ceil, sqrt
from typing import Literal

import torch
import torch.nn.functional as F
from torch import cat, empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


def side(shape, settings):
    """s, the rows and columns of M."""
    s = int(sqrt((shape.inp + shape.out) * settings.rank) + 0.5)
    return s - s % 2 if settings.operator == "rotation" else s


class MoRA(LinearMethod):
    name, family, paper = "mora", "lowrank", "2405.12130"
    title = "MoRA: High-Rank Updating for Parameter-Efficient Fine-Tuning"
    mergeable = identity_at_init = True
    recipe = {"lr": 3e-4}
    tiny = {"rank": 2}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 8
        operator: Literal["rotation", "sharing"] = "rotation"
        dropout: float = 0.05

    class Sharing(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            s = side(shape, settings)
            self.M = nn.Parameter(empty(s, s))
            self.dropout, self.shape = settings.dropout, shape

        def initialise(self, W, b, rng, found):
            self.M.zero_()

        def compress(self, blocks):
            """(..., n, s) -> (..., 1, s)"""
            return blocks.sum(-2, keepdim=True)

        def update(self, x):
            """ΔW x for x (..., in)."""
            s = len(self.M)
            blocks = cat([x, x[..., : -self.shape.inp % s]], -1).unflatten(-1, (-1, s))
            y = F.linear(self.compress(blocks), self.M.to(x.dtype)).flatten(-2)
            return cat([y] * ceil(self.shape.out / y.shape[-1]), -1)[..., : self.shape.out]

        def delta(self):
            return self.update(torch.eye(self.shape.inp, dtype=self.M.dtype, device=self.M.device)).T

        def forward(self, x, base):
            return base(x) + self.update(F.dropout(x, self.dropout, self.training))

    class Rotation(Sharing):
        def compress(self, blocks):
            """(..., n, s) -> (..., n, s), each block turned by its place."""
            n, s = blocks.shape[-2:]
            speed = 10000.0 ** (-torch.arange(0, s, 2, device=blocks.device) / s)
            angle = torch.arange(n, device=blocks.device)[:, None] * speed
            cos, sin = angle.cos().to(blocks.dtype), angle.sin().to(blocks.dtype)
            first, second = blocks.chunk(2, -1)
            return cat([first * cos - second * sin, second * cos + first * sin], -1)

    def make_map(self, site, shape):
        kind = self.Rotation if self.settings.operator == "rotation" else self.Sharing
        return kind(shape, self.settings, self.shared)

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(side(site, settings) ** 2 for site in shape.at(settings.sites, settings.layers)))
