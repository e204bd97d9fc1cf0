"""SSF: Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning
(Lian et al., 2022, arXiv:2210.08823).

    y <- gamma * y + beta      gamma, beta: (channels,), one pair for each operation

after the patch embedding, every linear map of the blocks (before the activation) and every norm; not after the head.
gamma starts from Normal(1, std^2), beta from Normal(0, std^2), so the output is only nearly unchanged. Merges exactly:
W' = diag(gamma) W and b' = gamma * b + beta, and likewise for norms. 2 parameters a channel, 205,824 for ViT-B/16;
they are vectors and never decayed. Swin's reduction of patches has no pair, as in the authors' code.

The paper has networks for images; in others the places are the same: q, k, v (before a rotation), o, all maps of the
feed-forward, norms and the norm of the embeddings; a pooler belongs to the head. A linear map without a bias gains one
when it is merged. An RMS norm has no place for a shift and gets gamma alone: inside a block, a shift before linear maps
that have one of their own would add nothing. Shifts of keys have no gradient but for a rotation. The learning rate is
that of most tasks of VTAB-1k; the code's others lie between 1e-3 and 5e-2.
"""

from dataclasses import dataclass

import torch
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings, MergeReport
from methods.base.contract import key
from models.shape import LinearShape, SiteId


class SSF(LinearMethod):
    name, family, paper = "ssf", "adapter", "2210.08823"
    title = "Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning"
    mergeable = True
    no_gradient = ("*.k.beta",)
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = (
            "attn.q",
            "attn.k",
            "attn.v",
            "attn.o",
            "cross.q",
            "cross.k",
            "cross.v",
            "cross.o",
            "mlp.up",
            "mlp.gate",
            "mlp.down",
        )
        std: float = 0.02

    class Map(LinearMap):
        """One pair, behind a linear map or another operation."""

        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.gamma, self.beta = nn.Parameter(empty(shape.out)), nn.Parameter(empty(shape.out))
            self.std = settings.std

        def initialise(self, W, b, rng, found):
            self.gamma.copy_(empty(self.gamma.shape).normal_(1, self.std, generator=rng))
            self.beta.copy_(empty(self.beta.shape).normal_(0, self.std, generator=rng))

        def forward(self, x, base):
            return base(x) * self.gamma.to(x.dtype) + self.beta.to(x.dtype)

        def weight(self, W, b):
            return self.gamma[:, None] * W, self.beta if b is None else self.gamma * b + self.beta

    class Scale(Map):
        """gamma alone, behind a norm that has no place for a shift."""

        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.beta = None

        def initialise(self, W, b, rng, found):
            self.gamma.copy_(empty(self.gamma.shape).normal_(1, self.std, generator=rng))

        def forward(self, x, base):
            return base(x) * self.gamma.to(x.dtype)

    def others(self, shape):
        """Channels and shift (whether beta is there) of the patch embedding and the norms, by site."""
        patches, layers = SiteId("", -1, "embed.patch"), self.settings.layers
        found = {patches: (shape.biases[patches], True)} if patches in shape.biases else {}
        return found | {s: norm for s, norm in shape.norms.items() if layers is None or s.layer in (-1, *layers)}

    def attach(self, backbone, ctx):
        super().attach(backbone, ctx)
        for site, (channels, shift) in self.others(backbone.shape).items():
            kind = self.Map if shift else self.Scale
            module = kind(LinearShape(channels, channels, shift), self.settings, None)
            self.parts[key(site)] = module.to(backbone.device_of(site))
            backbone.after(site, module)

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        super().initialise(backbone, ctx)
        for site in self.others(backbone.shape):
            self.parts[key(site)].initialise(None, None, ctx.rng(f"init/{site}"), None)

    def merge(self):
        report, others = super().merge(), self.others(self.backbone.shape)
        errors = [self.backbone.fold(site, self.parts[key(site)]) for site in others]
        for site in others:
            self.parts[key(site)].merged = True
        return MergeReport((*report.sites, *others), max(report.max_error, *errors))

    def unmerge(self):
        super().unmerge()
        for site in self.others(self.backbone.shape):
            self.parts[key(site)].merged = False

    def expected_parameters(self, shape):
        sites = shape.at(self.settings.sites, self.settings.layers)
        others = sum(channels * (1 + shift) for channels, shift in self.others(shape).values())
        return Count(sum(2 * out for out, _, _ in sites) + others)
