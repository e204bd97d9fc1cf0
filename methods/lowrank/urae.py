"""URAE: Ultra-Resolution Adaptation with Ease (Yu et al., 2025, arXiv:2503.16322), the tuning of minor components.

    W = U diag(S) V                                U: (out, k)    S: (k,), falling    V: (k, in)    k = min(out, in)
    h = W_res x + b + B A x                        A: (r, in)     B: (out, r)
    B = U[:, -r:] sqrt(S[-r:])    A = sqrt(S[-r:]) V[-r:]    W_res = W - B A

A and B hold the part of W with the smallest singular values and are trained; W_res and biases are frozen. There is no
scaling factor. The output is unchanged at the start but for rounding to the type of W. Stored: A and B, r (in + out)
parameters a site; W_res is rebuilt from W. Merges to W_res + B A.

The paper adapts the attention projections of a diffusion transformer to 4K images; the rest of its guidelines
(synthetic data, guidance, position scaling) has no counterpart here. The authors decompose square weights with full
singular bases; the economy form here is the same for those and right for others. They train with Prodigy; no recipe for
AdamW, language or classification is published, so the learning rate is this project's choice. The start is that of
SoMA with alpha = r.
"""

from dataclasses import dataclass

from methods.base import Count, LinearSettings, OffsetMethod, SplitMap
from methods.base.factors import minor


class URAE(OffsetMethod):
    name, family, paper = "urae", "lowrank", "2503.16322"
    title = "Ultra-Resolution Adaptation with Ease"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-4, "schedule": "constant", "warmup": 0.0}
    tiny = {"rank": 4}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o")
        rank: int = 16

    class Map(SplitMap):
        def initialise(self, W, b, rng, found):
            self.split(*minor(W, len(self.A), self.site))

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(settings.rank * (i + o) for o, i, _ in shape.at(settings.sites, settings.layers)))
