"""DoRA: Weight-Decomposed Low-Rank Adaptation (Liu et al., 2024, arXiv:2402.09353).

    W' = c * (W + s B A)      c = m / ||W + s B A||: (out,)      s = alpha / r
    h = W x + b + (c - 1) * W z + c * s B A z                    z = dropout(x)

m (out,) is the magnitude of each row, A (r, in) and B (out, r) change its direction. m starts at the norms of the rows
of W, A Kaiming-uniform in [-1/sqrt(in), 1/sqrt(in)], B at zero, so the output is unchanged. The norm is taken anew in
each pass and no gradient flows through it (section 4.3, as in all of the paper's experiments). The bias is not scaled.
Trained and stored: A, B and m, r (in + out) + out a site. Merges exactly up to rounding.

The paper writes one magnitude a column of W; its code, peft and this file take one an output, the rows of W (out, in).
With dropout W z is a second product with W, as in the authors' code and in peft; without, it is the output less the
bias, as in peft. Norms are held above 1e-30 for rows of W that are zero. Left out: magnitudes alone at some of the
sites (section 5.6). Sites, rank, alpha and dropout are those of the commonsense runs; the rate is that of LLaMA2-7B,
others lie between 1e-4 and 3e-4.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count
from methods.lowrank.lora import LoRA


class DoRA(LoRA):
    name, family, paper = "dora", "lowrank", "2402.09353"
    title = "DoRA: Weight-Decomposed Low-Rank Adaptation"
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
            self.m = nn.Parameter(empty(shape.out))
            self.register_buffer("b", torch.zeros(shape.out), persistent=False)

        def initialise(self, W, b, rng, found):
            super().initialise(W, b, rng, found)
            self.m.copy_(self.norm(W))
            if b is not None:
                self.b.copy_(b)

        @torch.no_grad()
        def norm(self, W):
            """||W + s B A|| of each row, (out,), a constant, from ||W||^2 + 2 s <W, B A> + s^2 ||B A||^2."""
            A, B, W = self.A, self.B * self.scale, W.to(self.m)
            squares = W.norm(dim=1) ** 2 + (2 * W @ A.T * B).sum(1) + (B @ (A @ A.T) * B).sum(1)
            return squares.clamp_min(0).sqrt().clamp_min(1e-30)

        def forward(self, x, base):
            W, y, z = self.W(), base(x), x
            c = (self.m / self.norm(W)).to(x.dtype)
            if self.training and self.dropout:
                z = F.dropout(x, self.dropout)
                Wz = F.linear(z, W.to(x.dtype))
            else:
                Wz = y - self.b.to(x.dtype)
            return y + (c - 1) * Wz + c * F.linear(F.linear(z, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale

        def weight(self, W, b):
            return (self.m / self.norm(W))[:, None] * (W + self.scale * self.B @ self.A), b

    def expected_parameters(self, shape):
        magnitudes = sum(out for out, _, _ in shape.at(self.settings.sites, self.settings.layers))
        return Count(super().expected_parameters(shape).trained + magnitudes)
