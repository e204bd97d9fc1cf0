"""rsLoRA: A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA (Kalajdzievski, 2023, arXiv:2312.03732).

    h = W x + b + (alpha / sqrt(r)) B A dropout(x)      A: (r, in)    B: (out, r)

LoRA divides by r, so that the branch and its gradients shrink as the rank grows; with the square root both stay of the
same size for every rank, provided that the variance of A does not depend on r. A starts Kaiming-uniform in
[-1/sqrt(in), 1/sqrt(in)], B at zero, so the output is unchanged. Trained and stored: A and B, r (in + out) a site, at
every linear map of attention and feed-forward as in the paper. Merges exactly up to rounding.

The paper's alpha is not known and there is no code of its author. alpha is LoRA's here, so that at r = 8 the branch is
sqrt(8) times stronger than LoRA's; the rate is that of the paper's main run as others report it (Llama 2, constant
schedule).
"""

from dataclasses import dataclass
from math import sqrt

from methods.lowrank.lora import LoRA


class RsLoRA(LoRA):
    name, family, paper = "rslora", "lowrank", "2312.03732"
    title = "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA"
    recipe = {"lr": 5e-4}

    @dataclass(frozen=True)
    class Settings(LoRA.Settings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")

    class Map(LoRA.Map):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.scale = settings.alpha / sqrt(settings.rank)
