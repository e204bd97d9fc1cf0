"""Towards a Unified View of Parameter-Efficient Transfer Learning: the mix-and-match (MAM) adapter
(He, Zhou, Ma, Berg-Kirkpatrick and Neubig, 2021, arXiv:2110.04366).

    every attention, head h:      softmax(Q [P_k ; K]^T / sqrt(d_h)) [P_v ; V]      P_k, P_v: (KV heads, l, d_h)
    every feed-forward branch:    y <- y + s (W2 dropout(act(W1 x + b1)) + b2)      W1: (m, d)    W2: (d, m)

A short prefix and a wide scaled adapter, trained together: `prefix_tuning` with l = 30 through a hidden layer of 800,
and `parallel_adapter` with m = 512 and s = 4. In the paper's view the first is (1 - lambda) Attn(x) + lambda softmax(Q
P_k^T) P_v, with lambda the prefix's share of the attention. The adapter adds nothing at the start; the prefix does, so
the output changes. Stored and kept: 2 l d an attention (KV heads * d_h instead of d with grouped heads) and 2 m d + m
+ d a block; trained are P' and the MLP in the place of the keys and values. Not mergeable; the fused kernel stays.

Defaults are those of summarisation and translation; the paper's GLUE runs have l = 16, m = 16 and s = 2, and their
rate is the one here. What `prefix_tuning` and `parallel_adapter` say of positions and of dropout holds here too.
peft has the prefix only. The authors' code builds two more prefix networks for an encoder and never uses them.
"""

from dataclasses import dataclass

import torch

from methods.adapter.parallel_adapter import ParallelAdapter
from methods.base import Count
from methods.prompt.prefix_tuning import PrefixTuning


class MAMAdapter(PrefixTuning):
    name, family, paper = "mam_adapter", "adapter", "2110.04366"
    title = "Towards a Unified View of Parameter-Efficient Transfer Learning: MAM adapter"
    recipe = {"lr": 1e-4}
    tiny = {"tokens": 4, "mid_dim": 16, "size": 8}

    @dataclass(frozen=True)
    class Settings(PrefixTuning.Settings):
        tokens: int = 30
        mid_dim: int = 800
        size: int = 512
        scale: float = 4.0
        activation: str = "relu"
        adapter_dropout: float = 0.1

    def __init__(self, settings=None):
        super().__init__(settings)
        of = self.settings
        self.adapters = ParallelAdapter(ParallelAdapter.Settings(of.size, of.scale, of.activation, of.adapter_dropout))

    def attach(self, backbone, ctx):
        super().attach(backbone, ctx)
        self.adapters.attach(backbone, ctx)
        self.parts.update(self.adapters.parts)

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        self.adapters.initialise(backbone, ctx)
        for name in [name for name in self.parts if name not in self.adapters.parts]:
            self.parts[name].initialise(ctx.rng(f"init/{name}"))

    def kept(self):
        return super().kept() + self.adapters.kept()

    def _stored_names(self):
        adapters = [name for name in self._places() if name.split(".")[0] in self.adapters.parts]
        return super()._stored_names() + adapters

    def expected_parameters(self, shape):
        prefix, adapters = super().expected_parameters(shape), self.adapters.expected_parameters(shape).trained
        return Count(prefix.trained + adapters, prefix.stored + adapters, prefix.added + adapters)
