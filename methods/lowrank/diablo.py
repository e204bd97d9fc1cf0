"""DiaBlo: Diagonal Blocks Are Sufficient For Finetuning (Gurses et al., 2025, arXiv:2506.03230).

Only the diagonal blocks of W change. Cut into N slices, slice k of the input acts on slice k of the output alone:

    h = W x + b + D^T x      D = diag(D_1, ..., D_N)      D_k: (in/N, out/N)

D starts at zero; there is no scaling factor and no low-rank product, and the gradient of D_k is that of the block of W
itself. Only D is trained and stored: in out / N parameters a site, so that the wide maps dominate. Where N does not
divide the sizes, as in the authors' code: blocks of d1 = ceil(in/N) by d2 = ceil(out/N), as many as it takes to cover
both sides, x padded with zeros and what lies beyond `out` cut away. Dropout acts on x. Merges exactly up to rounding.

The paper adapts q, k, v, up and down of decoders. Its learning rate differs by task (2.5e-4 for commonsense reasoning,
5e-4 for GSM8K, 1.2e-3 for MetaMathQA). A fused projection is cut into q, k and v first.
"""

from dataclasses import dataclass
from math import ceil

import torch.nn.functional as F
from torch import block_diag, einsum, empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


def block_shape(shape, N):
    """Number of blocks, and the inputs and outputs of each."""
    d1, d2 = ceil(shape.inp / N), ceil(shape.out / N)
    return max(ceil(shape.inp / d1), ceil(shape.out / d2)), d1, d2


class DiaBlo(LinearMethod):
    name, family, paper = "diablo", "lowrank", "2506.03230"
    title = "DiaBlo: Diagonal Blocks Are Sufficient For Finetuning"
    mergeable = identity_at_init = True
    recipe = {"lr": 2.5e-4}
    tiny = {"blocks": 3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down")
        blocks: int = 64
        dropout: float = 0.05

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.D = nn.Parameter(empty(block_shape(shape, settings.blocks)))
            self.dropout, self.shape = settings.dropout, shape

        def initialise(self, W, b, rng, found):
            self.D.zero_()

        def delta(self):
            return block_diag(*self.D).T[: self.shape.out, : self.shape.inp]

        def forward(self, x, base):
            N, d1, _ = self.D.shape
            z = F.pad(F.dropout(x, self.dropout, self.training), (0, N * d1 - self.shape.inp)).unflatten(-1, (N, d1))
            y = einsum("...ki,kio->...ko", z, self.D.to(x.dtype)).flatten(-2)
            return base(x) + y[..., : self.shape.out]

    def expected_parameters(self, shape):
        settings = self.settings
        sites = shape.at(settings.sites, settings.layers)
        return Count(sum(N * d1 * d2 for N, d1, d2 in (block_shape(site, settings.blocks) for site in sites)))
