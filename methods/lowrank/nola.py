"""NOLA: Compressing LoRA using Linear Combination of Random Basis
(Koohpayegani, Navaneet, Nooralinejad, Kolouri and Pirsiavash, 2023, arXiv:2310.02556).

    h = W x + bias + (lora_alpha / r) B A dropout(x)
    A = A_0 + sum_i alpha_i A_i      A_i: (r, in), frozen, U(-1, 1) / sqrt(k)      alpha: (k,)
    B = sum_j beta_j B_j             B_j: (out, r), frozen, U(-1, 1) / sqrt(k)     beta: (k,)

Only alpha and beta are trained: 2 k parameters a site, whatever its shape and rank. Both start at zero, so the output
is unchanged. The paper writes A without A_0; then nothing would ever learn. The authors' code for language models
has the frozen A_0, U(-1/sqrt(in), 1/sqrt(in)) as in LoRA, which gives beta its first gradient; this is that code
(its version for ViT has none, and constant alpha and beta instead). Defaults are those of GPT-2 medium on query and
value; Llama: r 16, lora_alpha 4, every linear map. Merges exactly up to rounding, from the composed factors.

The authors draw another basis for each site and draw it again from its seed in every forward and backward pass. Here
sites of equal width share a basis, as in the authors' ViT, which is kept in memory once, 4 k r bytes for each of the
distinct widths in and out; A_0 is a site's own. All of it comes back from the seed.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearSettings, SharedMethod, kaiming_uniform


class NOLA(SharedMethod):
    name, family, paper = "nola", "lowrank", "2310.02556"
    title = "NOLA: Compressing LoRA using Linear Combination of Random Basis"
    mergeable = identity_at_init = True
    recipe = {"lr": 5e-3}
    tiny = {"num_basis": 64}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 8
        lora_alpha: float = 8.0
        num_basis: int = 512
        dropout: float = 0.0

    class Map(LinearMap):
        def __init__(self, shape, settings, bases):
            super().__init__(shape, settings, bases)
            self.basis_A, self.basis_B = bases
            self.register_buffer("A_0", empty(settings.rank, shape.inp), persistent=False)
            self.alpha, self.beta = (nn.Parameter(empty(settings.num_basis)) for _ in range(2))
            self.scale, self.dropout = settings.lora_alpha / settings.rank, settings.dropout

        def initialise(self, W, b, rng, found):
            self.A_0.copy_(kaiming_uniform(self.A_0.shape, rng, a=math.sqrt(5)))
            self.alpha.zero_()
            self.beta.zero_()

        def compose(self):
            """A (r, in) and B (out, r)."""
            A = self.A_0 + torch.tensordot(self.alpha, self.basis_A.weight, 1)
            return A, torch.tensordot(self.beta, self.basis_B.weight, 1)

        def delta(self):
            A, B = self.compose()
            return self.scale * B @ A

        def forward(self, x, base):
            A, B = (factor.to(x.dtype) for factor in self.compose())
            return base(x) + F.linear(F.linear(F.dropout(x, self.dropout, self.training), A), B) * self.scale

    def make_map(self, site, shape):
        k, r = self.settings.num_basis, self.settings.rank

        def uniform(shape, rng):
            return empty(shape).uniform_(-1, 1, generator=rng) / math.sqrt(k)

        bases = (
            self.bases(site, f"A/{shape.inp}", uniform, weight=(k, r, shape.inp)),
            self.bases(site, f"B/{shape.out}", uniform, weight=(k, shape.out, r)),
        )
        return self.Map(shape, self.settings, bases)

    def expected_parameters(self, shape):
        return Count(2 * self.settings.num_basis * len(self.plan(shape).sites))
