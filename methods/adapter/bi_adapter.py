"""Bi-AdaptFormer: Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy
(Jie, Wang and Deng, 2023, arXiv:2307.16867).

    y' = y + s Q(W_up) dropout(relu(Q(W_down) x))          W_down: (h, d)    W_up: (d, h)    x, y: (d,)
    Q(W) = std(W) q(z) + mean(W),    z = (W - mean(W)) / (std(W) + 1e-5),    q: the nearest of 2^bits codes

A bottleneck without biases beside the feed-forward branch reads the residual stream after the attention, before the
norm; y is the branch's output. Mean and deviation are those of the whole matrix. The codes lose the least absolute
value of a normal variable: each is the median of its cell, +-0.6745 for one bit. The gradient passes q as if it were z
and flows through mean and deviation. W_down starts Kaiming-uniform in [-1/sqrt(d), 1/sqrt(d)], W_up from Normal(0,
1e-3) cut at two deviations, so the output is only nearly unchanged.

Trained in fp32: 2 d h a block. Stored: the codes, 8 / bits of them a byte, with mean and deviation of each matrix; what
is loaded is for inference. The counts of what is stored are those of the file's entries, bytes and statistics. The
relu does not merge. On a threshold the upper code is taken, where the authors' code takes the middle of two. Left out:
the same with LoRA (Bi-LoRA), a head of one bit, and their drop-path. s is chosen a task among 0.01 to 100 there; 1 is
this file's. h = 32 and the rate are those of the VTAB-1k runs, there with a cosine schedule and a weight decay of 1e-4.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, ParallelBottleneckMethod


@cache
def codes_of(bits):
    """The 2^bits codes (fp64) of a standard normal: each the median between the midpoints to its neighbours."""
    codes = torch.special.ndtri((torch.arange(2**bits, dtype=torch.float64, device="cpu") + 0.5) / 2**bits)
    for _ in range(500):
        edges = F.pad(torch.special.ndtr((codes[1:] + codes[:-1]) / 2), (1, 1))
        edges[-1] = 1.0
        codes = torch.special.ndtri((edges[1:] + edges[:-1]) / 2)
    return codes


class QLinear(nn.Module):
    """y = Q(W) x. stored: (index of each code, mean, deviation) once they were loaded, in the place of W."""

    def __init__(self, inp, out, bits):
        super().__init__()
        self.weight, self.bits, self.stored = nn.Parameter(empty(out, inp)), bits, None
        self.register_buffer("codes", codes_of(bits).to(self.weight), persistent=False)

    def standard(self):
        """z, mean, deviation."""
        mean, std = self.weight.mean(), self.weight.std()
        return (self.weight - mean) / (std + 1e-5), mean, std

    def nearest(self, z):
        return torch.bucketize(z.detach(), (self.codes[1:] + self.codes[:-1]) / 2, right=True)

    def forward(self, x):
        if self.stored is not None:
            index, mean, std = self.stored
            return F.linear(x, self.codes[index] * std + mean)
        z, mean, std = self.standard()
        q = z + (self.codes[self.nearest(z)] - z).detach()
        return F.linear(x, q * std + mean)

    @torch.no_grad()
    def pack(self):
        """Codes as bytes (ceil(n bits / 8),), the first of a byte in its lowest bits; mean and deviation (2,)."""
        z, mean, std = self.standard()
        index, mean, std = (self.nearest(z), mean, std) if self.stored is None else self.stored
        index = F.pad(index.flatten(), (0, -index.numel() % (8 // self.bits))).view(-1, 8 // self.bits)
        place = self.bits * torch.arange(8 // self.bits, device=index.device)
        return (index << place).sum(1).to(torch.uint8), torch.stack([mean, std])

    def unpack(self, packed, statistics):
        place = self.bits * torch.arange(8 // self.bits)
        index = (packed[:, None].long() >> place.to(packed.device)) % 2**self.bits
        index = index.flatten()[: self.weight.numel()].view_as(self.weight).to(self.weight.device)
        self.stored = (index, *statistics.to(self.weight.device))


class Adapter(nn.Module):
    def __init__(self, width, settings):
        super().__init__()
        self.down, self.up = QLinear(width, settings.size, settings.bits), QLinear(settings.size, width, settings.bits)
        self.scale, self.dropout = settings.scale, settings.dropout

    def forward(self, x):
        hidden = F.relu(self.down(x.to(self.down.weight.dtype)))
        return (self.scale * self.up(F.dropout(hidden, self.dropout, self.training))).to(x.dtype)


class BiAdapter(ParallelBottleneckMethod):
    name, family, paper = "bi_adapter", "adapter", "2307.16867"
    title = "Revisiting the Parameter Efficiency of Adapters from the Perspective of Precision Redundancy"
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings:
        size: int = 32
        bits: int = 1
        scale: float = 1.0
        dropout: float = 0.1
        layers: tuple[int, ...] | None = None

    def supports(self, shape, task):
        bits = self.settings.bits
        return super().supports(shape, task) or (None if bits in (1, 2, 4, 8) else f"{bits} bits do not fill a byte")

    def make(self, width):
        return Adapter(width, self.settings)

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            rng, bound = ctx.rng(f"init/{name}"), 1 / math.sqrt(module.down.weight.shape[1])
            module.down.weight.copy_(empty(module.down.weight.shape).uniform_(-bound, bound, generator=rng))
            up = empty(module.up.weight.shape)
            module.up.weight.copy_(nn.init.trunc_normal_(up, std=1e-3, a=-2e-3, b=2e-3, generator=rng))

    def matrices(self):
        return {name: module for name, module in self.parts.named_modules() if isinstance(module, QLinear)}

    def state_dict(self):
        state = {}
        for name, module in self.matrices().items():
            state[f"{name}.codes"], state[f"{name}.statistics"] = module.pack()
        return state

    def load_state_dict(self, state):
        if other := state.keys() ^ self.state_dict().keys():
            raise KeyError(f"missing or unknown in the stored state: {', '.join(sorted(other))}")
        for name, module in self.matrices().items():
            module.unpack(state[f"{name}.codes"], state[f"{name}.statistics"])

    def expected_parameters(self, shape):
        sizes = [shape.block(site).width * self.settings.size for site in self.plan(shape).sites]
        stored = sum(2 * (math.ceil(n * self.settings.bits / 8) + 2) for n in sizes)
        return Count(2 * sum(sizes), stored)
