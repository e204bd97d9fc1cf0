"""Bone: Block-Affine Adaptation of Large Language Models (Kang, 2024, arXiv:2409.15371), from version 12 on MiSS:
Revisiting the Trade-off in LoRA with an Efficient Shard-Sharing Structure (Kang and Yin, 2025).

The input is cut into slices of r entries, the slices are added up, and one matrix is applied to the sum:

    h = W x + b + D^T S      S = sum over g of x[g r : (g + 1) r]: (r,)      D: (r, out)

so ΔW[o, i] = D[i mod r, o]: every r-th column is the same, and the rank is at most r. Where r does not divide in, x is
padded with zeros. D starts at zero and there is no scaling factor. Only D is trained and stored, r out parameters a
site; merges exactly up to rounding. Dropout acts on x.

`mini_rank` = m is peft's "mini" form: D: (r, m), repeated along the outputs, ΔW[o, i] = D[i mod r, o mod m]; peft wants
a divisor of out, here the last copy is cut. The weight-guided form is the method `bat`. The learning rate of 2e-5 is
the papers', found without a scaling factor; they adapt all linear maps, with r = 64 at 7 billion parameters.
"""

from dataclasses import dataclass
from math import ceil

import torch.nn.functional as F
from torch import cat, empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class Bone(LinearMethod):
    name, family, paper = "bone", "lowrank", "2409.15371"
    title = "Bone: Block-Affine Adaptation of Large Language Models"
    mergeable = identity_at_init = True
    recipe = {"lr": 2e-5}
    tiny = {"rank": 8}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 64
        mini_rank: int | None = None
        dropout: float = 0.0

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.D = nn.Parameter(empty(settings.rank, settings.mini_rank or shape.out))
            self.dropout, self.shape = settings.dropout, shape

        def initialise(self, W, b, rng, found):
            self.D.zero_()

        def delta(self):
            (r, m), (out, inp, _) = self.D.shape, self.shape
            return self.D.T.repeat(ceil(out / m), ceil(inp / r))[:out, :inp]

        def forward(self, x, base):
            r, m = self.D.shape
            z = F.pad(F.dropout(x, self.dropout, self.training), (0, -self.shape.inp % r))
            y = z.unflatten(-1, (-1, r)).sum(-2) @ self.D.to(x.dtype)
            return base(x) + cat([y] * ceil(self.shape.out / m), -1)[..., : self.shape.out]

    def expected_parameters(self, shape):
        settings = self.settings
        sites = shape.at(settings.sites, settings.layers)
        return Count(sum(settings.rank * (settings.mini_rank or o) for o, _, _ in sites))
