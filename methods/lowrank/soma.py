"""SoMA: Singular Value Decomposed Minor Components Adaptation for Domain Generalizable Representation Learning
(Yun et al., 2024, arXiv:2412.04077).

    W = U diag(S) V                                U: (out, k)    S: (k,), falling    V: (k, in)    k = min(out, in)
    h = W_res x + b + db + s B A x                 A: (r, in)     B: (out, r)    db: (out,)    s = alpha / r
    B = U[:, -r:] sqrt(S[-r:] / s)    A = sqrt(S[-r:] / s) V[-r:]    W_res = W - s B A

A and B hold the part of W with the smallest singular values. Blocks before `start_lora_idx` stay as they are: by
default the first third, the paper's 8 of 24. Trained: A, B, and the biases of the adapted maps, as a change db that
starts at zero. The output is unchanged at the start but for rounding to the type of W. Stored: r (in + out)
parameters a site, and its bias; W_res is rebuilt from W. Merges to W_res + s B A and b + db.

Weight decay falls from the recipe's to `final_weight_decay` along half a cosine, step by step; what has none (vectors)
goes on without. The key bias adds the same to every score of a query, so without a rotation its gradient is zero up to
rounding. The authors also train DINOv2's mask token, which no task here uses, and average weights over time in one of
their set-ups; the learning rate falls linearly here, by a power of 0.9 there.
"""

import math
from dataclasses import dataclass

from torch import empty, nn

from methods.base import Count, LinearSettings, OffsetMethod, Plan, SplitMap
from methods.base.factors import minor


class SoMA(OffsetMethod):
    name, family, paper = "soma", "lowrank", "2412.04077"
    title = (
        "SoMA: Singular Value Decomposed Minor Components Adaptation for Domain Generalizable Representation Learning"
    )
    mergeable = identity_at_init = True
    no_gradient = ("*attn.k.db",)
    recipe = {"lr": 5e-5, "head_lr": 1e-4, "weight_decay": 0.05}
    tiny = {"rank": 4, "alpha": 8.0, "start_lora_idx": 1}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 16
        alpha: float = 16.0
        start_lora_idx: int | None = None
        final_weight_decay: float = 1e-5

    class Map(SplitMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.scale = settings.alpha / settings.rank
            self.db = nn.Parameter(empty(shape.out)) if shape.bias else None

        def initialise(self, W, b, rng, found):
            self.split(*minor(W, len(self.A), self.site))
            if self.db is not None:
                self.db.zero_()

        def forward(self, x, base):
            y = super().forward(x, base)
            return y if self.db is None else y + self.db.to(x.dtype)

        def weight(self, W, b):
            return W + self.delta(), b if self.db is None else b + self.db

    def plan(self, shape):
        start = self.settings.start_lora_idx
        first = {part: blocks // 3 if start is None else start for part, blocks in shape.layers.items()}
        return Plan(tuple(site for site in super().plan(shape).sites if site.layer >= first[site.part]))

    def on_step_start(self, step, ctx):
        for group in ctx.optimizer.param_groups:
            start = group.setdefault("initial_weight_decay", group["weight_decay"])
            end = min(self.settings.final_weight_decay, start)
            group["weight_decay"] = end + (start - end) * (1 + math.cos(math.pi * step.index / step.total)) / 2

    def expected_parameters(self, shape):
        shapes = (shape.linears[site] for site in self.plan(shape).sites)
        return Count(sum(self.settings.rank * (i + o) + o * bias for o, i, bias in shapes))
