"""LoRA-SB: Initialization using Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank Fine-Tuning
(Ponkshe et al., 2024, arXiv:2411.19557).

    h = W x + b + B R A dropout(x)             A: (r, in), frozen    R: (r, r)    B: (out, r), frozen
    B diag(R0) A = -eta sign(G), cut to rank r                       G = dL/dW: (out, in)

A, R0 and B are the truncated SVD of the first update that AdamW would make to all of W: G is the gradient summed over a
few training examples with dropout on, eta the learning rate of the first step. Nothing is taken out of W, so the start
is that update and not the pretrained function, though close to it. As B'B = A A' = I and the scale is 1, the
gradient of R already gives the best approximation of the full gradient in this subspace, B B' G A' A, without another
optimiser. Only R is trained, r^2 parameters a site whatever its width; B and A come from data and are stored too.
Merges exactly up to rounding.

eta is the learning rate of this training's first step with its warm-up; the authors divide by the warm-up steps that
the batches of the estimate would come to. The examples come one at a time (theirs: batches of 2 or 3), and the factors
stay in fp32 (theirs are rounded to bf16). Sites, rank and samples are those of their arithmetic runs with Mistral-7B;
on RoBERTa they have rank 24 at attn.q, attn.v, attn.o and mlp.down, and 2 samples.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, FactorMethod, LinearMap, LinearSettings
from methods.base.calibration import first_learning_rate, gradients
from methods.base.contract import keep_stored
from methods.base.factors import fast_svd


class LoRASB(FactorMethod):
    name, family, paper = "lora_sb", "lowrank", "2411.19557"
    title = "Initialization using Update Approximation is a Silver Bullet for Extremely Efficient Low-Rank Fine-Tuning"
    mergeable = True
    recipe = {"lr": 1e-4, "schedule": "cosine", "warmup": 0.02, "weight_decay": 0.01}
    tiny = {"rank": 8, "samples": 8}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 96
        samples: int = 50
        dropout: float = 0.0

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.A = nn.Parameter(empty(settings.rank, shape.inp), requires_grad=False)
            self.R = nn.Parameter(empty(settings.rank, settings.rank))
            self.B = nn.Parameter(empty(shape.out, settings.rank), requires_grad=False)
            self.dropout = settings.dropout
            keep_stored([self.A, self.B])

        def initialise(self, W, b, rng, found):
            U, S, V = found
            self.A.copy_(V)
            self.R.copy_(S.diag())
            self.B.copy_(U)

        def delta(self):
            return self.B @ self.R @ self.A

        def forward(self, x, base):
            z = F.linear(F.dropout(x, self.dropout, self.training), self.A.to(x.dtype))
            return base(x) + F.linear(F.linear(z, self.R.to(x.dtype)), self.B.to(x.dtype))

    def calibrate(self, backbone, ctx):
        eta = first_learning_rate(ctx)
        for site, G in gradients(self, backbone, ctx, self.settings.samples).items():
            U, S, V = fast_svd(-G.sign(), self.settings.rank, 10, ctx.rng(f"calibrate/{site}"))
            self.found[site] = U, eta * S, V

    def expected_parameters(self, shape):
        r, linears = self.settings.rank, list(shape.at(self.settings.sites, self.settings.layers))
        return Count(r * r * len(linears), stored=sum(r * (r + i + o) for o, i, _ in linears))
