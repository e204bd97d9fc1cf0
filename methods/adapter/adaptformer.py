"""AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition (Chen et al., 2022, arXiv:2205.13535).

    x' = x + attn(LN x)
    out = x' + MLP(LN x') + s (U dropout(relu(D x' + b1)) + b2)      D: (r, d)    U: (d, r)

One branch beside the feed-forward of every block, none beside the attention; s = 0.1 is fixed and scales b2 too.
D starts Kaiming-uniform in [-1/sqrt(d), 1/sqrt(d)], U and both biases at zero, so the output is unchanged. Dropout 0.1
acts inside the bottleneck whatever the network's own. Trained and stored: 2 r d + r + d a block. Not mergeable.

The paper feeds the branch LN x', and D starts Kaiming-normal there; its code, followed here, feeds x' itself and is
what made the checkpoints. The branch joins the feed-forward before the latter's output dropout, layer scale (DINOv2)
and output norm (Gemma 3), where a network has them; ViT has none. In a post-norm block x' is the feed-forward's input.
Left out: the authors' head (a batch norm before the linear layer) and their SGD with rates of 0.1 to 0.4; under AdamW
1e-3 is usual. VTAB-1k is commonly run with r = 8 and s searched in 0.01 to 100.
"""

from dataclasses import dataclass

from methods.base import Bottleneck, Count, ParallelBottleneckMethod


class AdaptFormer(ParallelBottleneckMethod):
    name, family, paper = "adaptformer", "adapter", "2205.13535"
    title = "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition"
    identity_at_init = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings:
        size: int = 64
        scale: float = 0.1
        dropout: float = 0.1
        layers: tuple[int, ...] | None = None

    def make(self, width):
        return Bottleneck(width, self.settings.size, "relu", self.settings.scale, self.settings.dropout)

    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            module.initialise_as_lora(ctx.rng(f"init/{name}"))

    def expected_parameters(self, shape):
        r = self.settings.size
        return Count(sum(2 * r * d + r + d for d in (shape.block(site).width for site in self.plan(shape).sites)))
