"""LoKr: Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation (Yeh et al., 2024,
arXiv:2309.14859).

    ΔW = scale C ⊗ D      C: (a, b)    D: (c, d)      out = a c, in = b d

a is the largest divisor of out up to min(factor, sqrt(out)), b the same of in (equation 5); factor = -1 leaves out the
first bound. So ΔW is a grid of a x b scaled copies of D. D is whole where rank is None, or at least max(c, d) / 2; then
the scale is 1. Otherwise D = D_a D_b, D_a: (c, r), D_b: (r, d), and the scale is alpha / r. As in LyCORIS C and D_a
start Kaiming-uniform with a = sqrt(5), D or D_b at zero. (peft starts C at zero instead, and scales by alpha / r also
where D is whole; LyCORIS and peft accept a factor beyond the square root where it divides: there the sizes differ.)
All are trained and stored: a b + c d or a b + r (c + d) parameters a site.

ΔW x is had without ΔW, as C X D^T with x read as X: (b, d). Merges exactly up to rounding, with the scale of the
forward pass (LyCORIS applies it twice when it merges).

The paper adapts the text encoder and the denoiser of Stable Diffusion, with factor 8 and whole D; here all linear maps
of a block. alpha = 1 is the default of LyCORIS. Not here: a low-rank C, dropout of output rows or of whole sites,
Tucker cores for convolutions, the trained scalar.
"""

from dataclasses import dataclass
from math import isqrt

from torch import empty, kron, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


def divide(size, factor):
    """(u, size / u) with u the largest divisor up to min(factor, sqrt(size))."""
    bound = isqrt(size) if factor == -1 else min(factor, isqrt(size))
    u = next(u for u in range(bound, 0, -1) if size % u == 0)
    return u, size // u


def sizes(shape, settings):
    """a, b, c, d, and the rank of D or None."""
    (a, c), (b, d) = divide(shape.out, settings.factor), divide(shape.inp, settings.factor)
    whole = settings.rank is None or settings.rank >= max(c, d) / 2
    return a, b, c, d, None if whole else settings.rank


class LoKr(LinearMethod):
    name, family, paper = "lokr", "lowrank", "2309.14859"
    title = "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation (LoKr)"
    mergeable = identity_at_init = True
    recipe = {"lr": 5e-4}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        factor: int = 8
        rank: int | None = None
        alpha: float = 1.0

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            a, b, c, d, r = sizes(shape, settings)
            self.scale = settings.alpha / r if r else 1.0
            self.C = nn.Parameter(empty(a, b))
            self.D = nn.ParameterList([empty(c, r), empty(r, d)] if r else [empty(c, d)])

        def initialise(self, W, b, rng, found):
            for factor in (self.C, *self.D[:-1]):
                bound = factor.shape[1] ** -0.5
                factor.copy_(empty(factor.shape).uniform_(-bound, bound, generator=rng))
            self.D[-1].zero_()

        def factors(self):
            """C and D, with the scale in D."""
            D = self.D[0] @ self.D[1] if len(self.D) == 2 else self.D[0]
            return self.C, self.scale * D

        def delta(self):
            return kron(*self.factors())

        def forward(self, x, base):
            C, D = (factor.to(x.dtype) for factor in self.factors())
            X = x.unflatten(-1, (C.shape[1], D.shape[1]))
            return base(x) + (C @ (X @ D.T)).flatten(-2)

    def expected_parameters(self, shape):
        shapes = (sizes(site, self.settings) for site in shape.at(self.settings.sites, self.settings.layers))
        return Count(sum(a * b + (r * (c + d) if r else c * d) for a, b, c, d, r in shapes))
