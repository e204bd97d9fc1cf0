"""Drawing: shapes on a fine grid, brought down to 32 by 32 and coloured. The same on every machine.

Random numbers come from `numpy.random.RandomState`, whose streams numpy has frozen.
"""

from __future__ import annotations

import hashlib

import numpy as np

SIZE = 32
FINE = 3  # cells of the fine grid along a pixel
CONTRAST = 0.45  # least distance of object and background colour, in the unit cube

_axis = (np.arange(SIZE * FINE) + 0.5) / FINE
X, Y = np.meshgrid(_axis, _axis)  # (96, 96), in pixels from the top left corner


def random_state(*key: object) -> np.random.RandomState:
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, "<u4"))


def turned(x: float, y: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the fine grid from a centre, along and across a direction (radians, clockwise)."""
    dx, dy = X - x, Y - y
    return np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx


def disc(x: float, y: float, radius: float, angle: float) -> np.ndarray:
    """Which cells of the fine grid are inside, (96, 96) bool; so for all shapes, whose areas are about the same."""
    return np.hypot(X - x, Y - y) <= radius


def square(x: float, y: float, radius: float, angle: float) -> np.ndarray:
    along, across = turned(x, y, angle)
    return np.maximum(abs(along), abs(across)) <= 0.88 * radius


def triangle(x: float, y: float, radius: float, angle: float) -> np.ndarray:
    sides = [turned(x, y, angle + third * 2 * np.pi / 3)[0] for third in range(3)]
    return np.maximum.reduce(sides) <= 0.7 * radius


def cross(x: float, y: float, radius: float, angle: float) -> np.ndarray:
    along, across = turned(x, y, angle)
    near, far = np.minimum(abs(along), abs(across)), np.maximum(abs(along), abs(across))
    return (near <= 0.42 * radius) & (far <= 1.15 * radius)


SHAPES = (disc, square, triangle, cross)


def shrink(fine: np.ndarray) -> np.ndarray:
    """(96, 96) -> (32, 32), the mean of the cells of each pixel."""
    return fine.reshape(SIZE, FINE, SIZE, FINE).mean(axis=(1, 3))


def paint(rng: np.random.RandomState, cover: np.ndarray) -> np.ndarray:
    """cover (32, 32) in 0 to 1, of an object before a background -> uint8 (32, 32, 3).

    Both have any colour, so the object may be lighter or darker; the background has a slope, and there is noise.
    """
    back = rng.uniform(0.1, 0.9, 3)
    front = rng.uniform(0, 1, 3)
    while np.linalg.norm(front - back) < CONTRAST:
        front = rng.uniform(0, 1, 3)
    angle = rng.uniform(0, 2 * np.pi)
    slope = shrink(turned(SIZE / 2, SIZE / 2, angle)[0]) / SIZE * rng.uniform(0, 0.3)
    noise = rng.uniform(-1, 1, (SIZE, SIZE, 3)) * rng.uniform(0, 0.15)
    image = (back + slope[..., None]) * (1 - cover[..., None]) + front * cover[..., None] + noise
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)
