"""Prefix-Tuning: Optimizing Continuous Prompts for Generation (Li and Liang, 2021, arXiv:2101.00190).

    head h of each attention:   softmax(Q [P_k ; K]^T / sqrt(d_h)) [P_v ; V]     P_k, P_v: (KV heads, p, d_h)
    while training:             [P_k ; P_v] of all layers = tanh(P' W1 + b1) W2 + b2
                                P': (p, d)    W1: (d, m)    W2: (m, 2 L d)

All keys and values come from one small table P' through one MLP; after training they are computed once, and P' and MLP
are gone. P' starts from Normal(0, 1), the linear maps from U(-1/sqrt(in), 1/sqrt(in)), biases too, as in the authors'
code. The output changes at once. Only text tokens ask, every one sees the whole prefix, and the fused kernel stays.
p d + d m + m + 2 L d (m + 1) numbers trained; 2 p L d stored and kept. An encoder-decoder has three such sets (encoder,
decoder, cross-attention). Not mergeable.

Departures. W2 is held in slices, one an attention, which computes the same; with grouped heads 2 L d becomes 2 L times
KV heads * d_h, while P' stays d wide (in peft it shrinks too). The paper's text gives P' m columns; the code's form is
used. Text keeps its positions, where the cache of the paper's code moves it by p: learned positions differ, and rotary
ones by a fixed rotation of P_k. P is not started from real activations (for little data in the paper). A stored P does
not tell P' and MLP: training that goes on from it starts new ones, shifted so that they give this P. peft has no MLP
unless asked: see `p_tuning_v2`. AdapterHub has the same prefix, with and without the MLP; in T5 alone its relative
positions count the prefix as the first p keys, which moves the keys of the text and not its queries. m is 512 (tables)
or 800 (XSum), p 5 to 200. The paper's rate, 5e-5 to 8e-5, is for thousands of steps; ten times that suits short runs.
"""

from dataclasses import dataclass

import torch
from torch import empty, nn, zeros

from methods.base import Count
from methods.base.contract import key
from methods.base.prefix import Prefix
from methods.prompt.p_tuning_v2 import PTuningV2


class Table(nn.Module):
    """tanh(P' W1 + b1): (p, m)."""

    def __init__(self, length: int, width: int, size: int):
        super().__init__()
        self.rows, self.down = nn.Parameter(empty(length, width)), nn.Linear(width, size)

    def initialise(self, rng):
        self.rows.copy_(empty(self.rows.shape).normal_(generator=rng))
        uniform(self.down, rng)

    def forward(self):
        return self.down(self.rows).tanh()


def uniform(linear, rng):
    for parameter in (linear.weight, linear.bias):
        bound = linear.in_features**-0.5
        parameter.copy_(empty(parameter.shape).uniform_(-bound, bound, generator=rng))


class FromTable(Prefix):
    """Keys and values from a slice of the MLP while it is trained, and from memory afterwards."""

    def __init__(self, block, length, size, dropout, table):
        super().__init__(block, length, 0.0, dropout)
        self.requires_grad_(False)
        self.up, self.table, self.ready = nn.Linear(size, 2 * block.kv_heads * block.head_dim), table, False
        self.register_buffer("shift", zeros(2, *self.key.shape))

    def initialise(self, rng):
        uniform(self.up, rng)
        self.shift.zero_()
        self.fold()

    def made(self):
        rows = self.up(self.table().to(self.up.weight.device)).unflatten(-1, (2, len(self.key), -1))
        return rows.permute(1, 2, 0, 3) + self.shift

    def rows(self):
        return (self.key, self.value) if self.ready and not self.training else self.made().unbind()

    @torch.no_grad()
    def fold(self):
        for kept, made in zip((self.key, self.value), self.made(), strict=True):
            kept.copy_(made)


class PrefixTuning(PTuningV2):
    name, family, paper = "prefix_tuning", "prompt", "2101.00190"
    title = "Prefix-Tuning: Optimizing Continuous Prompts for Generation"
    recipe = {"lr": 5e-4, "warmup": 0.0}
    tiny = {}

    @dataclass(frozen=True)
    class Settings:
        tokens: int = 10
        mid_dim: int = 512
        dropout: float = 0.0

    def make(self, site, block):
        settings, group = self.settings, key(site._replace(layer=-1))
        table = self.shared(group, lambda: Table(settings.tokens, block.width, settings.mid_dim))
        return FromTable(block, settings.tokens, settings.mid_dim, settings.dropout, table)

    def prefixes(self):
        return [module for module in self.parts.values() if isinstance(module, FromTable)]

    def on_step_start(self, step, ctx):
        for prefix in self.prefixes():
            prefix.ready = False

    def prepare_inference(self):
        for prefix in self.prefixes():
            prefix.fold()
            prefix.ready = True

    def kept(self):
        return [parameter for prefix in self.prefixes() for parameter in (prefix.key, prefix.value)]

    def _stored_names(self):
        return [name for name in self._places() if name.endswith((".key", ".value"))]

    def state_dict(self):
        for prefix in self.prefixes():
            prefix.fold()
        return super().state_dict()

    @torch.no_grad()
    def load_state_dict(self, state):
        super().load_state_dict(state)
        for prefix in self.prefixes():
            prefix.shift += torch.stack([prefix.key, prefix.value]) - prefix.made()

    def expected_parameters(self, shape):
        p, m, sites = self.settings.tokens, self.settings.mid_dim, self.plan(shape).sites
        first = {(site.part, site.name): shape.block(site).width for site in reversed(sites)}
        sizes = [2 * shape.block(site).kv_heads * shape.block(site).head_dim for site in sites]
        tables = sum(p * d + d * m + m for d in first.values())
        return Count(tables + sum((m + 1) * size for size in sizes), *[p * sum(sizes)] * 2)
