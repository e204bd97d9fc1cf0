"""LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning
(Zhang et al., 2023, arXiv:2308.03303; since its second version with a corrected gradient).

    h = W x + b + s B A dropout(x)      A: (r, in), frozen    B: (out, r), zeros    s = alpha / r
    gradient of B, before the optimiser sees it:  g <- g (A A^T)^-1 / s^2

A is never trained, so that r activations a token and site are kept for the backward pass instead of in. With the
corrected gradient s g A is the projection of the gradient of W on the rows of A, what training W itself would do
within them. A starts as in LoRA, Kaiming-uniform in [-1/sqrt(in), 1/sqrt(in)], and comes back from the seed. Trained
and stored: B, r out parameters a site. The output is unchanged at the start; merges exactly up to rounding. r <= in.

The first version of the paper has no correction: that is `ffa_lora`. peft corrects inside its optimiser, after the
global clipping, with a pseudo-inverse in bfloat16 where the machine has it; here it is done before clipping, in fp32,
by the inverse of a matrix that never changes. peft decays weights after the update, torch's AdamW before. Under Adam
1 / s^2 cancels. alpha = 2 r and the rate are those of the authors' MetaMath example.
"""

import torch
from torch import empty

from methods.lowrank.ffa_lora import FFALoRA


class LoRAFA(FFALoRA):
    name, family, paper = "lora_fa", "lowrank", "2308.03303"
    title = "LoRA-FA: Memory-efficient Low-rank Adaptation for Large Language Models Fine-tuning"
    recipe = {"lr": 3e-4, "eps": 1e-6}

    class Map(FFALoRA.Map):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.register_buffer("correction", empty(settings.rank, settings.rank), persistent=False)

        def initialise(self, W, b, rng, found):
            super().initialise(W, b, rng, found)
            self.correction.copy_(torch.linalg.inv(self.A @ self.A.T) / self.scale**2)

    def supports(self, shape, task):
        narrowest = min((inp for _, inp, _ in shape.at(self.settings.sites, self.settings.layers)), default=None)
        if narrowest is not None and self.settings.rank > narrowest:
            return f"rank {self.settings.rank} exceeds the {narrowest} inputs of a site: A A^T has no inverse"
        return super().supports(shape, task)

    def on_gradients(self, step, ctx):
        for site in self.maps().values():
            if site.B.grad is not None:
                site.B.grad.copy_(site.B.grad @ site.correction)
