"""PVeRA: Probabilistic Vector-Based Random Matrix Adaptation
(Fillioux, Ferrante, Cournède, Vakalopoulou and Christodoulidis, 2025, arXiv:2512.07703).

    mu, log s^2 = the halves of diag(d) A x      z = mu + s * eps,  eps ~ Normal(0, I) for each token
    h = W x + bias + alpha diag(b) B z           A: (2 r, in)    B: (out, r)    d: (2 r,)    b: (out,)
    loss = task loss + 1 / beta * sum over blocks, mean over a block's sites of KL(Normal(mu, s^2) || Normal(0, I))

VeRA with a Gaussian latent code: sampled in training, its mean in evaluation. The divergence is a mean over tokens
(padding too: the paper has images) and latent dimensions; beta is chosen for each data set, from 1e6 to 1e16. A and B
are frozen, one pair for each kind of site and shape, shared by all layers. As in the authors' code A is drawn as
(in, 2 r) and B as (r, out), which gives torch's Kaiming-uniform the bounds sqrt(6 / 2 r) and sqrt(6 / out); all of d
starts at one number from U(1e-5, 1), and b at zero, so the output is unchanged whatever is sampled.

The paper adapts query and value of a vision transformer and chooses the learning rate from 1e-3, 1e-4 and 1e-5.
out + 2 r parameters a site; A and B come back from the seed. The mean merges exactly up to rounding:
W + alpha diag(b) B diag(d[:r]) A[:r]. Noise is drawn from torch's own generator, like dropout, so that gradient
checkpointing repeats it. peft has another profile: no alpha, no divergence, d at 0.1, one pair of VeRA's bounds for
all sites of which smaller ones use a part.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearSettings, SharedMethod, kaiming_uniform


def transposed_kaiming(shape, rng):
    return kaiming_uniform(shape[::-1], rng).T


class PVeRA(SharedMethod):
    name, family, paper = "pvera", "lowrank", "2512.07703"
    title = "PVeRA: Probabilistic Vector-Based Random Matrix Adaptation"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3, "head_lr": 1e-4}
    tiny = {"rank": 16}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 256
        alpha: float = 16.0
        beta: float = 1e6

    class Map(LinearMap):
        def __init__(self, shape, settings, bases):
            super().__init__(shape, settings, bases)
            self.bases, self.rank, self.alpha = bases, settings.rank, settings.alpha
            self.d, self.b = nn.Parameter(empty(2 * settings.rank)), nn.Parameter(empty(shape.out))

        def initialise(self, W, b, rng, found):
            self.d.fill_(empty(()).uniform_(1e-5, 1, generator=rng).item())
            self.b.zero_()

        def delta(self):
            d, A = self.d[: self.rank, None], self.bases.A[: self.rank]
            return self.alpha * (self.b[:, None] * self.bases.B) @ (d * A)

        def forward(self, x, base):
            A, B, d, b = (t.to(x.dtype) for t in (self.bases.A, self.bases.B, self.d, self.b))
            z, log_variance = (d * F.linear(x, A)).chunk(2, -1)
            if self.training:
                mu, log_variance = z.float(), log_variance.float()
                self.penalise(0.5 * (mu**2 + log_variance.exp() - log_variance - 1).mean())
                z = (mu + torch.randn_like(mu) * torch.exp(0.5 * log_variance)).to(x.dtype)
            return base(x) + self.alpha * b * F.linear(z, B)

        def penalise(self, divergence):
            self.backbone.state.penalties[self.site] = divergence / self.divisor

    def make_map(self, site, shape):
        r, name = self.settings.rank, f"{site.name.replace('.', '/')}/{shape.out}x{shape.inp}"
        bases = self.bases(site, name, transposed_kaiming, A=(2 * r, shape.inp), B=(shape.out, r))
        made = self.Map(shape, self.settings, bases)
        made.backbone = self.backbone
        made.divisor = self.settings.beta * sum(other[:2] == site[:2] for other in self.planned.sites)
        return made

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(out + 2 * settings.rank for out, _, _ in shape.at(settings.sites, settings.layers)))
