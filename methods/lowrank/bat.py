"""Bat: Block Affine Transformation, the weight-guided form of Bone: Block-Affine Adaptation of Large Language Models
(Kang, 2024, arXiv:2409.15371; not in version 12, MiSS).

W (out, in) is cut into blocks of r x r, and one matrix for each row of blocks transforms and shifts them:

    W'[i, j] = W[i, j] + W[i, j] D[i] + D[i]      D: (out/r, r, r)

so the update depends on W and differs across j although D is shared: ΔW[i, j] = (W[i, j] + I) D[i]. D starts at
zero and there is no scaling factor. Only D is trained and stored, r out parameters a site. ΔW is built in every forward
pass, as in the authors' code. Merges exactly up to rounding; unmerging is from a copy, where peft inverts I + D[i].
r must divide in and out. The papers adapt all linear maps, with r = 64 and a learning rate of 2e-5.
"""

from dataclasses import dataclass

from torch import einsum, empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class Bat(LinearMethod):
    name, family, paper = "bat", "lowrank", "2409.15371"
    title = "Bone: Block-Affine Adaptation of Large Language Models (Bat, its weight-guided form)"
    mergeable = identity_at_init = True
    recipe = {"lr": 2e-5}
    tiny = {"rank": 8}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 64

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            r = settings.rank
            self.D = nn.Parameter(empty(shape.out // r, r, r))

        def initialise(self, W, b, rng, found):
            self.D.zero_()

        def delta(self):
            r = self.D.shape[-1]
            W = self.W().to(self.D.dtype).unflatten(0, (-1, r)).unflatten(-1, (-1, r))
            update = einsum("ipjq,iqs->ipjs", W, self.D) + self.D[:, :, None]
            return update.flatten(2).flatten(0, 1)

        def forward(self, x, base):
            return self.through_weight(x, base)

    def supports(self, shape, task):
        r = self.settings.rank
        odd = [str(s) for s in self.plan(shape).sites if shape.linears[s].inp % r or shape.linears[s].out % r]
        return f"the rank {r} does not divide the sizes of {odd[0]}" if odd else super().supports(shape, task)

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(settings.rank * o for o, _, _ in shape.at(settings.sites, settings.layers)))
