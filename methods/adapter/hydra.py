"""Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning (Kim et al., 2023, arXiv:2309.06922).

    h = W x + b,    y = h + s [B_p (A_p x + a_p) + b_p] + s [B_s (A_s h + a_s) + b_s]
    A_p: (r_p, in)    B_p: (out, r_p)    A_s: (r_s, out)    B_s: (out, r_s)

A parallel branch reads the input of a linear map, a sequential one its frozen output h, bias included and without the
parallel branch. A_p and A_s start Xavier-uniform, all else at zero, so the output is unchanged. Trained and stored:
both branches, r_p (in + out) + 2 r_s out a site, and r_p + r_s + 2 out biases. Merges exactly up to rounding:

    W' = W + s (B_p A_p + B_s A_s W)        b' = b + s (B_p a_p + b_p) + s (B_s (A_s b + a_s) + b_s)

The defaults are the authors' VTAB-1k runs on ViT: the last linear map of attention and feed-forward, r = 2, with
biases. There s (0.1 to 4.5) and a dropout between A and B (0, 0.1 or 0.2) are chosen a task; s = 1 without dropout as
here is what their GLUE and CLIP runs use. GLUE: sites mlp.down, r_p = 4, r_s = 8, no biases, A Kaiming-uniform. Where
the map itself has no bias (Llama, T5) the branches have none. The authors' merging of ViT builds the attention's weight
from the feed-forward's: the formula above is derived anew. The rate is the most frequent one of the VTAB runs, beside a
weight decay of 1e-4.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class Hydra(LinearMethod):
    name, family, paper = "hydra", "adapter", "2309.06922"
    title = "Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.o", "mlp.down")
        parallel_rank: int = 2
        sequential_rank: int = 2
        scale: float = 1.0
        bias: bool = True
        dropout: float = 0.0

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            biases = settings.bias and shape.bias
            self.A_p = nn.Linear(shape.inp, settings.parallel_rank, bias=biases)
            self.B_p = nn.Linear(settings.parallel_rank, shape.out, bias=biases)
            self.A_s = nn.Linear(shape.out, settings.sequential_rank, bias=biases)
            self.B_s = nn.Linear(settings.sequential_rank, shape.out, bias=biases)
            self.scale, self.dropout = settings.scale, settings.dropout

        def initialise(self, W, b, rng, found):
            for parameter in self.parameters():
                parameter.zero_()
            for A in (self.A_p.weight, self.A_s.weight):
                bound = math.sqrt(6 / sum(A.shape))
                A.copy_(empty(A.shape).uniform_(-bound, bound, generator=rng))

        def branch(self, A, B, x):
            hidden = F.dropout(A(x.to(A.weight.dtype)), self.dropout, self.training)
            return (self.scale * B(hidden)).to(x.dtype)

        def forward(self, x, base):
            h = base(x)
            return h + self.branch(self.A_p, self.B_p, x) + self.branch(self.A_s, self.B_s, h)

        def weight(self, W, b):
            parallel, sequential = self.B_p.weight @ self.A_p.weight, self.B_s.weight @ self.A_s.weight
            W = W + self.scale * (parallel + sequential @ W)
            if self.A_p.bias is None:
                return W, None if b is None else b + self.scale * sequential @ b
            return W, b + self.scale * (self.B_p(self.A_p.bias) + self.B_s(self.A_s(b)))

    def expected_parameters(self, shape):
        settings, total = self.settings, 0
        p, s = settings.parallel_rank, settings.sequential_rank
        for out, inp, bias in shape.at(settings.sites, settings.layers):
            total += p * (inp + out) + 2 * s * out + (p + s + 2 * out if settings.bias and bias else 0)
        return Count(total)
