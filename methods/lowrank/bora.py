"""BoRA: Bi-dimensional Weight-Decomposed Low-Rank Adaptation (Wang et al., 2024, arXiv:2412.06441).

    V = W + s B A                                A: (r, in)    B: (out, r)    s = alpha / r
    H = diag(m_r / ||V||_row) V                  m_r: (out,)   norms of the rows of V
    W' = H diag(m_c / ||H||_col)                 m_c: (in,)    norms of the columns of H
    h = f * (V (g * x)) + b                      f = m_r / ||V||_row    g = m_c / ||H||_col

Both sides of W have magnitudes of their own, where DoRA has one. m_r and m_c start at the norms of the rows and columns
of W, A Kaiming-uniform in [-1/sqrt(in), 1/sqrt(in)], B at zero, so H = W' = W and the output is unchanged. Dropout acts
on the input of A only. A, B, m_r and m_c are trained and stored, r (in + out) + in + out parameters a site. The bias is
not scaled. Merges exactly up to rounding.

The paper's equations could not be had: that rows come before columns, and that no gradient flows through the norms
(as in DoRA), is taken from an independent implementation and unconfirmed. Norms are computed from V in each pass, in
fp32; V itself is not kept, since V z = W z + s B A z. No settings were found either: sites, rank, alpha, dropout and
rate are DoRA's. Weight decay never acts on vectors here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count
from methods.lowrank.lora import LoRA

TINY = 1e-30


class BoRA(LoRA):
    name, family, paper = "bora", "lowrank", "2412.06441"
    title = "BoRA: Bi-dimensional Weight-Decomposed Low-Rank Adaptation"
    mergeable = identity_at_init = True
    recipe = {"lr": 2e-4}

    @dataclass(frozen=True)
    class Settings(LoRA.Settings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down")
        rank: int = 32
        alpha: float = 64.0
        dropout: float = 0.05

    class Map(LoRA.Map):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.m_r, self.m_c = nn.Parameter(empty(shape.out)), nn.Parameter(empty(shape.inp))
            self.register_buffer("b", torch.zeros(shape.out), persistent=False)

        def initialise(self, W, b, rng, found):
            super().initialise(W, b, rng, found)
            self.m_r.copy_(W.norm(dim=1))
            self.m_c.copy_(W.norm(dim=0))
            if b is not None:
                self.b.copy_(b)

        def factors(self, W):
            """f (out,) and g (in,); the norms are constants."""
            with torch.no_grad():
                V = W + self.scale * self.B @ self.A
                rows = V.norm(dim=1).clamp_min(TINY)
                columns = (V * (self.m_r / rows)[:, None]).norm(dim=0).clamp_min(TINY)
            return self.m_r / rows, self.m_c / columns

        def forward(self, x, base):
            f, g = (factor.to(x.dtype) for factor in self.factors(self.W()))
            x = g * x
            z = F.dropout(x, self.dropout, self.training)
            change = F.linear(F.linear(z, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale
            return f * (base(x) + change) + (1 - f) * self.b.to(x.dtype)

        def weight(self, W, b):
            f, g = self.factors(W)
            return f[:, None] * (W + self.scale * self.B @ self.A) * g, b

    def expected_parameters(self, shape):
        magnitudes = sum(o + i for o, i, _ in shape.at(self.settings.sites, self.settings.layers))
        return Count(super().expected_parameters(shape).trained + magnitudes)
