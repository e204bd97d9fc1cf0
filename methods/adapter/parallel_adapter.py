"""Towards a Unified View of Parameter-Efficient Transfer Learning: the scaled parallel adapter
(He, Zhou, Ma, Berg-Kirkpatrick and Neubig, 2021, arXiv:2110.04366).

    y <- y + s (W2 dropout(act(W1 x + b1)) + b2)      W1: (m, d)    W2: (d, m)    s: fixed

One adapter a block, beside the feed-forward branch: x is what the branch's output y will be added to, the attention's
normed output in a post-norm network and the raw residual stream in a pre-norm one. W1 starts Kaiming-uniform in
[-1 / sqrt(d), 1 / sqrt(d)], W2 and the biases at zero, so the output is unchanged. Trained and stored: 2 m d + m + d a
block. Not mergeable. s also scales the gradient.

Defaults are those of the paper's summarisation and translation runs (m = 512, s = 4); its GLUE runs have m = 16 and
s = 2, and their rate is the one here. s = 1 is the plain parallel adapter. dropout is the networks' own rate in the
authors' code. y is read before the branch's dropout rather than after it; where the branch has an output norm
(Gemma-3), the sum goes into that norm. Left out: the learned s and the adapter beside the attention, which the paper
found worse. LLM-Adapters' "parallel" is another method: one adapter beside each linear map. peft has none of these.
"""

from dataclasses import dataclass

from methods.base import Bottleneck, Count, ParallelBottleneckMethod


class ParallelAdapter(ParallelBottleneckMethod):
    name, family, paper = "parallel_adapter", "adapter", "2110.04366"
    title = "Towards a Unified View of Parameter-Efficient Transfer Learning: parallel adapter"
    identity_at_init = True
    recipe = {"lr": 1e-4}
    tiny = {"size": 8}

    @dataclass(frozen=True)
    class Settings:
        size: int = 512
        scale: float = 4.0
        activation: str = "relu"
        dropout: float = 0.1
        layers: tuple[int, ...] | None = None

    def make(self, width):
        settings = self.settings
        return Bottleneck(width, settings.size, settings.activation, settings.scale, settings.dropout)

    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            module.initialise_as_lora(ctx.rng(f"init/{name}"))

    def expected_parameters(self, shape):
        m = self.settings.size
        return Count(sum(2 * m * d + m + d for d in (shape.block(site).width for site in self.plan(shape).sites)))
