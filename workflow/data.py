"""Encoded examples and their batches: bucketed by length, the same order for the same seed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from models.batch import Batch

POOL = 50  # batches that are sorted by length together
IGNORED = -100


class Ragged:
    """n rows of integers of different lengths in one flat array, which may lie in a memory-mapped file."""

    def __init__(self, values: np.ndarray, offsets: np.ndarray):
        self.values, self.offsets = values, offsets

    @classmethod
    def of(cls, rows: Sequence[Sequence[int] | np.ndarray]) -> Ragged:
        """From n sequences of integers."""
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate([np.asarray(row, np.int64) for row in rows]) if len(rows) else np.empty(0, np.int64)
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def take(self, rows: Sequence[int] | np.ndarray) -> Ragged:
        """A copy of these rows, in this order."""
        return Ragged.of([self[row] for row in rows])

    def padded(self, rows: Sequence[int] | np.ndarray, length: int, filler: int, left: bool) -> np.ndarray:
        """(len(rows), length) int64, filled up on the left or right."""
        out = np.full((len(rows), length), filler, np.int64)
        for i, row in enumerate(rows):
            value = self[row]
            if left:
                out[i, length - len(value) :] = value
            else:
                out[i, : len(value)] = value
        return out


@dataclass
class Encoded:
    """n examples, ready to be put into batches. Lists of arrays are made into `Ragged`.

    ids: token ids (or None); types: segment ids, if the tokenizer makes them; pixels: float (n, C, H, W), or
    anything that gives such an array for rows; labels: (n,), or token labels with -100 where nothing is learned (a
    decoder's are the next tokens, as long as the ids; `targets`: texts of their own, for an encoder-decoder).
    prompt: (n,) tokens before a completion, if any. first: (n,) place of the first learned token, if known: scores
    before it are not computed. cut: number of examples that were longer than allowed.
    """

    labels: np.ndarray | Ragged | list[np.ndarray]
    ids: Ragged | list[np.ndarray] | None = None
    types: Ragged | list[np.ndarray] | None = None
    pixels: Any = None
    prompt: np.ndarray | None = None
    pad: int = 0
    pad_left: bool = False
    targets: bool = False
    first: np.ndarray | None = None
    cut: int = 0

    def __post_init__(self):
        for name in ("labels", "ids", "types"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, Ragged.of(getattr(self, name)))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example (1 for an image)."""
        return np.ones(len(self), int) if self.ids is None else self.ids.lengths

    def take(self, rows: Sequence[int] | np.ndarray) -> Encoded:
        def pick(x):
            return x if x is None else x[rows] if isinstance(x, np.ndarray) else x.take(rows)

        columns = ("labels", "ids", "types", "pixels", "prompt", "first")
        return replace(self, **{name: pick(getattr(self, name)) for name in columns})

    def learnable(self) -> Encoded:
        """Without the examples that teach nothing, because their answer was cut away."""
        if not isinstance(self.labels, Ragged) or not len(self):
            return self
        learned = np.zeros(len(self.labels.values) + 1, np.int64)
        np.cumsum(self.labels.values != IGNORED, out=learned[1:])
        rows = np.flatnonzero(np.diff(learned[self.labels.offsets]))
        return self if len(rows) == len(self) else self.take(rows)

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The examples at these positions, padded to the longest of them."""
        if self.ids is None:
            pixels = torch.from_numpy(self.pixels[rows])
            return Batch({"pixel_values": pixels}, self._labels(rows, 0), len(rows), len(rows), True, rows=rows)
        lengths = self.lengths[rows]
        longest, shortest = int(lengths.max()), int(lengths.min())
        inputs = {"input_ids": torch.from_numpy(self.ids.padded(rows, longest, self.pad, self.pad_left))}
        place = np.arange(longest)[None]
        length = lengths[:, None]
        mask = place >= longest - length if self.pad_left else place < length
        inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        if self.types is not None:
            inputs["token_type_ids"] = torch.from_numpy(self.types.padded(rows, longest, 0, self.pad_left))
        return Batch(
            inputs,
            self._labels(rows, longest),
            tokens=int(lengths.sum()),
            padded=longest * len(lengths),
            unpadded=shortest == longest,
            left_padded=self.pad_left and shortest < longest,
            prompt_length=None if self.prompt is None else torch.from_numpy(self.prompt[rows]),
            learned_from=self._first(rows, lengths, longest),
            rows=rows,
        )

    def _labels(self, rows, longest: int) -> torch.Tensor:
        if isinstance(self.labels, np.ndarray):
            return torch.from_numpy(self.labels[rows])
        if self.targets:
            return torch.from_numpy(self.labels.padded(rows, int(self.labels.lengths[rows].max()), IGNORED, False))
        return torch.from_numpy(self.labels.padded(rows, longest, IGNORED, self.pad_left))

    def _first(self, rows, lengths: np.ndarray, longest: int) -> int:
        if self.first is None:
            return 0
        return int((self.first[rows] + (longest - lengths if self.pad_left else 0)).min())


def epoch_batches(lengths: np.ndarray, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch: examples in random order, sorted by length within pools, batches shuffled again.

    A pure function of its arguments, so a resumed run finds its place by counting.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), size * POOL):
        pool = order[start : start + size * POOL]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def training_batches(data: Encoded, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
    """Batches without end, from step `start` on."""
    lengths = data.lengths
    per_epoch = -(-len(data) // size)
    epoch, skip = divmod(start, per_epoch)
    while True:
        for rows in epoch_batches(lengths, size, seed, epoch)[skip:]:
            yield data.batch(rows)
        epoch, skip = epoch + 1, 0


def sorted_batches(data: Encoded, size: int) -> Iterator[Batch]:
    """Every example once, longest first, so that the largest batch comes first."""
    order = np.argsort(-data.lengths, kind="stable")
    for start in range(0, len(order), size):
        yield data.batch(order[start : start + size])


def budgeted_batches(data: Encoded, tokens: int, images: int, more: int = 0) -> Iterator[Batch]:
    """Every example once, longest first, in batches of about this many tokens, with `more` to come for each row.

    Of images there are `images` in a batch.
    """
    order = np.argsort(-data.lengths, kind="stable")
    lengths, start = data.lengths[order] + more, 0
    while start < len(order):
        rows = images if data.ids is None else max(1, tokens // int(lengths[start]))
        rows = rows if rows < 8 else rows // 8 * 8
        yield data.batch(order[start : start + rows])
        start += rows


def prefetch(batches: Iterator[Batch], device: torch.device, depth: int = 4) -> Iterator[Batch]:
    """Batches on the device. On a GPU they are padded and pinned by a thread while the device computes."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.5)
            except queue.Full:
                continue

    def work():
        try:
            for batch in batches:
                put(batch.pin())
                if stop.is_set():
                    return
            put(None)
        except BaseException as problem:
            put(problem)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item.to(device)
    finally:
        stop.set()
