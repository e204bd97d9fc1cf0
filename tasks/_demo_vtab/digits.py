"""Natural task: scikit-learn's handwritten digits, drawn larger, at any place and in any colours."""

from __future__ import annotations

from functools import cache

import numpy as np

from tasks._demo_vtab.canvas import SIZE, paint

LABELS = tuple("0123456789")


@cache
def scans() -> tuple[np.ndarray, ...]:
    """The 1,797 scans by digit, each (n, 8, 8) in 0 to 1; no two of them are the same."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return tuple(found.images[found.target == digit] / 16 for digit in range(10))


def digit(rng: np.random.RandomState, scan: np.ndarray) -> np.ndarray:
    """scan (8, 8) in 0 to 1 -> uint8 (32, 32, 3)"""
    size = rng.randint(20, 31)
    top, left = rng.randint(0, SIZE - size + 1, 2)
    cover = np.zeros((SIZE, SIZE))
    cover[top : top + size, left : left + size] = _enlarged(scan, size)
    return paint(rng, cover)


def _enlarged(scan: np.ndarray, size: int) -> np.ndarray:
    """Bilinear, with pixel centres mapped on pixel centres and the rim repeated."""
    place = ((np.arange(size) + 0.5) * len(scan) / size - 0.5).clip(0, len(scan) - 1)
    weights = (1 - abs(place[:, None] - np.arange(len(scan)))).clip(0, 1)  # (size, 8)
    return weights @ scan @ weights.T
