"""QR-LoRA: Efficient and Disentangled Fine-tuning via QR Decomposition for Customized Generation
(Yang et al., 2025, arXiv:2507.04599). The QR-LoRA of GLUE is another method: qr_lora_scalar.

    U_r diag(S_r) V_r = Q R        QR of the best approximation of W of rank r      Q: (out, r)    R: (r, in)
    h = W_res x + b + Q (R + dR) x = W x + b + Q dR x      W_res = W - Q R      dR: (r, in), zeros

Q is frozen, orthonormal and comes back from W; only dR is trained and stored, r in parameters a site, half of LoRA's on
a square W. With `triu`, the authors' default, dR keeps the upper trapezoidal form of R: its r (r - 1) / 2 entries below
the diagonal take no part and stay zero. The output is unchanged at the start. Merges to W + Q dR.

R is frozen and cancels against W_res, so neither is held here: the function is the same and W is not rounded twice. The
authors keep both, in order to add several dR up. They set alpha = r, so there is no scaling factor, and start dR at
zero in the scripts they ship (noise is an option). Rank and learning rate are those of their image runs; all linear
maps of a block, as there. Nothing is published for language or classification.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, FactorMethod, LinearMap, LinearSettings
from methods.base.factors import frozen, qr, svd


class QRLoRADeltaR(FactorMethod):
    name, family, paper = "qr_lora_delta_r", "lowrank", "2507.04599"
    title = "QR-LoRA: Efficient and Disentangled Fine-tuning via QR Decomposition for Customized Generation"
    mergeable = identity_at_init = True
    recipe = {"lr": 1e-4, "schedule": "constant", "warmup": 0.0}
    tiny = {"rank": 8}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 64
        triu: bool = True

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.Q, self.dR = frozen(shape.out, settings.rank), nn.Parameter(empty(settings.rank, shape.inp))
            self.triu = settings.triu

        def initialise(self, W, b, rng, found):
            U, S, V = svd(W)
            r = len(self.dR)
            self.Q.copy_(qr(U[:, :r] * S[:r] @ V[:r, :r])[0])  # of the first r columns: the others add nothing to Q
            self.dR.zero_()

        def update(self):
            return self.dR.triu() if self.triu else self.dR

        def delta(self):
            return self.Q @ self.update()

        def forward(self, x, base):
            return base(x) + F.linear(F.linear(x, self.update().to(x.dtype)), self.Q.to(x.dtype))

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(settings.rank * i for _, i, _ in shape.at(settings.sites, settings.layers)))
