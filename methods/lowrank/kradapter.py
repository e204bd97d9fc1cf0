"""KRAdapter: Towards Higher Effective Rank in Parameter-efficient Fine-tuning using Khatri-Rao Product
(Albert et al., 2025, arXiv:2508.00230).

ΔW is a Khatri-Rao product: along the smaller side of W, of m = min(in, out) entries, each row is a Kronecker product.

    ΔW = scale K      K[i, a k1 + b] = V[i, a] U[i, b]      U: (m, k1)    V: (m, k2)

K is cut to max(in, out) columns, and transposed where `in` is the smaller side. There is no rank to choose: k1 is the
square root of m rounded down, and k2 the smallest number with k1 k2 >= max(in, out). A random update has full rank. U
starts at zero, V Kaiming-uniform, so the output is unchanged. Only U and V are trained and stored, m (k1 + k2)
parameters a site; ΔW is built in every forward pass, as in the authors' code. Merges exactly up to rounding.

Sizes, start and scale = 2 are those of the layer that the authors published with their paper. It draws V with a = 5, a
bound of sqrt(6 / (26 k2)); their script for approximating matrices has a = sqrt(5), scale 1, and k1 from the larger
side. Their layer adds ΔW^T when it merges; here it is ΔW. The sites and the learning rate of their language models are
not published: those here are of RandLoRA (arXiv:2502.00987), by the same authors.
"""

from dataclasses import dataclass
from math import ceil, isqrt

from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


def sizes(shape):
    """m, k1, k2"""
    m, k1 = min(shape.inp, shape.out), isqrt(min(shape.inp, shape.out))
    return m, k1, ceil(max(shape.inp, shape.out) / k1)


class KRAdapter(LinearMethod):
    name, family, paper = "kradapter", "lowrank", "2508.00230"
    title = "Towards Higher Effective Rank in Parameter-efficient Fine-tuning using Khatri-Rao Product"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-4}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down")
        scale: float = 2.0

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            m, k1, k2 = sizes(shape)
            self.U, self.V = nn.Parameter(empty(m, k1)), nn.Parameter(empty(m, k2))
            self.scale, self.shape = settings.scale, shape

        def initialise(self, W, b, rng, found):
            bound = (6 / (26 * self.V.shape[1])) ** 0.5
            self.U.zero_()
            self.V.copy_(empty(self.V.shape).uniform_(-bound, bound, generator=rng))

        def delta(self):
            K = (self.V[:, :, None] * self.U[:, None, :]).flatten(1)[:, : max(self.shape.inp, self.shape.out)]
            return self.scale * (K if self.shape.out <= self.shape.inp else K.T)

        def forward(self, x, base):
            return self.through_weight(x, base)

    def expected_parameters(self, shape):
        sites = shape.at(self.settings.sites, self.settings.layers)
        return Count(sum(m * (k1 + k2) for m, k1, k2 in map(sizes, sites)))
