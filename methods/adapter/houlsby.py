"""Adapter: Parameter-Efficient Transfer Learning for NLP (Houlsby et al., 2019, arXiv:1902.00751).

    A(h) = h + W2 act(W1 h + b1) + b2         W1: (m, d)    W2: (d, m)

Two adapters a block, on the output of the attention and of the feed-forward branch, before the residual is added
(and before the layer norm of a post-norm network). Trained: the adapters, every layer norm of the backbone, and the
head. W1, W2 start from Normal(0, std) truncated at 2 std, biases at zero, so the output is only nearly unchanged.
GELU as in the authors' code. std is 1e-2 as in the paper's main experiments (their code defaults to 1e-3).

The adapter reads the branch before its output dropout rather than after it; without dropout the two are one.
On encoder-decoders the cross-attention gets none. Not mergeable. 2 m d + m + d a adapter, plus the norms.
"""

from dataclasses import dataclass

from methods.base import Bottleneck, BottleneckMethod, Count


class Houlsby(BottleneckMethod):
    name, family, paper = "houlsby", "adapter", "1902.00751"
    title = "Parameter-Efficient Transfer Learning for NLP"
    recipe = {"lr": 1e-3}
    edits_base = "trained"
    vectors_only = True

    @dataclass(frozen=True)
    class Settings:
        size: int = 64
        activation: str = "gelu"
        std: float = 1e-2
        train_norms: bool = True
        layers: tuple[int, ...] | None = None

    def make(self, width):
        return Bottleneck(width, self.settings.size, self.settings.activation)

    def attach(self, backbone, ctx):
        super().attach(backbone, ctx)
        if self.settings.train_norms:
            norms = backbone.norms().items()
            self.train_base(backbone, {f"{s}.{n}": p for s, m in norms for n, p in m.named_parameters()})

    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            module.initialise(self.settings.std, ctx.rng(f"init/{name}"))

    def expected_parameters(self, shape):
        m = self.settings.size
        widths = [shape.block(site).width for site in self.plan(shape).sites]
        adapters = sum(2 * m * d + m + d for d in widths)
        norms = sum(size * (1 + bias) for size, bias in shape.norms.values()) if self.settings.train_norms else 0
        return Count(trained=adapters + norms, added=adapters)
