"""What suites made by code share: draws that are the same on every machine and Python version, and splits from them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tasks.base import Split, TaskData

T = TypeVar("T")


class Draw:
    """Random choices from a key. Only `random()` is used, whose stream Python guarantees for a given seed."""

    def __init__(self, *key: object):
        self._random = random.Random("/".join(map(str, key)))

    def one(self, choices: Sequence[T]) -> T:
        return choices[int(self._random.random() * len(choices))]

    def two(self, choices: Sequence[T]) -> tuple[T, T]:
        """Two different choices."""
        first = int(self._random.random() * len(choices))
        other = int(self._random.random() * (len(choices) - 1))
        return choices[first], choices[other + (other >= first)]

    def chance(self, share: float) -> bool:
        return self._random.random() < share

    def shuffled(self, items: Sequence[T]) -> list[T]:
        return [item for _, item in sorted((self._random.random(), item) for item in items)]


def held_out(*words: str) -> bool:
    """Whether a combination of words belongs to test (about a quarter do) rather than to train and validation."""
    return hashlib.sha256(" ".join(words).encode()).digest()[0] % 4 == 0


def article(next_word: str) -> str:
    return "an" if next_word[0] in "aeiou" else "a"


def generated(make: Callable[[str, int, int, set], Split], protocol: Mapping[str, Any]) -> TaskData:
    """The three splits of a protocol with the options `train`, `validation`, `test` (rows) and `data_seed`.

    make: (split, rows, seed, seen) -> the split, with nothing in it that is in `seen`, to which it adds what it made.
    """
    seen: set = set()
    seed = protocol["data_seed"]
    splits = [make(split, protocol[split], seed, seen) for split in ("train", "validation", "test")]
    return TaskData.of(*splits, source=f"generated, data seed {seed}")
