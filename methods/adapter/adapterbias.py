"""AdapterBias: Parameter-efficient Token-dependent Representation Shift for Adapters in NLP Tasks
(Fu, Chen, Lee and Lee, 2022, arXiv:2205.00305).

    y = W u + b + alpha v      alpha = w u + c      v: (d,)    w: (1, d_ff)    c: (1,)    u: (d_ff,) activated units

One vector v a block, added to the output of the second feed-forward map with a weight alpha that a linear map reads
from the token's activated units. v and c start at zero, w from Normal(0, 0.02), so the output is unchanged and w gets
its first gradient after v has moved. Trained too: every layer norm but those of the attention (in BERT those after
the feed-forward and after the embeddings). Trained and stored: d + d_ff + 1 a block, and the norms.

alpha v is linear in u, so the shift merges up to rounding: W' = W + v w, of rank one, and b' = b + c v; where W has no
bias (Llama, T5) merging adds one. The paper has BERT and RoBERTa; elsewhere the norms follow the same rule: all but
those of the attention. W u passes the branch's dropout and in the authors' code alpha v does not; here both do. Left
out: one w for all blocks, a variant. The rate is theirs, constant and without warm-up for 20 to 120 epochs.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings

OF_ATTENTION = ("norm.attn", "norm.attn.out", "norm.cross", "norm.q", "norm.k")


class AdapterBias(LinearMethod):
    name, family, paper = "adapterbias", "adapter", "2205.00305"
    title = "AdapterBias: Parameter-efficient Token-dependent Representation Shift for Adapters in NLP Tasks"
    mergeable = identity_at_init = True
    edits_base = "trained"
    vectors_only = True
    recipe = {"lr": 1e-4, "schedule": "constant", "warmup": 0.0}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("mlp.down",)
        train_norms: bool = True

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.v, self.w = nn.Parameter(empty(shape.out)), nn.Parameter(empty(1, shape.inp))
            self.c = nn.Parameter(empty(1))

        def initialise(self, W, b, rng, found):
            self.v.zero_()
            self.w.copy_(empty(self.w.shape).normal_(0, 0.02, generator=rng))
            self.c.zero_()

        def forward(self, x, base):
            return base(x) + F.linear(x, self.w.to(x.dtype), self.c.to(x.dtype)) * self.v.to(x.dtype)

        def weight(self, W, b):
            return W + self.v[:, None] * self.w, self.c * self.v + (0 if b is None else b)

    def attach(self, backbone, ctx):
        super().attach(backbone, ctx)
        if self.settings.train_norms:
            norms = {site: norm for site, norm in backbone.norms().items() if site.name not in OF_ATTENTION}
            self.train_base(backbone, {f"{s}.{n}": p for s, m in norms.items() for n, p in m.named_parameters()})

    def expected_parameters(self, shape):
        shifts = sum(out + inp + 1 for out, inp, _ in shape.at(self.settings.sites, self.settings.layers))
        norms = sum(size * (1 + bias) for s, (size, bias) in shape.norms.items() if s.name not in OF_ATTENTION)
        return Count(trained=shifts + (norms if self.settings.train_norms else 0))
