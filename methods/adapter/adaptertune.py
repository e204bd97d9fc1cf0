"""AdapterTune: Zero-Initialized Low-Rank Adapters for Frozen Vision Transformers (Khazem, 2026, arXiv:2603.14706).

    y = block(x)
    out = y + alpha (U gelu(D y + b1) + b2)      D: (r, d)    U: (d, r)

One adapter behind every complete block, or behind every `every`-th one from the first; r = 16, alpha = 1. D starts
Xavier-uniform, U and both biases at zero, so the output is unchanged and the first step moves U and b2 alone. No norm,
dropout or drop-path of its own. Trained and stored: 2 r d + r + d an adapter. Not mergeable.

Written after the abstract and the authors' code; the body of the paper was not at hand. The abstract's "0.92 of the
parameters" reads as 0.92 per cent: 0.35, 0.70 and 1.4 per cent of ViT-B, ViT-S and DeiT-Ti without their heads. The
code decays biases too (0.05); here no vector is. Its base configuration has the rate 1e-3 with batches of 128, its
launcher 5e-4 with 1024; which made the paper's tables is not known. Post-norm blocks and other kinds of networks as in
Adapter+, which differs by its scale of each channel, its start and its drop-path.
"""

from dataclasses import dataclass

import torch
from torch import empty, nn

from methods.adapter.adapter_plus import AdapterPlus
from methods.base import Bottleneck, Count, Plan


class AdapterTune(AdapterPlus):
    name, family, paper = "adaptertune", "adapter", "2603.14706"
    title = "AdapterTune: Zero-Initialized Low-Rank Adapters for Frozen Vision Transformers"
    identity_at_init = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings:
        rank: int = 16
        alpha: float = 1.0
        every: int = 1
        layers: tuple[int, ...] | None = None

    def plan(self, shape):
        return Plan(tuple(site for site in super().plan(shape).sites if site.layer % self.settings.every == 0))

    def make(self, width):
        return Bottleneck(width, self.settings.rank, "gelu", self.settings.alpha)

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            for parameter in module.parameters():
                parameter.zero_()
            D = module.down.weight
            D.copy_(nn.init.xavier_uniform_(empty(D.shape), generator=ctx.rng(f"init/{name}")))

    def expected_parameters(self, shape):
        r = self.settings.rank
        return Count(sum(2 * r * d + r + d for d in (shape.block(site).width for site in self.plan(shape).sites)))
