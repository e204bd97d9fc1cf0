"""SingLoRA: Low Rank Adaptation Using a Single Matrix (Bensaïd et al., 2025, arXiv:2507.05566).

    h = W x + b + (alpha / r) u(t) A[:out] A[:in]^T x      A: (max(in, out), r)      u(t) = min(t / T, 1)

One matrix instead of two, so there is no imbalance between them. Where W is not square, the shorter side takes the
first rows of A. t counts optimiser steps: at the start u is zero and the output unchanged, then the change is let in
over T steps (the gradient of A is zero in the first one). A square change is symmetric and positive semidefinite.
Trained: A, r max(in, out) parameters a site; stored with it is u, one number a site, for training may end before T.
Merges exactly up to rounding. Weight decay would shrink the change quadratically.

There is no code of the authors and the paper's text was not at hand for three points. A is Kaiming-uniform with the
longer side n as its fan, in [-1/sqrt(n), 1/sqrt(n)]; ports that let torch choose take r for the fan, and A A^T is then
larger than W. T is 1,000 in one port and 100 in another; 100 ends within short tasks. Sites are LoRA's. Two ports
transpose the change where W is not square; the count follows the longer side, which gives the abstract's 60 % of LoRA
on LLaMA-7B (63 %).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings
from methods.base.contract import keep_stored


class SingLoRA(LinearMethod):
    name, family, paper = "singlora", "lowrank", "2507.05566"
    title = "SingLoRA: Low Rank Adaptation Using a Single Matrix"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-3}
    tiny = {"ramp_steps": 4}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 8
        alpha: float = 8.0
        ramp_steps: int = 100

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.out, self.inp = shape.out, shape.inp
            self.A = nn.Parameter(empty(max(self.out, self.inp), settings.rank))
            self.u = nn.Parameter(empty(()), requires_grad=False)
            keep_stored([self.u])
            self.scale = settings.alpha / settings.rank

        def initialise(self, W, b, rng, found):
            bound = 1 / math.sqrt(len(self.A))
            self.A.copy_(empty(self.A.shape).uniform_(-bound, bound, generator=rng))
            self.u.zero_()

        def delta(self):
            return self.scale * self.u * self.A[: self.out] @ self.A[: self.inp].T

        def forward(self, x, base):
            A, scale = self.A.to(x.dtype), (self.scale * self.u).to(x.dtype)
            return base(x) + scale * F.linear(F.linear(x, A[: self.inp].T), A[: self.out])

    @torch.no_grad()
    def on_step(self, step, ctx):
        for site in self.maps().values():
            site.u.fill_(min((step.index + 1) / self.settings.ramp_steps, 1.0))

    def expected_parameters(self, shape):
        sites = list(shape.at(self.settings.sites, self.settings.layers))
        trained = sum(self.settings.rank * max(o, i) for o, i, _ in sites)
        return Count(trained, stored=trained + len(sites))
