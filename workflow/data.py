"""From a task's examples to batches: tokenised once, bucketed by length, the same order for the same seed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from models.batch import Batch

POOL = 50  # batches that are sorted by length together
IGNORED = -100


@dataclass
class Encoded:
    """n examples, ready to be put into batches.

    ids: n arrays of token ids (or None); types: n arrays of segment ids, if the tokenizer makes them; pixels:
    float (n, C, H, W); labels: (n,), or n arrays of token labels with -100 where nothing is learned; prompt:
    (n,) tokens before a completion, if any.
    """

    labels: np.ndarray | list[np.ndarray]
    ids: list[np.ndarray] | None = None
    types: list[np.ndarray] | None = None
    pixels: np.ndarray | None = None
    prompt: np.ndarray | None = None
    pad: int = 0
    pad_left: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each example (1 for an image)."""
        return np.ones(len(self), int) if self.ids is None else np.array([len(row) for row in self.ids])

    def take(self, rows: Sequence[int]) -> Encoded:
        def pick(x):
            return None if x is None else x[rows] if isinstance(x, np.ndarray) else [x[row] for row in rows]

        return Encoded(
            pick(self.labels),
            pick(self.ids),
            pick(self.types),
            pick(self.pixels),
            pick(self.prompt),
            self.pad,
            self.pad_left,
        )

    def batch(self, rows: Sequence[int] | np.ndarray) -> Batch:
        """The examples at these positions, padded to the longest of them."""
        if self.ids is None:
            pixels = torch.from_numpy(self.pixels[rows])
            return Batch({"pixel_values": pixels}, self._labels(rows, 0), len(rows), len(rows), True, rows=rows)
        lengths = [len(self.ids[row]) for row in rows]
        longest, shortest = max(lengths), min(lengths)
        inputs = {"input_ids": torch.from_numpy(self._pad(self.ids, rows, longest, self.pad))}
        place = np.arange(longest)[None]
        length = np.array(lengths)[:, None]
        mask = place >= longest - length if self.pad_left else place < length
        inputs["attention_mask"] = torch.from_numpy(mask.astype(np.int64))
        if self.types is not None:
            inputs["token_type_ids"] = torch.from_numpy(self._pad(self.types, rows, longest, 0))
        prompt = None if self.prompt is None else torch.from_numpy(self.prompt[rows])
        return Batch(
            inputs,
            self._labels(rows, longest),
            tokens=sum(lengths),
            padded=longest * len(lengths),
            unpadded=shortest == longest,
            left_padded=self.pad_left and shortest < longest,
            prompt_length=prompt,
            rows=rows,
        )

    def _labels(self, rows, longest: int) -> torch.Tensor:
        if isinstance(self.labels, np.ndarray):
            return torch.from_numpy(self.labels[rows])
        return torch.from_numpy(self._pad(self.labels, rows, longest, IGNORED))

    def _pad(self, values: list[np.ndarray], rows, longest: int, filler: int) -> np.ndarray:
        out = np.full((len(rows), longest), filler, np.int64)
        for i, row in enumerate(rows):
            value = values[row]
            if self.pad_left:
                out[i, longest - len(value) :] = value
            else:
                out[i, : len(value)] = value
        return out


def encode_text(
    inputs: Sequence[tuple[str, ...]], labels: np.ndarray, tokenizer, max_length: int, segments: bool = True
) -> Encoded:
    """Classification or regression on one text or a pair of texts; `segments` where the network tells them apart."""
    columns = [list(column) for column in zip(*inputs, strict=True)]
    found = tokenizer(*columns, truncation=True, max_length=max_length, return_attention_mask=False)
    ids = [np.array(row, np.int64) for row in found["input_ids"]]
    types = (
        [np.array(row, np.int64) for row in found["token_type_ids"]] if segments and "token_type_ids" in found else None
    )
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    values = labels.astype(np.float32) if labels.dtype.kind == "f" else labels.astype(np.int64)
    return Encoded(values, ids, types, pad=pad)


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


def prefetch(batches: Iterator[Batch], device: torch.device, depth: int = 4) -> Iterator[Batch]:
    """Batches on the device. On a GPU they are padded and pinned by a thread while the device computes."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def work():
        try:
            for batch in batches:
                pinned = batch.pin()
                while not stop.is_set():
                    try:
                        ready.put(pinned, timeout=0.5)
                        break
                    except queue.Full:
                        continue
                if stop.is_set():
                    return
            ready.put(None)
        except BaseException as problem:
            ready.put(problem)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item.to(device)
    finally:
        stop.set()
