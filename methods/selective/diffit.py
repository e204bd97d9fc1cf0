"""DiffFit: Unlocking Transferability of Large Diffusion Models via Simple Parameter-Efficient Fine-Tuning
(Xie et al., 2023, arXiv:2304.06648).

    x <- x + gamma1 * Attn(LN(x))      x <- x + gamma2 * MLP(LN(x))      gamma: (d,), one a branch and block

Trained are every bias of the network, every norm and the scale factors gamma, which start at one: the output is
unchanged. All else is frozen. Biases and norms are trained in place; gamma merges exactly into the rows and the bias of
the last linear map of its branch. Trained and stored: all biases, all weights of norms, and 2 d a scaled block.

The paper tunes diffusion transformers, with the class embedding, which other networks lack. It scales the first half of
the blocks, or all: `layers` says which, all of them by default, as in the ViT benchmark of OSU-MLB. That gamma is a
vector is the reading of several other authors' code; the paper's own was not found. Two of them (MinimaxDiffusion,
DiffFit-pytorch) scale q, k, v and the attention's output as well; the paper's 0.12 % of DiT-XL/2, with the class
embedding, does not decide between them. gamma acts on the last linear map of the branch, before dropout and layer
scale, with which it commutes; in Gemma 3 a norm of the branch follows, whose own weight is trained too. Cross-attention
gets one as well. A network without biases (Llama, T5) trains norms and gamma: the authors of LLaMA-DiffFit add biases
to it instead and leave the norms alone. Biases of keys have no gradient but for a rotation. Ten times the learning rate
of pre-training, no weight decay.
"""

from dataclasses import dataclass

from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class DiffFit(LinearMethod):
    name, family, paper = "diffit", "selective", "2304.06648"
    title = "DiffFit: Unlocking Transferability of Large Diffusion Models via Simple Parameter-Efficient Fine-Tuning"
    mergeable = identity_at_init = True
    edits_base = "trained"
    vectors_only = True
    no_gradient = ("*attn.k.bias",)
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.o", "cross.o", "mlp.down")

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.gamma = nn.Parameter(empty(shape.out))

        def initialise(self, W, b, rng, found):
            self.gamma.fill_(1.0)

        def forward(self, x, base):
            return base(x) * self.gamma.to(x.dtype)

        def weight(self, W, b):
            return self.gamma[:, None] * W, None if b is None else self.gamma * b

    def attach(self, backbone, ctx):
        super().attach(backbone, ctx)
        weights = {f"{site}.weight": norm.weight for site, norm in backbone.norms().items()}
        self.train_base(backbone, backbone.biases() | weights)

    def expected_parameters(self, shape):
        gammas = sum(out for out, _, _ in shape.at(self.settings.sites, self.settings.layers))
        return Count(sum(shape.biases.values()) + sum(size for size, _ in shape.norms.values()) + gammas)
