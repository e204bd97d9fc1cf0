"""Specialized task: the kind of a pattern that fills the image, whatever its scale, direction and colours."""

from __future__ import annotations

import numpy as np

from tasks._demo_vtab.canvas import SIZE, paint, shrink, turned

BLUR = 6  # cells of the fine grid


def _stripes(u, v, rng):
    return u % 1 < 0.5


def _checks(u, v, rng):
    return (u % 1 < 0.5) ^ (v % 1 < 0.5)


def _dots(u, v, rng):
    return np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.36


def _rings(u, v, rng):
    return np.hypot(u, v) % 1 < 0.5


def _bricks(u, v, rng):
    row = np.floor(2 * v)
    return ((2 * v) % 1 < 0.72) & ((u + row / 2) % 1 < 0.86)


def _blotches(u, v, rng):
    rough = rng.uniform(0, 1, u.shape)
    width = int(BLUR * rng.uniform(1.5, 3))
    for axis in (0, 1):
        rough = sum(np.roll(rough, shift, axis) for shift in range(width))
    return rough > np.median(rough)


PATTERNS = {
    "stripes": _stripes,
    "checks": _checks,
    "dots": _dots,
    "rings": _rings,
    "bricks": _bricks,
    "blotches": _blotches,
}
LABELS = tuple(PATTERNS)


def texture(rng: np.random.RandomState, label: int) -> np.ndarray:
    period = rng.uniform(5, 11)  # pixels
    u, v = (d / period for d in turned(*rng.uniform(0, SIZE, 2), rng.uniform(0, np.pi)))
    fine = PATTERNS[LABELS[label]](u, v, rng)
    return paint(rng, shrink(fine))
