"""AdapterFusion: Non-Destructive Task Composition for Transfer Learning
(Pfeiffer, Kamath, Rücklé, Cho and Gurevych, 2020, arXiv:2005.00247; the single-task adapter of appendix A.2).

    y <- y + W2 act(W1 LN(y + x) + b1) + b2      W1: (m, d)    W2: (d, m)    m = d / reduction, at least 1

One adapter a block, after the feed-forward branch: y is the branch's output, x what is added to it. In a post-norm
network LN is the block's own frozen norm, so it acts twice: out = LN(y' + x). Otherwise the adapter reads the raw sum
y + x. W1 and W2 start from Normal(0, 0.02), biases at zero, so the output is only nearly unchanged. Trained and
stored: the adapters, 2 m d + m + d a block; norms stay frozen. Not mergeable.

The paper chose place, norms, activation and reduction by a search on three tasks; formula, ReLU and initialisation
are those of the authors' AdapterHub, which hands a pre-norm network no norm. The branch is read before its output
dropout rather than after it; where the branch has an output norm (Gemma-3), y is what goes into that norm. Not here:
the fusion of several adapters; the place after T5's self-attention that the authors of Compacter found better. The
rate is the paper's for single tasks, with at most 30 epochs. peft has no such adapter.
"""

from dataclasses import dataclass

import torch

from methods.base import Bottleneck, BottleneckMethod, Count


class Pfeiffer(BottleneckMethod):
    name, family, paper = "pfeiffer", "adapter", "2005.00247"
    title = "AdapterFusion: Non-Destructive Task Composition for Transfer Learning"
    recipe = {"lr": 1e-4}

    @dataclass(frozen=True)
    class Settings:
        reduction: int = 16
        activation: str = "relu"
        std: float = 0.02
        layers: tuple[int, ...] | None = None

    def branches(self):
        return ("mlp",)

    def size(self, width):
        return max(1, width // self.settings.reduction)

    def make(self, width):
        return Bottleneck(width, self.size(width), self.settings.activation)

    def attach(self, backbone, ctx):
        super().attach(backbone, ctx)
        post_norm, norms = backbone.architecture.post_norm, backbone.norms()
        for module in self.parts.values():
            norm = norms[module.site._replace(name="norm.mlp")]
            module.norm_of_sum = norm.__call__ if post_norm else lambda u: u

    def combine(self, module, x, y, residual):
        return y + module(module.norm_of_sum(y + residual))

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            rng = ctx.rng(f"init/{name}")
            for linear in (module.down, module.up):
                linear.weight.copy_(torch.empty(linear.weight.shape).normal_(0, self.settings.std, generator=rng))
                linear.bias.zero_()

    def one(self, width):
        """Parameters of one adapter."""
        return 2 * self.size(width) * width + self.size(width) + width

    def expected_parameters(self, shape):
        return Count(sum(self.one(shape.block(site).width) for site in self.plan(shape).sites))
