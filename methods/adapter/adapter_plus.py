"""Adapter+: Adapters Strike Back (Steitz and Roth, 2024, arXiv:2406.06820).

    y = block(x)
    out = y + gamma * droppath(U gelu(D y + b1) + b2)      D: (r, d)    U: (d, r)    gamma: (d,)

One adapter behind every complete block (attention, feed-forward and their residuals), on the raw residual stream and
without a norm of its own; gamma scales each channel. D and U start from Normal(0, 1e-2) truncated at two standard
deviations, biases at zero, gamma at one: the output is only nearly unchanged. In training the adapter of an image is
left out with probability 0.1 and the others are divided by 0.9, at the same rate in every block. Trained and stored:
2 r d + r + 2 d a block; layer norms stay frozen. gamma folds into U and b2, the rest does not merge.

The paper's backbone has drop-path of its own, which grows over the blocks; that is the network's affair and not done
here. In a post-norm block the adapter follows the last norm of the block. The paper defines it for ViT; it is taken
over to other kinds as it stands. Weight decay acts on D and U alone, as in the paper. The figure of 0.20M for
ViT-B/16 on VTAB-1k holds the heads.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from methods.base import Bottleneck, BottleneckMethod, Count
from methods.base.contract import key


class Adapter(Bottleneck):
    """gamma * droppath(U gelu(D y + b1) + b2), y (B, L, d)."""

    def __init__(self, width, size, drop_path):
        super().__init__(width, size, "gelu")
        self.gamma, self.drop_path = nn.Parameter(torch.empty(width)), drop_path

    @torch.no_grad()
    def initialise(self, std, rng):
        super().initialise(std, rng)
        self.gamma.fill_(1.0)

    def forward(self, y):
        kept = F.dropout(self.gamma.new_ones(len(y), 1, 1), self.drop_path, self.training)
        return (self.gamma * kept * super().forward(y)).to(y.dtype)


class AdapterPlus(BottleneckMethod):
    name, family, paper = "adapter_plus", "adapter", "2406.06820"
    title = "Adapters Strike Back"
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings:
        size: int = 8
        std: float = 1e-2
        drop_path: float = 0.1
        layers: tuple[int, ...] | None = None

    def branches(self):
        return ("block",)

    def make(self, width):
        return Adapter(width, self.settings.size, self.settings.drop_path)

    def attach(self, backbone, ctx):
        self.backbone = backbone
        self.planned = self.planned if self.planned.sites else self.plan(backbone.shape)
        for site in self.planned.sites:
            with torch.device(backbone.device_of(site)):
                module = self.parts[key(site)] = self.make(backbone.shape.block(site).width)
            module.site = site
            backbone.around(site, self._behind(module))

    def _behind(self, module):
        return lambda call: self.combine(module, call.hidden, call.proceed(), call.hidden)

    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            module.initialise(self.settings.std, ctx.rng(f"init/{name}"))

    def expected_parameters(self, shape):
        r = self.settings.size
        return Count(sum(2 * r * d + r + 2 * d for d in (shape.block(site).width for site in self.plan(shape).sites)))
