"""Structured tasks: how many objects there are, where one is, how it is turned."""

from __future__ import annotations

import numpy as np

from tasks._demo_vtab.canvas import SHAPES, SIZE, X, paint, shrink, turned

COUNTS = ("one", "two", "three", "four", "five", "six")
CELLS = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right"))
TURNS = 8
ANGLES = tuple(f"{turn * 180 / TURNS:g} degrees" for turn in range(TURNS))  # clockwise from the horizontal


def count(rng: np.random.RandomState, label: int) -> np.ndarray:
    """One to six objects of one shape that do not touch. Their size varies, so that their area does not tell."""
    shape = SHAPES[rng.randint(len(SHAPES))]
    radius = rng.uniform(2, 3.6)
    places: list[tuple[float, float]] = []
    while len(places) < label + 1:
        x, y = rng.uniform(radius + 0.5, SIZE - radius - 0.5, 2)
        if all(np.hypot(x - a, y - b) > 2.6 * radius + 1 for a, b in places):
            places.append((x, y))
        elif rng.uniform() < 0.02:  # the first ones may leave no room for the rest
            places.clear()
    cover = np.zeros(X.shape, bool)
    for x, y in places:
        cover |= shape(x, y, radius * rng.uniform(0.85, 1.1), rng.uniform(0, np.pi))
    return paint(rng, shrink(cover))


def position(rng: np.random.RandomState, label: int) -> np.ndarray:
    """One object whose centre is in one of nine cells, before thin lines that cross the whole image."""
    row, column = divmod(label, 3)
    x, y = ((place + rng.uniform(0.12, 0.88)) * SIZE / 3 for place in (column, row))
    shape, radius = SHAPES[rng.randint(len(SHAPES))], rng.uniform(2.5, 4.5)
    cover = shape(x, y, radius, rng.uniform(0, np.pi))
    for _ in range(rng.randint(1, 3)):
        cover |= abs(turned(*rng.uniform(4, SIZE - 4, 2), rng.uniform(0, np.pi))[1]) < 0.4
    return paint(rng, shrink(cover))


def orientation(rng: np.random.RandomState, label: int) -> np.ndarray:
    """One long object, a bar, ellipse, diamond or pair of lines, along one of eight directions, up to 8 degrees off."""
    angle = (label * 180 / TURNS + rng.uniform(-8, 8)) * np.pi / 180
    long = rng.uniform(6, 12)
    short = long * rng.uniform(0.2, 0.4)
    along, across = (abs(d) for d in turned(*rng.uniform(long * 0.7, SIZE - long * 0.7, 2), angle))
    kinds = (
        (along <= long) & (across <= short),
        np.hypot(along / long, across / short) <= 1,
        along / long + across / (1.4 * short) <= 1,
        (along <= long) & (across <= short) & (across >= 0.45 * short),
    )
    return paint(rng, shrink(kinds[rng.randint(len(kinds))]))
