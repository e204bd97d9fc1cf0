"""Random labels: another method, trained on labels that say nothing about their examples.

Within each true class the labels are dealt out afresh, in the proportions of the whole training set, so that they
agree with the truth exactly as often as chance. (A plain shuffle agrees a little more or less often by accident; the
network finds that and ends above or below chance.) A score above chance on held-out data then means that the
evaluation leaks. Scores and answers are shuffled. Validation and test labels stay true.
"""

from dataclasses import dataclass, replace

import numpy as np
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
        rng = ctx.rng("random_labels")

        def shuffled(values):
            return values[torch.randperm(len(values), generator=rng).numpy()]

        labels = shuffled(data.labels)
        if data.labels.dtype.kind in "iu":
            for true in np.unique(data.labels):
                rows = data.labels == true
                labels[rows] = shuffled(dealt(data.labels, int(rows.sum())))
        return replace(data, labels=labels)


def dealt(labels, size):
    """`size` labels in the proportions of `labels` (n,), by largest remainder."""
    values, counts = np.unique(labels, return_counts=True)
    shares = counts * size / len(labels)
    quota = np.floor(shares).astype(int)
    quota[np.argsort(quota - shares, kind="stable")[: size - quota.sum()]] += 1
    return np.repeat(values, quota)
