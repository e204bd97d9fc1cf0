"""LoRA+: Efficient Low Rank Adaptation of Large Models (Hayou, Ghosh and Yu, 2024, arXiv:2402.12354).

    h = W x + b + (alpha / r) B A dropout(x)      A: (r, in)    B: (out, r)
    learning rates: lr for A, ratio lr for B

As networks widen, one rate for both factors cannot let both learn features: the rate of A has to fall with the width
while that of B need not. The paper therefore fixes the ratio (its lambda) above one and tunes lr. Everything else is
LoRA: A Kaiming-uniform, B zero, r (in + out) parameters trained and stored a site, merged exactly up to rounding.

ratio 16 is the value the paper is quoted for on RoBERTa; the authors' scripts take 80 (RoBERTa-base, lr 5e-5) and 10
(GPT-2, lr 2e-4), both with r = alpha = 8. The lr here lies between them once it is multiplied by the ratio. Both groups
follow one schedule and have the recipe's weight decay.

The authors' code and peft put every one-dimensional tensor of the network into B's group, so that the head's biases
learn `ratio` times faster than its weights. Here the head keeps the recipe's rate.
"""

from dataclasses import dataclass

from methods.lowrank.lora import LoRA


class LoRAPlus(LoRA):
    name, family, paper = "lora_plus", "lowrank", "2402.12354"
    title = "LoRA+: Efficient Low Rank Adaptation of Large Models"
    recipe = {"lr": 2e-4}

    @dataclass(frozen=True)
    class Settings(LoRA.Settings):
        alpha: float = 8.0
        ratio: float = 16.0

    def parameter_groups(self, recipe):
        maps = self.maps().values()
        return [
            {"params": [site.A for site in maps]},
            {"params": [site.B for site in maps], "lr": self.settings.ratio * recipe["lr"]},
        ]
