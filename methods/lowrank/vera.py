"""VeRA: Vector-based Random Matrix Adaptation (Kopiczko, Blankevoort and Asano, 2023, arXiv:2310.11454).

    h = W x + bias + diag(b) B diag(d) A dropout(x)      A: (r, in)    B: (out, r)    d: (r,)    b: (out,)

A and B are one frozen random pair for all sites; d and b are trained at each site. A and B start Kaiming-uniform
(bounds sqrt(6 / in) and sqrt(6 / r)), d at 0.1, b at zero, so the output is unchanged and d gets its first gradient
after b has moved. There is no alpha / r. r may exceed the width: 1024 on RoBERTa-base and Llama, 256 on
RoBERTa-large and ViT. The paper adapts query and value (Llama: every linear map) and gives the head a learning rate
of its own. out + r parameters a site; A and B come back from the seed. Merges exactly up to rounding.

The paper has sites of one shape only. For others, as in peft: A is (r, largest in), B is (largest out, r), drawn
once, and a smaller site uses the leading columns of A and rows of B. peft stores A and B unless told not to.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearSettings, SharedMethod, kaiming_uniform


class VeRA(SharedMethod):
    name, family, paper = "vera", "lowrank", "2310.11454"
    title = "VeRA: Vector-based Random Matrix Adaptation"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-2, "head_lr": 4e-3}
    tiny = {"rank": 16}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 1024
        d_initial: float = 0.1
        dropout: float = 0.0

    class Map(LinearMap):
        def __init__(self, shape, settings, bases):
            super().__init__(shape, settings, bases)
            self.bases, self.inp, self.out = bases, shape.inp, shape.out
            self.d, self.b = nn.Parameter(empty(settings.rank)), nn.Parameter(empty(shape.out))
            self.d_initial, self.dropout = settings.d_initial, settings.dropout

        def initialise(self, W, b, rng, found):
            self.d.fill_(self.d_initial)
            self.b.zero_()

        def slices(self):
            return self.bases.A[:, : self.inp], self.bases.B[: self.out]

        def delta(self):
            A, B = self.slices()
            return (self.b[:, None] * B) @ (self.d[:, None] * A)

        def forward(self, x, base):
            A, B = self.slices()
            z = self.d.to(x.dtype) * F.linear(F.dropout(x, self.dropout, self.training), A.to(x.dtype))
            return base(x) + self.b.to(x.dtype) * F.linear(z, B.to(x.dtype))

    def make_map(self, site, shape):
        r, widest = self.settings.rank, self.widest
        bases = self.bases(site, "AB", kaiming_uniform, A=(r, widest.inp), B=(widest.out, r))
        return self.Map(shape, self.settings, bases)

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(out + settings.rank for out, _, _ in shape.at(settings.sites, settings.layers)))
