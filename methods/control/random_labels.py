"""Random labels: another method, trained on labels that were shuffled once over the training set.

The text tells nothing about the label, so a score above chance on held-out data means that the evaluation leaks.
Every class keeps its size. Validation and test labels stay true.
"""

from dataclasses import dataclass, replace

import torch

from methods.base import Wrapper, WrapperSettings


class RandomLabels(Wrapper):
    name, family = "random_labels", "control"
    title = "Full fine-tuning on shuffled labels"
    learns = False
    recipe = {"lr": 5e-5, "weight_decay": 0.01}

    @dataclass(frozen=True)
    class Settings(WrapperSettings):
        base: str = "full"

    def training_data(self, data, ctx):
        order = torch.randperm(len(data), generator=ctx.rng("random_labels")).numpy()
        return replace(data, labels=data.labels[order])
