"""AdaLink: Non-Intrusive Adaptation: Input-Centric Parameter-efficient Fine-Tuning for Versatile Multimodal Modeling
(Wang et al., 2023, arXiv:2310.12100).

    e' = e + f(e W_down) W_up      e: (..., d) input embeddings    W_down: (d, r)    W_up: (r, d)

between the input embeddings and the first block; the network itself is never touched. Here e is the embedding of a
token before positions, types and norm (in an encoder-decoder that of the encoder's input), or the embedding of a patch
before positions. W_down starts from Normal(0, 0.02^2), W_up at zero: the output is unchanged. 2 d r parameters. With f
the identity it merges exactly: the table becomes E + E W_down W_up, a copy of its own where it is tied to the output
layer, and the projection of patches likewise. Gradients pass through the whole frozen network.

No code was published, and the paper was at hand only in summaries. They say a two-layer low-rank MLP between embeddings
and blocks; its published 1.05M for two modalities fits two adapters without biases (d = 4096, r = 64). Not confirmed,
and chosen here: the residual, the start, f (`activation`: the identity, or a nonlinearity, with which it does not
merge here), and the learning rate. The paper has networks for text and for text with images, one adapter a modality.
"""

from dataclasses import dataclass

import torch
from torch import empty, nn

from methods.base import Count, LinearMap, MergeReport, Method
from methods.base.bottleneck import ACTIVATIONS
from models.shape import SiteId


class AdaLink(Method):
    name, family, paper = "adalink", "adapter", "2310.12100"
    title = "Non-Intrusive Adaptation: Input-Centric Parameter-efficient Fine-Tuning for Versatile Multimodal Modeling"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings:
        rank: int = 64
        activation: str = "identity"

    class Map(LinearMap):
        def __init__(self, width, settings):
            super().__init__(None, settings, None)
            self.W_down, self.W_up = (
                nn.Parameter(empty(width, settings.rank)),
                nn.Parameter(empty(settings.rank, width)),
            )
            self.f = ACTIVATIONS[settings.activation]

        def forward(self, x, base):
            e = base(x)
            return e + self.f(e @ self.W_down.to(e.dtype)) @ self.W_up.to(e.dtype)

    def __init__(self, settings=None):
        super().__init__(settings)
        self.mergeable = self.settings.activation == "identity"

    def site(self, shape):
        """The embedding of what the first block reads."""
        part = "encoder" if shape.kind == "encoder_decoder" else ""
        return SiteId(part, -1, "embed.patch" if shape.kind == "vision" else "embed.token")

    def attach(self, backbone, ctx):
        self.backbone = backbone
        site = self.site(backbone.shape)
        with torch.device(backbone.device_of(site)):
            self.parts["link"] = self.Map(backbone.shape.embedding_width, self.settings)
        backbone.after(site, self.parts["link"])

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        link = self.parts["link"]
        link.W_down.copy_(empty(link.W_down.shape).normal_(0, 0.02, generator=ctx.rng("init")))
        link.W_up.zero_()

    def merge(self):
        if not self.mergeable:
            return super().merge()
        site = self.site(self.backbone.shape)
        error = self.backbone.fold(site, self.parts["link"])
        self.parts["link"].merged = True
        return MergeReport((site,), error)

    def unmerge(self):
        self.backbone.unmerge()
        self.parts["link"].merged = False

    def expected_parameters(self, shape):
        return Count(2 * shape.embedding_width * self.settings.rank)
