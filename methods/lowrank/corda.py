"""CorDA: Context-Oriented Decomposition Adaptation of Large Language Models for Task-Aware Parameter-Efficient
Fine-tuning (Yang et al., 2024, arXiv:2406.05223).

    C = mean over examples of X X'                             X: (in, tokens), inputs of the site    C: (in, in)
    W C = U diag(S) V                                          U: (out, k)    S: (k,), falling    V: (k, in)
    B0 = U_r sqrt(S_r / s)    A0 = sqrt(S_r / s) V_r C^-1      B0: (out, r)   A0: (r, in)   s = alpha / r
    h = (W - s B0 A0) x + b + s B A x                          A, B start at A0, B0

The index r takes the first r components (`mode` "ipm", instruction-previewed: what the context uses most is trained) or
the last r ("kpm", knowledge-preserved: it is left alone). The output is unchanged at the start. Only A and B are
trained, r (in + out) parameters a site. Stored: A, B, A0, B0. Merges to W - s B0 A0 + s B A.

As in the authors' code, X of each example is divided by |max X|, and C is damped by 0.01, then 0.02, 0.04 ... of the
mean of its diagonal, until C C^-1 is the identity to 0.05; the damped C serves twice. Only the product B0 A0 is free of
the scale of C, their balance is not. Biases stay frozen as in huggingface/peft (the authors' code trains them), and
padding is left out of X. The paper has alpha = r; dividing S by s keeps the function for any alpha, as in peft. The
context is the training data: for "kpm" the paper takes questions of another data set (TriviaQA, NQ), which a cell does
not have, so that here "kpm" preserves what the task itself uses.
"""

from dataclasses import dataclass

import torch

from methods.base import Count, LinearSettings
from methods.base.calibration import CalibratedOffsetMethod, CalibratedSplitMap, examples, first_with_input, looking
from methods.base.factors import svd


class CorDA(CalibratedOffsetMethod):
    name, family, paper = "corda", "lowrank", "2406.05223"
    title = (
        "CorDA: Context-Oriented Decomposition Adaptation of Large Language Models"
        " for Task-Aware Parameter-Efficient Fine-tuning"
    )
    mergeable = identity_at_init = True
    edits_base = "offset"
    recipe = {"lr": 2e-5, "schedule": "cosine", "warmup": 0.03}
    tiny = {"rank": 8, "alpha": 8.0, "samples": 8}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 128
        alpha: float = 128.0
        mode: str = "ipm"
        samples: int = 256

        def __post_init__(self):
            if self.mode not in ("ipm", "kpm"):
                raise ValueError(f"mode must be 'ipm' or 'kpm', not '{self.mode}'")

    class Map(CalibratedSplitMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.scale = settings.alpha / settings.rank
            self.chosen = {"ipm": slice(settings.rank), "kpm": slice(-settings.rank, None)}[settings.mode]

        def initialise(self, W, b, rng, found):
            U, S, V = self.decompose(W, found)
            self.split(U[:, self.chosen], S[self.chosen], V[self.chosen])

        @staticmethod
        def decompose(W, C):
            """U, S and V C^-1 with W = U diag(S) V C^-1, for the damped C."""
            damp, eye = 0.01, torch.eye(len(C), dtype=C.dtype, device=C.device)
            while True:
                damped = C + damp * C.diagonal().mean() * eye
                inverse = torch.linalg.inv(damped)
                if torch.dist(damped @ inverse, eye) < 0.05:
                    break
                damp *= 2
            U, S, V = svd(W.double() @ damped.double())
            return U, S, V @ inverse.double()

    @torch.no_grad()
    def calibrate(self, backbone, ctx):
        first, C, count = first_with_input(self.planned.sites), {}, 0

        def see(site, X):
            X = X.float()
            peak = X.max().abs()
            X = X / torch.where(peak > 0, peak, 1.0)
            C[site] = C[site].addmm_(X.T, X) if site in C else X.T @ X

        sites = [backbone.site(site) for site in dict.fromkeys(first.values())]
        with looking(backbone, ctx, training=False), backbone.inputs(sites, see):
            for batch in examples(ctx, self.settings.samples):
                backbone.forward(batch)
                count += 1
        means = {site: total / count for site, total in C.items()}
        self.found = {site: means[first[site]] for site in first}

    def expected_parameters(self, shape):
        settings = self.settings
        trained = sum(settings.rank * (i + o) for o, i, _ in shape.at(settings.sites, settings.layers))
        return Count(trained, stored=2 * trained)
