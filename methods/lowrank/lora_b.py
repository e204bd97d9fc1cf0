"""LoRA with a random orthonormal A: Asymmetry in Low-Rank Adapters of Foundation Models
(Zhu et al., 2024, arXiv:2402.16842).

    h = W x + b + (alpha / r) B A dropout(x)      A: (r, in), frozen, A A^T = I    B: (out, r), zeros

Training B alone for a random A loses little against training both, while training A for a random B loses more; halved
parameters also tighten the bound on generalisation. A is drawn from the orthogonal group and never trained: it comes
back from the seed, to the rounding of the QR. Trained and stored: B, r out parameters a site. The output is unchanged
at the start; merges exactly up to rounding. Needs r <= in. The paper compares at twice LoRA's rank.

The authors take A from the right singular vectors of a uniform random matrix of the shape of W; here the QR of a
Gaussian (in, r) gives the same kind of basis at r / in of the cost. Their command for GLUE, A_rand_hB_zero, freezes B
and trains A, because the parser reads B first; the method of the paper is the one here. Defaults are their GLUE run
with RoBERTa-large.
"""

from dataclasses import dataclass

from torch import empty, nn

from methods.lowrank.ffa_lora import FFALoRA


class LoRAB(FFALoRA):
    name, family, paper = "lora_b", "lowrank", "2402.16842"
    title = "Asymmetry in Low-Rank Adapters of Foundation Models"
    recipe = {"lr": 4e-4}

    @dataclass(frozen=True)
    class Settings(FFALoRA.Settings):
        dropout: float = 0.05

    class Map(FFALoRA.Map):
        def initialise(self, W, b, rng, found):
            self.A.copy_(nn.init.orthogonal_(empty(self.A.shape), generator=rng))
            self.B.zero_()

    def supports(self, shape, task):
        narrowest = min((inp for _, inp, _ in shape.at(self.settings.sites, self.settings.layers)), default=None)
        if narrowest is not None and self.settings.rank > narrowest:
            return f"rank {self.settings.rank} exceeds the {narrowest} inputs of a site: A cannot have orthonormal rows"
        return super().supports(shape, task)
