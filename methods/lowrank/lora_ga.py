"""LoRA-GA: Low-Rank Adaptation with Gradient Approximation (Wang et al., 2024, arXiv:2407.05000).

    G = dL/dW = U diag(S) V                    G: (out, in)   U: (out, k)   V: (k, in)   k = min(out, in)
    A0 = c V[:r]    B0 = c U[:, r:2r]          A0: (r, in)    B0: (out, r)  c^2 = sqrt(out) / gamma
    h = (W - s B0 A0) x + b + s B A dropout(x)                              s = alpha / sqrt(r)

A and B start at A0 and B0, so the output is unchanged. The first step of gradient descent then changes s B A along
B0 B0' G + G A0' A0, which for c = 1 is the best approximation of G of rank 2r. G is the mean gradient over a few
training examples, taken one at a time with dropout on, before anything is attached; singular values of G are not used,
so the size of the loss does not matter. Only A and B are trained, r (in + out) parameters a site. Stored: A, B, A0, B0.
Merges to W - s B0 A0 + s B A.

This is the authors' code with its defaults ("ArB2r", "stable"), on all linear maps of a block; gamma 16 is that of
their runs with T5-base, an example with Llama-2-7B has 64. G comes from 8 single examples as in their experiments. 2r
components have to exist: a larger rank is refused. Where G has fewer, the others are orthonormal and otherwise
arbitrary, and the start is still exact. huggingface/peft has another formula: its A0 has unit rows, and c multiplies
only B0 = U[:, r:2r] diag(S[r:2r]), so that the start grows with the gradient.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F

from methods.base import Count, LinearSettings
from methods.base.calibration import CalibratedOffsetMethod, CalibratedSplitMap, gradients
from methods.base.factors import fast_svd


class LoRAGA(CalibratedOffsetMethod):
    name, family, paper = "lora_ga", "lowrank", "2407.05000"
    title = "LoRA-GA: Low-Rank Adaptation with Gradient Approximation"
    mergeable = identity_at_init = True
    edits_base = "offset"
    recipe = {"lr": 1e-4, "schedule": "cosine", "warmup": 0.03}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = (
            "attn.q",
            "attn.k",
            "attn.v",
            "attn.o",
            "cross.q",
            "cross.k",
            "cross.v",
            "cross.o",
            "mlp.up",
            "mlp.gate",
            "mlp.down",
        )
        rank: int = 8
        alpha: float = 16.0
        gamma: float = 16.0
        samples: int = 8
        dropout: float = 0.0

    class Map(CalibratedSplitMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.scale, self.dropout = settings.alpha / math.sqrt(settings.rank), settings.dropout

        def initialise(self, W, b, rng, found):
            A, B = found
            self.A.copy_(A)
            self.B.copy_(B)

        def forward(self, x, base):
            z = F.dropout(x, self.dropout, self.training)
            return base(x) + F.linear(F.linear(z, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale

    def supports(self, shape, task):
        reason, r = super().supports(shape, task), self.settings.rank
        for site in self.plan(shape).sites if reason is None else ():
            out, inp, _ = shape.linears[site]
            if 2 * r > min(out, inp):
                return f"rank {r} needs {2 * r} components of the gradient at {site}, which is {out} x {inp}"
        return reason

    def calibrate(self, backbone, ctx):
        r = self.settings.rank
        for site, G in gradients(self, backbone, ctx, self.settings.samples).items():
            U, _, V = fast_svd(G, min(4 * r, *G.shape), 4, ctx.rng(f"calibrate/{site}"))
            c = len(G) ** 0.25 / math.sqrt(self.settings.gamma)
            self.found[site] = c * V[:r], c * U[:, r : 2 * r]

    def expected_parameters(self, shape):
        settings = self.settings
        trained = sum(settings.rank * (i + o) for o, i, _ in shape.at(settings.sites, settings.layers))
        return Count(trained, stored=2 * trained)
