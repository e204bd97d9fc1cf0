"""Ranks of methods over tasks: Friedman's test, and how far apart two mean ranks must be by Nemenyi's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_TASKS, LEAST_METHODS = 5, 3
LEVEL = 0.05


@dataclass(frozen=True)
class Ranking:
    """Mean ranks (1 is best) of methods over tasks, p of Friedman's test, and the critical difference at 5 %."""

    means: dict[str, float]
    tasks: int
    p: float
    difference: float

    def cliques(self) -> list[tuple[str, ...]]:
        """The longest runs of methods, best first, whose mean ranks are closer than the critical difference."""
        names = sorted(self.means, key=lambda name: (self.means[name], name))
        found: list[tuple[str, ...]] = []
        for first, start in enumerate(names):
            run = [name for name in names[first:] if self.means[name] - self.means[start] <= self.difference]
            if len(run) > 1 and (not found or run[-1] != found[-1][-1]):
                found.append(tuple(run))
        return found


def ranking(scores: dict[str, Sequence[float]]) -> Ranking:
    """Of scores (higher is better) of every method on the same tasks; ties share their mean rank."""
    import numpy as np
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    names = list(scores)
    table = np.array([scores[name] for name in names], dtype=float)
    ranks = np.array([rankdata(-column) for column in table.T]).T
    methods, tasks = table.shape
    same = bool((ranks == ranks[0]).all())
    p = 1.0 if same else float(friedmanchisquare(*table).pvalue)
    critical = float(studentized_range.ppf(1 - LEVEL, methods, math.inf)) / math.sqrt(2)
    difference = critical * math.sqrt(methods * (methods + 1) / (6 * tasks))
    return Ranking(dict(zip(names, ranks.mean(axis=1).tolist(), strict=True)), tasks, p, difference)
