"""DenseLoRA: Dense Low-Rank Adaptation of Large Language Models
(Mu, Wang, Ni, Li, Wu, Jin and Zhang, 2025, arXiv:2505.23808).

    h = W x + bias + (alpha / r) Dec(M Enc(x))      Enc(x) = GELU(W_e x)    W_e: (r, in)
                                                    Dec(z) = GELU(W_d z)    W_d: (out, r)    M: (r, r)

One encoder W_e and decoder W_d for each kind of site (and shape), shared by all layers, and a dense M at each site;
all of them are trained. W_e and M start Kaiming-uniform with a = sqrt(5), U(-1/sqrt(n), 1/sqrt(n)) for n columns, W_d
at zero: GELU(0) = 0, so the output is unchanged, and M and W_e get their first gradient after W_d has moved. Dropout
acts on x, on the encoder's output and on the decoder's. GELU after the decoder bounds what it can subtract to about
0.17 alpha / r a unit. Nonlinear, so it does not merge. Sites are q, k, v, up and down as in the paper;
(in + out) r a kind plus r^2 a site.

The authors' released code never runs its branch (it tests for another name than the one it sets); the order of the
operations, dropout and initialisation are as written there.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearSettings, SharedMethod, constant, kaiming_uniform

lora_uniform = partial(kaiming_uniform, a=math.sqrt(5))


class DenseLoRA(SharedMethod):
    name, family, paper = "denselora", "lowrank", "2505.23808"
    title = "DenseLoRA: Dense Low-Rank Adaptation of Large Language Models"
    identity_at_init = True
    recipe = {"lr": 3e-4}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down")
        rank: int = 16
        alpha: float = 32.0
        dropout: float = 0.05

    class Map(LinearMap):
        def __init__(self, shape, settings, pair):
            super().__init__(shape, settings, pair)
            self.encoder, self.decoder = pair
            self.M = nn.Parameter(empty(settings.rank, settings.rank))
            self.scale, self.dropout = settings.alpha / settings.rank, settings.dropout

        def initialise(self, W, b, rng, found):
            self.M.copy_(lora_uniform(self.M.shape, rng))

        def forward(self, x, base):
            W_e, M, W_d = (t.to(x) for t in (self.encoder.weight, self.M, self.decoder.weight))
            z = self.drop(F.gelu(F.linear(self.drop(x), W_e)))
            return base(x) + self.scale * self.drop(F.gelu(F.linear(F.linear(z, M), W_d)))

        def drop(self, x):
            return F.dropout(x, self.dropout, self.training)

    def make_map(self, site, shape):
        r, kind = self.settings.rank, f"{site.name.replace('.', '/')}/{shape.out}x{shape.inp}"
        encoder = self.factors(site, f"{kind}/encoder", lora_uniform, weight=(r, shape.inp))
        decoder = self.factors(site, f"{kind}/decoder", constant(0.0), weight=(shape.out, r))
        return self.Map(shape, self.settings, (encoder, decoder))

    def expected_parameters(self, shape):
        r, sites = self.settings.rank, self.plan(shape).sites
        kinds = {(site.name, shape.linears[site].out, shape.linears[site].inp) for site in sites}
        return Count(sum((out + inp) * r for _, out, inp in kinds) + len(sites) * r**2)
