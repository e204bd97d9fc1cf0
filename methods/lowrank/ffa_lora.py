"""FFA-LoRA: Improving LoRA in Privacy-preserving Federated Learning (Sun et al., 2024, arXiv:2403.12313).

    h = W x + b + (alpha / r) B A dropout(x)      A: (r, in), frozen    B: (out, r), zeros

The change is linear in B, so that the mean of several clients' B is the mean of their changes, and noise for privacy
enters linearly. This is the method of one client: no server and no noise. A starts as in LoRA, Kaiming-uniform in
[-1/sqrt(in), 1/sqrt(in)], and is never trained; all clients share it, because it comes from the seed. Trained and
stored: B, r out parameters a site. The output is unchanged at the start; merges exactly up to rounding.

With stochastic gradient descent alpha only rescales the learning rate by its square, with Adam by its first power.
The paper speaks of a Gaussian A; Kaiming-uniform is what code that follows it takes. Its rank, alpha and rates are not
confirmed and were tuned for federated rounds, so rank, alpha and sites are LoRA's; the rate is higher than LoRA's,
because one factor rests.
"""

from methods.base import Count
from methods.lowrank.lora import LoRA


class FFALoRA(LoRA):
    name, family, paper = "ffa_lora", "lowrank", "2403.12313"
    title = "Improving LoRA in Privacy-preserving Federated Learning"
    recipe = {"lr": 2e-3}

    class Map(LoRA.Map):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.A.requires_grad_(False)

    def expected_parameters(self, shape):
        settings = self.settings
        return Count(sum(settings.rank * out for out, _, _ in shape.at(settings.sites, settings.layers)))
