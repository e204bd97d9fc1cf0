"""LoHa: Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation (Yeh et al., 2024,
arXiv:2309.14859), after FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning
(Hyeon-Woo et al., 2022, arXiv:2108.06098).

    ΔW = (alpha / r) (w1_a w1_b) * (w2_a w2_b)      w1_a, w2_a: (out, r)    w1_b, w2_b: (r, in)

The entrywise product of two matrices of rank r has a rank of up to r^2, for the price of a LoRA of rank 2 r. As in
LyCORIS w1_a starts from Normal(0, 0.1), w1_b and w2_b from Normal(0, 1), w2_a at zero. (peft draws all but w2_b
Kaiming-uniform and starts w2_b at zero: a far smaller ΔW for the same steps, so learning rates do not carry over.) All
four are trained and stored, 2 r (in + out) parameters a site. ΔW is built in every forward pass, and its two factors
are built again in the backward pass rather than kept. Merges exactly up to rounding, with the scale of the forward pass
(LyCORIS applies it twice when it merges).

The paper adapts the text encoder and the denoiser of Stable Diffusion, with r = 4 and alpha = 2; here all linear maps
of a block. Not here: dropout of output rows or of whole sites, Tucker cores for convolutions, the trained scalar.
"""

from dataclasses import dataclass

from torch import autograd, empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class HadamardProduct(autograd.Function):
    """(w1_a w1_b) * (w2_a w2_b) that keeps only the four factors for the backward pass."""

    @staticmethod
    def forward(w1_a, w1_b, w2_a, w2_b):
        return (w1_a @ w1_b) * (w2_a @ w2_b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        w1_a, w1_b, w2_a, w2_b = ctx.saved_tensors
        first, second = gradient * (w2_a @ w2_b), gradient * (w1_a @ w1_b)
        return first @ w1_b.T, w1_a.T @ first, second @ w2_b.T, w2_a.T @ second


class LoHa(LinearMethod):
    name, family, paper = "loha", "lowrank", "2309.14859"
    title = "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation (LoHa)"
    mergeable = identity_at_init = True
    recipe = {"lr": 5e-4}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 4
        alpha: float = 2.0

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            r = settings.rank
            self.w1_a, self.w1_b = nn.Parameter(empty(shape.out, r)), nn.Parameter(empty(r, shape.inp))
            self.w2_a, self.w2_b = nn.Parameter(empty(shape.out, r)), nn.Parameter(empty(r, shape.inp))
            self.scale = settings.alpha / r

        def initialise(self, W, b, rng, found):
            self.w1_a.copy_(empty(self.w1_a.shape).normal_(0, 0.1, generator=rng))
            self.w1_b.copy_(empty(self.w1_b.shape).normal_(0, 1, generator=rng))
            self.w2_a.zero_()
            self.w2_b.copy_(empty(self.w2_b.shape).normal_(0, 1, generator=rng))

        def delta(self):
            return self.scale * HadamardProduct.apply(self.w1_a, self.w1_b, self.w2_a, self.w2_b)

        def forward(self, x, base):
            return self.through_weight(x, base)

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(2 * settings.rank * (i + o) for o, i, _ in shape.at(settings.sites, settings.layers)))
