"""VL-PET: Vision-and-Language Parameter-Efficient Tuning via Granularity Control
(Hu, Li, Lyu and Wang, 2023, arXiv:2308.09804).

    encoder, at the end of attention and feed-forward, with x their residual and h their output (B, L, d):
        y = h + U gelu(D h + b1) + b2      D: (r, d)    U: (d, r)
        h <- s G * y
    G of VL-PET-large    sigmoid(U_g gelu(D_g x + c1) + c2)                 (B, L, d)    D_g: (r_g, d)    U_g: (d, r_g)
         VL-PET-middleX  sigmoid(w^T (x + y) + c)                           (B, L, 1)
         VL-PET-middleY  1 + g                                              (1, 1, d)
         VL-PET-small    mean over the positions of sigmoid(w^T [x; y] + c) (B, 1, 1)
    decoder, at the values of cross-attention, with e the encoder's output:
        v = W_v e + U_v gelu(D_v e + b3) + b4

gelu is its approximation by tanh. G scales the whole output of the branch, so with large, middleX and small it starts
at about half of it. Matrices, w and g start from Normal(0, 0.02), biases at zero; `zero_init` starts U, U_g, w, g and
U_v at zero, as the authors do for T5 with s = 0.3 (BART: s = 1). Trained and stored: all this and the layer norms of
the encoder. M(r) = 2 r d + r + d parameters for an adapter, M(r_g), d + 1, d or 2 d + 1 for G. Not mergeable.

Written after the abstract and the authors' code. Their D has N_h = 4 heads of r / 4 rows, which together are one linear
map: only the layout differs. Their mean over positions in `small` holds the padding, here it does not. A network that
is only an encoder (BERT, ViT) gets the encoder's part; one that is only a decoder has neither part and is refused. The
visual projection of their networks has no counterpart here. In Swin the mean is over the image, not over a window.
Their settings for T5-base are r = r_g = 192 and a rate of 3e-4; there are none for texts alone or for images. The
counts are confirmed: with the visual projection they give the trained shares in the authors' README, for BART-base 4.16
per cent (large) and 2.98 (the others).
"""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Bottleneck, BottleneckMethod, Count, LinearMap, Plan
from methods.base.contract import key

gelu = partial(F.gelu, approximate="tanh")


class Large(nn.Module):
    def __init__(self, width, size):
        super().__init__()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)

    def forward(self, x, y, mask):
        return torch.sigmoid(self.up(gelu(self.down(x))))


class MiddleX(nn.Module):
    def __init__(self, width, size):
        super().__init__()
        self.w = nn.Linear(width, 1)

    def forward(self, x, y, mask):
        return torch.sigmoid(self.w(x + y))


class MiddleY(nn.Module):
    def __init__(self, width, size):
        super().__init__()
        self.g = nn.Parameter(empty(width))

    def forward(self, x, y, mask):
        return 1 + self.g


class Small(nn.Module):
    def __init__(self, width, size):
        super().__init__()
        self.w = nn.Linear(2 * width, 1)

    def forward(self, x, y, mask):
        g = torch.sigmoid(self.w(torch.cat([x, y], -1)))
        real = torch.ones_like(g) if mask is None else mask[..., None].to(g)
        return (g * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)


VARIANTS = {"large": Large, "middleX": MiddleX, "middleY": MiddleY, "small": Small}


class Encoder(nn.Module):
    """h <- s G * (h + adapter(h)), in fp32 outside autocast and returned in the type of h."""

    def __init__(self, width, settings):
        super().__init__()
        self.adapter = Bottleneck(width, settings.size, "gelu")
        self.adapter.activation = gelu
        self.G = VARIANTS[settings.variant](width, settings.gate_size)
        self.scale, self.gate = settings.scale, 1.0

    def forward(self, x, h, mask):
        wide = self.adapter.up.weight.dtype
        x, y = x.to(wide), h.to(wide)
        z = y + self.adapter(y)
        return torch.lerp(y, self.scale * self.G(x, z, mask) * z, self.gate).to(h.dtype)


class Value(LinearMap):
    """v = W_v e + U_v gelu(D_v e + b3) + b4."""

    def __init__(self, shape, size):
        super().__init__(shape, None, None)
        self.down, self.up = nn.Linear(shape.inp, size), nn.Linear(size, shape.out)

    def forward(self, x, base):
        v = base(x)
        return v + self.up(gelu(self.down(x.to(self.down.weight.dtype)))).to(v.dtype)


class VLPET(BottleneckMethod):
    name, family, paper = "vl_pet", "adapter", "2308.09804"
    title = "VL-PET: Vision-and-Language Parameter-Efficient Tuning via Granularity Control"
    kinds = ("encoder", "encoder_decoder", "vision")
    edits_base = "trained"
    vectors_only = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings:
        variant: str = "large"
        size: int = 96
        gate_size: int = 96
        value_size: int = 96
        scale: float = 1.0
        std: float = 0.02
        zero_init: bool = False
        train_norms: bool = True
        layers: tuple[int, ...] | None = None

    def supports(self, shape, task):
        if self.settings.variant not in VARIANTS:
            return f"VL-PET has no variant {self.settings.variant}, it has {', '.join(VARIANTS)}"
        return super().supports(shape, task)

    def plan(self, shape):
        encoder = tuple(site for site in super().plan(shape).sites if site.part == shape.parts[0])
        return Plan((*encoder, *shape.find(["cross.v"], self.settings.layers)))

    def norms(self, sites):
        return [site for site in sites if self.settings.train_norms and site.part != "decoder"]

    def attach(self, backbone, ctx):
        self.backbone, shape = backbone, backbone.shape
        self.planned = self.planned if self.planned.sites else self.plan(shape)
        for site in self.planned.sites:
            with torch.device(backbone.device_of(site)):
                if site.name == "cross.v":
                    module = self.parts[key(site)] = Value(shape.linears[site], self.settings.value_size)
                    backbone.map(backbone.site(site), module)
                else:
                    module = self.parts[key(site)] = Encoder(shape.block(site).width, self.settings)
                    backbone.branch(site, site.name, self._function(module), whole=True)
            module.site = site
        norms = backbone.norms()
        self.train_base(backbone, {f"{s}.{n}": p for s in self.norms(norms) for n, p in norms[s].named_parameters()})

    def combine(self, module, x, y, residual):
        mask = self.backbone.state.mask
        return module(residual, y, mask if mask is None else mask.to(y.device))

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        for part, module in self.parts.items():
            rng = ctx.rng(f"init/{part}")
            for name, parameter in module.named_parameters():
                zero = name.endswith("bias") or self.settings.zero_init and "down" not in name
                std = 0.0 if zero else self.settings.std
                parameter.copy_(empty(parameter.shape).normal_(generator=rng) * std)

    def expected_parameters(self, shape):
        settings, adapters = self.settings, 0
        for site in self.plan(shape).sites:
            if site.name == "cross.v":
                out, inp, _ = shape.linears[site]
                adapters += settings.value_size * (inp + out + 1) + out
            else:
                d, r, g = shape.block(site).width, settings.size, settings.gate_size
                gates = {"large": 2 * g * d + g + d, "middleX": d + 1, "middleY": d, "small": 2 * d + 1}
                adapters += 2 * r * d + r + d + gates[settings.variant]
        norms = sum(size * (1 + bias) for size, bias in map(shape.norms.get, self.norms(shape.norms)))
        return Count(trained=adapters + norms, added=adapters)
