"""HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models
(Huang et al., 2025, ICLR; not on arXiv, OpenReview TwJrTz9cRS).

    h = W x + b + (W * (B A)) x      A: (r, in)    B: (out, r)    *: entry by entry

The product with W gives the change a high rank at LoRA's count. A starts Kaiming-uniform in [-1/sqrt(in), 1/sqrt(in)],
B at zero, so the output is unchanged (the paper calls the zero factor A and the other B). There is no alpha. Trained
and stored: A and B, r (in + out) parameters a site. Merges exactly up to rounding: W (1 + B A).

W * (B A) is formed in full in every pass, as by the authors. Gradients reach B A through W, and the change is
multiplied by W again, so rates have to be far above LoRA's, and an entry of W that is zero stays zero. The authors
configure a dropout but never apply it; peft applies it to the input of the branch; here is none. Sites are theirs for
Llama, rank 32 and the rate are those of the paper's text (a table of its appendix says 1e-4 and 2e-4).
"""

import math
from dataclasses import dataclass

from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class HiRA(LinearMethod):
    name, family, paper = "hira", "lowrank", "openreview:TwJrTz9cRS"
    title = "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation for Large Language Models"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down")
        rank: int = 32

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.A = nn.Parameter(empty(settings.rank, shape.inp))
            self.B = nn.Parameter(empty(shape.out, settings.rank))

        def initialise(self, W, b, rng, found):
            bound = 1 / math.sqrt(self.A.shape[1])
            self.A.copy_(empty(self.A.shape).uniform_(-bound, bound, generator=rng))
            self.B.zero_()

        def delta(self):
            return self.W() * (self.B @ self.A)

        def forward(self, x, base):
            return self.through_weight(x, base)

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(settings.rank * (i + o) for o, i, _ in shape.at(settings.sites, settings.layers)))
