"""AdapterDrop: On the Efficiency of Adapters in Transformers
(Rücklé, Geigle, Glockner, Beck, Pfeiffer, Reimers and Gurevych, 2020, arXiv:2010.11918).

    block l:  y <- y + [l >= n] adapter_l(y, x)        l = 0 ... L - 1, adapters as in `pfeiffer`

The blocks of the first n layers stay and compute what the frozen network computes; above them nothing changes. Since
nothing is trained below layer n, the backward pass ends there. Two ways of training:

    specialised (the default)    n = `dropped` in training and at inference; the adapters below n do not exist
    robust                       n uniform on 0 ... L - 1, drawn for each optimiser step; n = `dropped` at inference

One set of robust weights serves every n, so all L adapters are trained and stored; inference keeps L - n. Outputs are
not rescaled. In an encoder-decoder one n holds for both stacks. Trained and stored: 2 m d + m + d a layer, L - n or L
layers. Start and sites are those of `pfeiffer`: only nearly unchanged, not mergeable; n = 0 is `pfeiffer` itself.

In the paper n lies in 0 ... 11 for 12 layers, as here; the authors' notebook draws 0 ... 10. It evaluates during
training with n = 0, here with the n of inference. Dropped adapters get no gradient at all, so momentum does not move
them. The rate is the habit of their framework; whether it is the paper's is unconfirmed. Left out: the variants of
AdapterFusion.
"""

from dataclasses import dataclass

import torch

from methods.adapter.pfeiffer import Pfeiffer
from methods.base import Count, Plan


class AdapterDrop(Pfeiffer):
    name, family, paper = "adapterdrop", "adapter", "2010.11918"
    title = "AdapterDrop: On the Efficiency of Adapters in Transformers"
    recipe = {"lr": 1e-4}
    tiny = {"dropped": 1}

    @dataclass(frozen=True)
    class Settings(Pfeiffer.Settings):
        dropped: int = 5
        robust: bool = False

    def supports(self, shape, task):
        if not self.settings.robust and not self.plan(shape).sites:
            return f"with {self.settings.dropped} layers dropped there is no adapter in {max(shape.layers.values())}"
        return super().supports(shape, task)

    def plan(self, shape):
        first = 0 if self.settings.robust else self.settings.dropped
        return Plan(tuple(site for site in super().plan(shape).sites if site.layer >= first))

    def attach(self, backbone, ctx):
        super().attach(backbone, ctx)
        self.n = self.settings.dropped

    def on_step_start(self, step, ctx):
        if self.settings.robust:
            layers = min(ctx.backbone.shape.layers.values())
            self.n = int(torch.randint(layers, (), generator=ctx.rng("adapterdrop")))

    def combine(self, module, x, y, residual):
        n = self.n if module.training else self.settings.dropped
        return y if module.site.layer < n else super().combine(module, x, y, residual)

    def kept(self):
        return [p for m in self.parts.values() if m.site.layer >= self.settings.dropped for p in m.parameters()]

    def expected_parameters(self, shape):
        sites = self.plan(shape).sites
        kept = sum(self.one(shape.block(s).width) for s in sites if s.layer >= self.settings.dropped)
        return Count(super().expected_parameters(shape).trained, added=kept)
