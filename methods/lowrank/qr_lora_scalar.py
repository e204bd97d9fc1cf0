"""QR-LoRA: QR-Based Low-Rank Adaptation for Efficient Fine-Tuning of Large Language Models
(Liang and Bharadwaj, 2025, arXiv:2508.21810). The QR-LoRA of image generation is another method: qr_lora_delta_r.

    W P = Q R            QR with column pivoting      Q: (out, k)    R: (k, in)    k = min(out, in)
    dW = sum_i lambda_i q_i r_i^T = Q_r diag(lambda) R_r P^T          h = W x + b + dW x

Only lambda is trained and stored, r scalars a site, from zero, so that the output is unchanged; Q_r and R_r P^T are
frozen and come back from W. r is the smallest number of directions whose R_ii^2 sum to the share tau of all, so it
depends on W and differs by site. Merges to W + dW.

There is no public code. Not confirmed by what of the paper could be read: that the energy is that of squares, that
lambda starts at zero, that W is decomposed as stored (out, in), and which projections and layers give the 601
parameters it reports on RoBERTa-base. tau is the lower end of the paper's usual range; the learning rate is this
project's choice. P^T puts the update into the column order of W.
"""

from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings
from methods.base.factors import frozen, pivoted_qr


def steps(R, chosen, tau):
    """The least number of pivots of R (k, in), in the order they were chosen, that hold the share tau of the energy."""
    energy = R[:, chosen].diagonal().square().cumsum(0)
    return int((energy < tau * energy[-1]).sum()) + 1


class QRLoRAScalar(LinearMethod):
    name, family, paper = "qr_lora_scalar", "lowrank", "2508.21810"
    title = "QR-LoRA: QR-Based Low-Rank Adaptation for Efficient Fine-Tuning of Large Language Models"
    mergeable = identity_at_init = True
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        tau: float = 0.9

    class Map(LinearMap):
        def __init__(self, shape, rank):
            super().__init__(shape, None, None)
            self.Q, self.R = frozen(shape.out, rank), frozen(rank, shape.inp)
            self.lambda_ = nn.Parameter(empty(rank))

        def initialise(self, W, b, rng, found):
            Q, R = found
            self.Q.copy_(Q)
            self.R.copy_(R)
            self.lambda_.zero_()

        def delta(self):
            return self.Q * self.lambda_ @ self.R

        def forward(self, x, base):
            z = F.linear(x, self.R.to(x.dtype)) * self.lambda_.to(x.dtype)
            return base(x) + F.linear(z, self.Q.to(x.dtype))

    def calibrate(self, backbone, ctx):
        ranks = {}
        for site in map(backbone.site, self.planned.sites):
            Q, R, chosen = pivoted_qr(site.weight(), min(site.shape[:2]))
            r = ranks[site.id] = steps(R, chosen, self.settings.tau)
            self.found[site.id] = Q[:, :r].float(), R[:r].float()
        self.planned = replace(self.planned, ranks=ranks)

    def make_map(self, site, shape):
        return self.Map(shape, self.planned.ranks.get(site, min(shape[:2])))

    def initialise(self, backbone, ctx):
        super().initialise(backbone, ctx)
        self.found.clear()

    def expected_parameters(self, shape):
        smaller = [min(o, i) for o, i, _ in shape.at(self.settings.sites, self.settings.layers)]
        return Count((len(smaller), sum(smaller)))
