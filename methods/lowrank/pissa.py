"""PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models
(Meng et al., 2024, arXiv:2404.02948).

    W = U diag(S) V                                U: (out, k)    S: (k,), falling    V: (k, in)    k = min(out, in)
    h = W_res x + b + s B A x                      A: (r, in)     B: (out, r)         s = alpha / r
    B = U[:, :r] sqrt(S[:r] / s)    A = sqrt(S[:r] / s) V[:r]    W_res = W - s B A

A and B hold the principal part of W and are trained; the rest W_res is frozen. The output is unchanged at the start
but for rounding to the type of W. Stored: A and B, r (in + out) parameters a site; W_res is rebuilt from the pretrained
W. Merges to W_res + s B A.

The paper has alpha = r, so s = 1; dividing S by s keeps the function for any alpha, as in huggingface/peft. All linear
maps of a block, rank 128, as in the authors' language model runs (GLUE: rank 8). No dropout: this branch carries most
of W. No weight decay either: it would act on W itself. `niter` rounds of a randomised SVD, which the authors use
for speed (16), may stand in for the exact one; W_res then takes up its error. The quantised variant is not here.
"""

from dataclasses import dataclass

from methods.base import Count, LinearSettings, OffsetMethod, SplitMap
from methods.base.factors import fast_svd, svd


class PiSSA(OffsetMethod):
    name, family, paper = "pissa", "lowrank", "2404.02948"
    title = "PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models"
    mergeable = identity_at_init = True
    recipe = {"lr": 2e-5, "schedule": "cosine", "warmup": 0.03}
    tiny = {"rank": 4, "alpha": 8.0}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 128
        alpha: float = 128.0
        niter: int = 0

    class Map(SplitMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.rank, self.niter = settings.rank, settings.niter
            self.scale = settings.alpha / settings.rank

        def initialise(self, W, b, rng, found):
            U, S, V = fast_svd(W, self.rank, self.niter, rng) if self.niter else svd(W)
            self.split(U[:, : self.rank], S[: self.rank], V[: self.rank])

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(settings.rank * (i + o) for o, i, _ in shape.at(settings.sites, settings.layers)))
