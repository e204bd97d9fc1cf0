"""GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning (Jung et al., 2025, arXiv:2505.20355).

W (out, in) is cut into a grid of k x k blocks, and each block gets an adapter of its own, of rank q = r / k:

    ΔW[i, j] = (alpha / r) B[i, j] A[i, j]      A: (k, k, q, in/k)    B: (k, k, out/k, q)

A starts Kaiming-uniform with a = sqrt(5) on a fan-in of in/k, that is U(-sqrt(k/in), sqrt(k/in)); B starts at zero.
Only A and B are trained and stored: r (in + out) parameters a site, whatever k, for a rank of up to k r. Dropout acts
on the input of A. Merges exactly up to rounding (the authors' layer does not merge). k must divide in, out and r.

Hybrid GraLoRA: `hybrid` of the ranks go to a plain LoRA over the whole matrix, which is a grid of one block; the scale
stays alpha / r. As in the authors' code r is the total; in peft the hybrid rank comes on top of r. The authors take
k = 2 at r = 16 (hybrid 8) and r = 32, k = 4 at 64 and 128, alpha = 2 r, all linear maps, and Lion at 2e-4; here the
optimiser is the recipe's. At k = 1 this is LoRA.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import einsum, empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class GraLoRA(LinearMethod):
    name, family, paper = "gralora", "lowrank", "2505.20355"
    title = "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning"
    mergeable = identity_at_init = True
    recipe = {"lr": 2e-4}
    tiny = {"rank": 8, "alpha": 16.0, "hybrid": 4}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 32
        alpha: float = 64.0
        k: int = 2
        hybrid: int = 0
        dropout: float = 0.05

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.scale, self.dropout, self.shape = settings.alpha / settings.rank, settings.dropout, shape
            self.A, self.B = nn.ParameterList(), nn.ParameterList()
            for k, r in ((settings.k, settings.rank - settings.hybrid), (1, settings.hybrid)):
                if r:
                    self.A.append(nn.Parameter(empty(k, k, r // k, shape.inp // k)))
                    self.B.append(nn.Parameter(empty(k, k, shape.out // k, r // k)))

        def initialise(self, W, b, rng, found):
            for A, B in zip(self.A, self.B, strict=True):
                bound = A.shape[-1] ** -0.5
                A.copy_(empty(A.shape).uniform_(-bound, bound, generator=rng))
                B.zero_()

        def delta(self):
            grids = (einsum("ijoq,ijqn->iojn", B, A) for A, B in zip(self.A, self.B, strict=True))
            return self.scale * sum(grid.reshape(self.shape.out, self.shape.inp) for grid in grids)

        def forward(self, x, base):
            y, z = base(x), F.dropout(x, self.dropout, self.training)
            for A, B in zip(self.A, self.B, strict=True):
                hidden = einsum("...jn,ijqn->...ijq", z.unflatten(-1, (len(A), -1)), A.to(x.dtype))
                y = y + einsum("...ijq,ijoq->...io", hidden, B.to(x.dtype)).flatten(-2) * self.scale
            return y

    def supports(self, shape, task):
        k, r, h = self.settings.k, self.settings.rank, self.settings.hybrid
        if (r - h) % k:
            return f"k = {k} does not divide the rank {r - h} of the blocks"
        odd = [str(s) for s in self.plan(shape).sites if shape.linears[s].inp % k or shape.linears[s].out % k]
        return f"k = {k} does not divide the sizes of {odd[0]}" if odd else super().supports(shape, task)

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(settings.rank * (i + o) for o, i, _ in shape.at(settings.sites, settings.layers)))
