"""Approximated Prompt Tuning for Vision-Language Pre-trained Models (Wu et al., 2023, arXiv:2306.15706).

    end of each attention:   y' = exp(s) (y + max_j a_j * a P)      a = ReLU(r P'^T)      P' = P + P W1^T W2^T
                             r, y: input and output (B, L, d) of the attention    P: (p, d)    W1: (k, d)    W2: (d, k)

What prompts add to an attention is computed token by token beside it: their keys are P', their values P, the query is
the raw input r, with no heads, no scale and no softmax. The largest a of a token (after dropout on a, and without a
gradient) weighs the sum. P starts from Normal(0, 0.02), W1 from Normal(0, 1), W2 and the scalar s at zero; the output
changes at once, since a is not zero. p d + 2 k d + 1 numbers an attention: trained, stored, kept. Not mergeable; no
token is added to the sequence.

The formula is from the authors' code: the paper's derivation (its softmax split in two parts) was not to be had, and
the code has a softmax in place of ReLU commented out. p = 50 as in their ViLT (200 in METER), k = 4, dropout 0 in both.
s is trained as in ViLT; in METER the filter of trained names leaves it out. Self-attention and cross-attention both get
a module, as in METER. Their copy of the class token, pooler and token-type embeddings are part of their head and not of
this method. The term grows with the square of r, so it is computed in fp32 (but for autocast). The count is confirmed:
with p = 200 it gives the 3.83M (METER, 24 modules) and the 1.92M (ViLT, 12) of the table in the authors' README.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn, zeros

from methods.base import BottleneckMethod, Count, Plan
from models.shape import SiteId


class ApproximatedPrompt(nn.Module):
    def __init__(self, width, length, rank, dropout):
        super().__init__()
        self.P, self.s = nn.Parameter(empty(length, width)), nn.Parameter(zeros(()))
        self.W1, self.W2 = nn.Parameter(empty(rank, width)), nn.Parameter(empty(width, rank))
        self.dropout, self.gate = dropout, 1.0

    def initialise(self, rng):
        self.P.copy_(empty(self.P.shape).normal_(0, 0.02, generator=rng))
        self.W1.copy_(empty(self.W1.shape).normal_(generator=rng))
        self.W2.zero_()
        self.s.zero_()

    def forward(self, r, y):
        keys = self.P + self.P @ self.W1.T @ self.W2.T
        a = F.dropout(F.relu(r.to(keys.dtype) @ keys.T), self.dropout, self.training)
        added = a.amax(-1, keepdim=True).detach() * (a @ self.P)
        change = self.s.expm1() * y + self.s.exp() * added
        return y + (self.gate * change).to(y.dtype)


class APT(BottleneckMethod):
    name, family, paper = "apt", "prompt", "2306.15706"
    title = "Approximated Prompt Tuning for Vision-Language Pre-trained Models"
    recipe = {"lr": 5e-4, "warmup": 0.1, "weight_decay": 0.01}

    @dataclass(frozen=True)
    class Settings:
        tokens: int = 50
        rank: int = 4
        dropout: float = 0.0

    def plan(self, shape):
        sites = (SiteId(part, layer, name) for part, layer in shape.blocks for name in ("attn", "cross"))
        return Plan(tuple(site for site in sites if site._replace(name=f"{site.name}.q") in shape.linears))

    def make(self, width):
        settings = self.settings
        return ApproximatedPrompt(width, settings.tokens, settings.rank, settings.dropout)

    def combine(self, module, x, y, residual):
        return module(x, y)

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            module.initialise(ctx.rng(f"init/{name}"))

    def expected_parameters(self, shape):
        widths = [shape.block(site).width for site in self.plan(shape).sites]
        return Count(sum((self.settings.tokens + 2 * self.settings.rank) * d + 1 for d in widths))
