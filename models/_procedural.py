"""Images whose classes are formulas, for pretraining without any data (after FractalDB, Kataoka et al., 2021,
arXiv:2101.08515).

Four families of classes, alike in number. A class is a draw of a family's parameters; its images differ in place,
size, phase, small turns and shears, colours, background and noise:

    texture        three plane waves with their own frequencies and directions
    contour        a filled or hollow shape whose radius is a Fourier series of the angle
    fractal        points of an iterated function system of two to four affine maps
    arrangement    two to five elongated blobs, each with its own place and direction

Early in training images are light on grey, and colours come in bit by bit: with all colours from the start, a small
network sees nothing else for hundreds of steps. No image is mirrored: direction and place are what many classes differ
in.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SIZE = 32
CLASSES = 32  # of a family
FAMILIES = ("texture", "contour", "fractal", "arrangement")
HARMONICS = 7
POINTS = 20000  # of a fractal, of which each image shows some
SHOWN = 500
BLOBS = 5


class Images:
    """Batches of images and their classes, (B, 3, 32, 32) in -1 to 1 and (B,). The same seed gives the same batches."""

    def __init__(self, seed: int):
        self.rng = torch.Generator().manual_seed(seed)
        axis = (torch.arange(SIZE) + 0.5) / SIZE * 2 - 1
        self.y, self.x = torch.meshgrid(axis, axis, indexing="ij")  # (32, 32), in -1 to 1
        self._draw_textures()
        self._draw_contours()
        self._draw_fractals()
        self._draw_arrangements()

    def batch(self, size: int, varied: float = 1.0) -> tuple[Tensor, Tensor]:
        """`size` images, as many of each family; `varied` is the share in any colours, the others are light on grey."""
        each = size // len(FAMILIES)
        kinds = [torch.randint(CLASSES, (each,), generator=self.rng) for _ in FAMILIES]
        masks = torch.cat([getattr(self, f"_{family}")(kind) for family, kind in zip(FAMILIES, kinds, strict=True)])
        labels = torch.cat([kind + CLASSES * place for place, kind in enumerate(kinds)])
        return self._paint(masks, varied), labels

    def _between(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=self.rng)

    def _draw_textures(self) -> None:
        self.frequency = self._between(1.5, 8, CLASSES, 3)  # periods across the image
        self.direction = self._between(0, math.pi, CLASSES, 3)
        self.amplitude = self._between(0.4, 1, CLASSES, 3)

    def _texture(self, kind: Tensor) -> Tensor:
        """kind (B,) -> (B, 32, 32) in 0 to 1, as of all families"""
        n = len(kind)
        turn = self.direction[kind] + self._between(-0.08, 0.08, n, 1)
        wave = math.pi * self.frequency[kind] * self._between(0.93, 1.07, n, 1)
        phase = self._between(0, 2 * math.pi, n, 3)
        along = _at(turn.cos()) * self.x + _at(turn.sin()) * self.y
        total = (_at(self.amplitude[kind]) * torch.sin(_at(wave) * along + _at(phase))).sum(1)
        return torch.sigmoid(total * _at(self._between(1.5, 4, n)))

    def _draw_contours(self) -> None:
        order = torch.arange(2, 2 + HARMONICS)
        self.radius = self._between(-1, 1, CLASSES, HARMONICS) / order.sqrt() * 0.5
        self.angle = self._between(0, 2 * math.pi, CLASSES, HARMONICS)
        self.hollow = torch.arange(CLASSES) % 2

    def _contour(self, kind: Tensor) -> Tensor:
        n = len(kind)
        x = self.x - _at(self._between(-0.4, 0.4, n))
        y = self.y - _at(self._between(-0.4, 0.4, n))
        phi = torch.atan2(y, x) + _at(self._between(-0.15, 0.15, n))
        wobble = torch.zeros_like(phi)
        for place in range(HARMONICS):
            angle = (place + 2) * phi + _at(self.angle[kind, place])
            wobble += _at(self.radius[kind, place]) * torch.cos(angle)
        size = _at(self._between(0.35, 0.65, n))
        inside = size * (1 + 0.7 * wobble).clamp(min=0.25) - torch.hypot(x, y)
        rim = _at(self._between(0.1, 0.16, n)) - inside.abs()
        return torch.sigmoid(25 * torch.where(_at(self.hollow[kind]) == 1, rim, inside))

    def _draw_fractals(self) -> None:
        self.cloud = torch.stack([self._cloud() for _ in range(CLASSES)])  # (classes, POINTS, 2)

    def _cloud(self) -> Tensor:
        """The points of one system, centred, with a spread of one; systems that shrink to a thread are drawn again."""
        while True:
            maps = 2 + int(torch.randint(3, (1,), generator=self.rng))
            linear = self._between(-1, 1, maps, 2, 2)
            linear *= (self._between(0.45, 0.85, maps) / torch.linalg.matrix_norm(linear, 2))[:, None, None]
            shift = self._between(-1, 1, maps, 2)
            points = torch.zeros(POINTS, 2)
            for _ in range(30):
                chosen = torch.randint(maps, (POINTS,), generator=self.rng)
                points = (linear[chosen] @ points[..., None])[..., 0] + shift[chosen]
            points -= points.mean(0)
            if torch.linalg.eigvalsh(points.T @ points)[0] > 0.1 * (points**2).sum():
                return points / points.square().sum(1).mean().sqrt()

    def _fractal(self, kind: Tensor) -> Tensor:
        n = len(kind)
        shown = torch.randint(POINTS, (n, SHOWN), generator=self.rng)
        warp = torch.eye(2) + self._between(-0.12, 0.12, n, 2, 2)
        points = self.cloud[kind[:, None], shown] @ warp * self._between(0.3, 0.55, n, 1, 1)
        points = points + self._between(-0.2, 0.2, n, 1, 2)
        cell = ((points + 1) / 2 * SIZE).long()
        seen = ((cell >= 0) & (cell < SIZE)).all(-1).float()
        cell = cell.clamp(0, SIZE - 1)
        counts = torch.zeros(n, SIZE * SIZE).scatter_add(1, cell[..., 1] * SIZE + cell[..., 0], seen)
        return (counts.view(n, SIZE, SIZE) / 2).clamp(max=1)

    def _draw_arrangements(self) -> None:
        self.blobs = torch.randint(2, BLOBS + 1, (CLASSES,), generator=self.rng)
        self.place = torch.stack([self._spread() for _ in range(CLASSES)])  # (classes, BLOBS, 2)
        self.heading = self._between(0, math.pi, CLASSES, BLOBS)

    def _spread(self) -> Tensor:
        """Places that are not on top of one another."""
        while True:
            places = self._between(-0.75, 0.75, BLOBS, 2)
            if torch.pdist(places).min() > 0.5:
                return places

    def _arrangement(self, kind: Tensor) -> Tensor:
        n = len(kind)
        place = self.place[kind] + self._between(-0.08, 0.08, n, BLOBS, 2) + self._between(-0.1, 0.1, n, 1, 2)
        turn = self.heading[kind] + self._between(-0.2, 0.2, n, BLOBS)
        x, y = self.x - _at(place[..., 0]), self.y - _at(place[..., 1])
        along = _at(turn.cos()) * x + _at(turn.sin()) * y
        across = _at(turn.cos()) * y - _at(turn.sin()) * x
        short = self._between(0.07, 0.14, n, 1)
        long = short * self._between(1.6, 3, n, 1)
        inside = 1 - torch.hypot(along / _at(long), across / _at(short))
        there = torch.arange(BLOBS) < self.blobs[kind][:, None]
        return (torch.sigmoid(6 * inside) * _at(there)).amax(1)

    def _paint(self, masks: Tensor, varied: float) -> Tensor:
        """(B, 32, 32) -> (B, 3, 32, 32): two colours that differ, a background that varies slowly, and noise."""
        n = len(masks)
        free = (self._between(0, 1, n, 1) < varied).float()
        back = 0.5 + free * self._between(-0.4, 0.4, n, 3)
        away = F.normalize(self._between(-1, 1, n, 3), dim=1) * self._between(0.4, 0.9, n, 1)
        front = back + torch.where(free == 1, away, self._between(0.3, 0.5, n, 1))
        clouds = self._between(-1, 1, n, 3, 5, 5) * _at(free * self._between(0, 0.2, n, 1))
        clouds = F.interpolate(clouds, size=(SIZE, SIZE), mode="bilinear", align_corners=True)
        mask = masks[:, None]
        image = (_at(back) + clouds) * (1 - mask) + _at(front) * mask
        noise = torch.randn(n, 3, SIZE, SIZE, generator=self.rng) * self._between(0, 0.08, n, 1, 1, 1)
        return (image + noise).clamp(0, 1) * 2 - 1


def _at(values: Tensor) -> Tensor:
    """Values of images (or of their parts) against the two axes of pixels."""
    return values[..., None, None]
