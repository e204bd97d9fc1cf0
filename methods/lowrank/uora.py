"""UORA: Uniform Orthogonal Reinitialization Adaptation in Parameter-Efficient Fine-Tuning of Large Models
(Zhang, Zhao, Yang, Zhong, Guan, Cao and Wang, 2025, arXiv:2505.20154).

    h = W x + bias + diag(b) B diag(d) A x      A: (r, in)    B: (out, r)    d: (r,)    b: (out,)
    where |d_i| is small:  A[i, :] <- (1 - rho) A[i, :] + rho A~[i, :]      B[:, i] <- (1 - rho) B[:, i] + rho B~[:, i]

As in VeRA, A and B are random and get no gradient, and d and b are trained at each site; but rows of A and columns of
B that d has no use for are drawn again during training, by interpolation with fresh uniformly distributed orthogonal
matrices A~ and B~. out + r parameters a site are trained; r can be much smaller than VeRA's. Stored are d, b and the
final A and B, because a seed alone no longer brings them back. Merges exactly up to rounding.

Of the paper only the abstract (the projections are shared across the network), this form and the counts could be
confirmed, and there is no public code. These are choices: A and B are one pair for all sites of one shape; A starts
with orthonormal rows and B with orthonormal columns; d starts at 0.1 and b at zero as in VeRA, so the output is
unchanged; every `interval` steps |d_i| is averaged over the sites of the pair, and i is drawn again where that is
below `threshold` times its mean over i, by rho = `interpolation`; neither d nor its moments in the optimiser change.
With a threshold of 0 this is VeRA on an orthogonal pair. The learning rates are VeRA's.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearSettings, SharedMethod
from methods.base.contract import keep_stored


def orthogonal(shape, rng):
    return nn.init.orthogonal_(empty(shape), generator=rng)


class UORA(SharedMethod):
    name, family, paper = "uora", "lowrank", "2505.20154"
    title = "UORA: Uniform Orthogonal Reinitialization Adaptation in Parameter-Efficient Fine-Tuning of Large Models"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-2, "head_lr": 4e-3}
    tiny = {"rank": 8, "interval": 2}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 32
        d_initial: float = 0.1
        interval: int = 100
        threshold: float = 0.5
        interpolation: float = 0.5

    class Map(LinearMap):
        def __init__(self, shape, settings, pair):
            super().__init__(shape, settings, pair)
            self.pair, self.d_initial = pair, settings.d_initial
            self.d, self.b = nn.Parameter(empty(settings.rank)), nn.Parameter(empty(shape.out))

        def initialise(self, W, b, rng, found):
            self.d.fill_(self.d_initial)
            self.b.zero_()

        def delta(self):
            A, B = self.pair.A.to(self.d), self.pair.B.to(self.d)
            return (self.b[:, None] * B) @ (self.d[:, None] * A)

        def forward(self, x, base):
            A, B, d, b = (t.to(x) for t in (self.pair.A, self.pair.B, self.d, self.b))
            return base(x) + b * F.linear(d * F.linear(x, A), B)

    def make_map(self, site, shape):
        r = self.settings.rank
        pair = self.factors(site, f"{shape.out}x{shape.inp}", orthogonal, A=(r, shape.inp), B=(shape.out, r))
        pair.requires_grad_(False)
        keep_stored(pair.parameters())
        return self.Map(shape, self.settings, pair)

    def on_step(self, step, ctx):
        if (step.index + 1) % self.settings.interval == 0:
            self.draw_again(ctx.rng("reinitialise"))

    @torch.no_grad()
    def draw_again(self, rng):
        """Interpolate rows of A and columns of B whose d_i are small with fresh ones."""
        sites = {}
        for module in self.maps().values():
            sites.setdefault(module.pair, []).append(module.d)
        for pair, ds in sites.items():
            magnitude = sum(d.abs().to(pair.A.device) for d in ds) / len(ds)
            small = (magnitude < self.settings.threshold * magnitude.mean()).float() * self.settings.interpolation
            for tensor, weight in ((pair.A, small[:, None]), (pair.B, small)):
                tensor.lerp_(orthogonal(tensor.shape, rng).to(tensor.device), weight.expand_as(tensor))

    def expected_parameters(self, shape):
        r, settings = self.settings.rank, self.settings
        sizes = [(out, inp) for out, inp, _ in shape.at(settings.sites, settings.layers)]
        trained = sum(out + r for out, _ in sizes)
        return Count(trained, stored=trained + sum(r * (out + inp) for out, inp in set(sizes)))
