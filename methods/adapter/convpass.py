"""Convpass: Convolutional Bypasses Are Better Vision Transformer Adapters (Jie and Deng, 2022, arXiv:2207.07039).

    x <- x + MHSA(LN1 x) + s C1(LN1 x)      x <- x + MLP(LN2 x) + s C2(LN2 x)
    C(z) = U dropout(act(K * act(D z + b1) + k)) + b2      D: (h, d)    K: (h, h, 3, 3)    U: (d, h)

A bypass beside the attention and one beside the feed-forward of every block (with the attention alone,
"Convpass-attn"). Between D and U the h channels of the patches are laid out as an image, row by row, for a 3 x 3
convolution with padding 1; the class token is an image of its own, for which only the centre of K counts.
act(u) = u sigmoid(1.702 u). D starts Xavier-uniform; U and the biases at zero, so the output is unchanged; K is the
identity at its centre and zero elsewhere, or (`xavier_init`) Xavier-uniform. Dropout 0.1 inside, and in training the
bypass of an image is left out with a probability that grows over the blocks to 0.1, drawn apart from the network's own.
Trained and stored: (2 h + 1) d + 9 h^2 + 2 h a bypass. Not mergeable.

The paper searches s in 0.01, 0.1, 1, 10 and 100 for each task, and its code sets the start of K for each. Activation,
dropout and drop-path are those of the code. Images of any size and networks of any width; each of several leading
tokens (DeiT) is an image of its own, which the paper does not say. In Swin the bypass sees the whole image, not the
windows, as in the authors' code. The bypass is added before layer scale (DINOv2); ViT and Swin have none. Texts have
no grid. The code keeps the accuracy of the best of every tenth epoch on test.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import BottleneckMethod, Count
from methods.base.contract import key


def quick_gelu(u):
    return u * torch.sigmoid(1.702 * u)


class Bypass(nn.Module):
    """C(z) for z (B, L, d): leading tokens, then the patches of a square image."""

    def __init__(self, width, settings, drop_path):
        super().__init__()
        h = settings.size
        self.down, self.conv, self.up = nn.Linear(width, h), nn.Conv2d(h, h, 3, padding=1), nn.Linear(h, width)
        self.dropout, self.drop_path, self.gate = settings.dropout, drop_path, 1.0

    @torch.no_grad()
    def initialise(self, xavier, rng):
        for parameter in self.parameters():
            parameter.zero_()
        D, K = self.down.weight, self.conv.weight
        D.copy_(nn.init.xavier_uniform_(empty(D.shape), generator=rng))
        K[:, :, 1, 1] = torch.eye(len(K))
        if xavier:
            K.copy_(nn.init.xavier_uniform_(empty(K.shape), generator=rng))

    def forward(self, z):
        u = quick_gelu(self.down(z.to(self.down.weight.dtype)))
        side = math.isqrt(u.shape[1])
        tokens, patches = u.split((u.shape[1] - side**2, side**2), 1)
        image = self.conv(patches.transpose(1, 2).unflatten(2, (side, side)))
        alone = F.linear(tokens, self.conv.weight[:, :, 1, 1], self.conv.bias)
        v = quick_gelu(torch.cat([alone, image.flatten(2).transpose(1, 2)], 1))
        kept = F.dropout(v.new_ones(len(v), 1, 1), self.drop_path, self.training)
        return (self.up(F.dropout(v, self.dropout, self.training)) * kept * self.gate).to(z.dtype)


class Convpass(BottleneckMethod):
    name, family, paper = "convpass", "adapter", "2207.07039"
    title = "Convolutional Bypasses Are Better Vision Transformer Adapters"
    kinds = ("vision",)
    identity_at_init = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings:
        branches: tuple[str, ...] = ("attn", "mlp")
        size: int = 8
        scale: float = 1.0
        xavier_init: bool = False
        dropout: float = 0.1
        drop_path: float = 0.1
        layers: tuple[int, ...] | None = None

    def branches(self):
        return self.settings.branches

    def attach(self, backbone, ctx):
        self.backbone, shape = backbone, backbone.shape
        self.planned = self.planned if self.planned.sites else self.plan(shape)
        for site in self.planned.sites:
            rate = self.settings.drop_path * site.layer / max(1, shape.depth - 1)
            with torch.device(backbone.device_of(site)):
                module = self.parts[key(site)] = Bypass(shape.block(site).width, self.settings, rate)
            module.site = site
            backbone.branch(site, site.name, self._function(module), whole=True)

    def combine(self, module, x, y, residual):
        return y + self.settings.scale * module(x)

    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            module.initialise(self.settings.xavier_init, ctx.rng(f"init/{name}"))

    def expected_parameters(self, shape):
        h, widths = self.settings.size, [shape.block(site).width for site in self.plan(shape).sites]
        return Count(sum((2 * h + 1) * d + 9 * h**2 + 2 * h for d in widths))
