"""From the examples of a suite to what a network reads: token ids or pixels. Texts are tokenised once and cached."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.backbone import Backbone
from tasks.base import Images, Split, TaskInfo, fingerprint
from workflow import cache
from workflow.data import IGNORED, Encoded, Ragged

LOWEST_ID = 4  # of drawn token ids: special tokens, padding among them, mostly come first
VERSION = 1  # of the code below: another one makes other files in the cache


def encode(
    info: TaskInfo, split: Split, backbone: Backbone, max_length: int | None, learn: str | None = None
) -> Encoded:
    """A split for training and for scoring given answers; `learn` overrides TaskInfo.learn.

    max_length: tokens of an example at most (None: the task's own; never more than the network takes). A longer
    example is cut on the right, and a cut answer has no end token.
    """
    if info.modality == "image":
        size = image_size(backbone)
        return Encoded(_class_ids(split), pixels=Pixels(split.inputs, size, info.mean, info.std, info.resample))
    limit = min(max_length or info.max_length, backbone.shape.tokens or 1 << 30)
    if isinstance(split.inputs, np.ndarray):
        return _numbers(info, split, backbone, limit)
    tokenizer = backbone.tokenizer
    if info.kind != "generation":
        segments = getattr(backbone.model.config, "type_vocab_size", 1) > 1
        name = ("text", limit, segments)
        ids, types, cut = _cached(name, split, tokenizer, lambda: _texts(split.inputs, tokenizer, limit, segments))
        return Encoded(_class_ids(split), ids, types, pad=padding(tokenizer), cut=cut)
    learn = learn or info.learn
    if backbone.kind == "encoder_decoder":
        name = ("targets", limit)
        ids, labels, cut = _cached(name, split, tokenizer, lambda: _targets(split, tokenizer, limit))
        return Encoded(labels, ids, pad=padding(tokenizer), targets=True, cut=cut)
    name = ("completions", limit)
    ids, prompt, cut = _cached(name, split, tokenizer, lambda: _completions(split, tokenizer, limit))
    return _next_tokens(ids, prompt.values.astype(np.int64), learn, padding(tokenizer), cut)


def padding(tokenizer: Any) -> int:
    """The id that fills batches up; masks and labels leave it out, so it may be the end token."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id


# ---- texts ---------------------------------------------------------------------------------------------------


def _class_ids(split: Split) -> np.ndarray:
    labels = np.asarray(split.labels)
    return labels.astype(np.float32) if labels.dtype.kind == "f" else labels.astype(np.int64)


def _texts(inputs: Sequence[tuple[str, ...]], tokenizer: Any, limit: int, segments: bool) -> tuple[Ragged, Any, int]:
    """Token ids and, where the network tells texts apart, segment ids of one text or a pair of texts."""
    columns = [list(column) for column in zip(*inputs, strict=True)]
    found = tokenizer(*columns, truncation=True, max_length=limit, return_attention_mask=False)
    ids = Ragged.of(found["input_ids"])
    types = Ragged.of(found["token_type_ids"]) if segments and "token_type_ids" in found else None
    if encodings := getattr(found, "encodings", None):
        cut = sum(bool(encoding.overflowing) for encoding in encodings)
    else:
        cut = int((ids.lengths >= limit).sum())
    return ids, types, cut


def prompt_ids(prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Ids of prompts, with the tokenizer's own opening token and without an end token."""
    ids = tokenizer(list(prompts), return_attention_mask=False)["input_ids"]
    ends = {tokenizer.eos_token_id, getattr(tokenizer, "sep_token_id", None)} - {None}
    return [row[:-1] if len(row) > 1 and row[-1] in ends else row for row in ids]


def _room(backbone: Backbone) -> int:
    """Tokens that the network has places for, beside the prompt tokens of a method."""
    return (backbone.shape.tokens or 1 << 30) - backbone.slot_count


def completion_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Ids of completions, without special tokens."""
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]


def _completions(split: Split, tokenizer: Any, limit: int) -> tuple[Ragged, Ragged, int]:
    """Ids of prompt, completion and end token, as long as `limit` allows, and the number of tokens of each prompt.

    Prompt and completion are tokenised apart, so that training sees exactly the prompt that a test begins with.
    """
    prompts = prompt_ids([text for (text,) in split.inputs], tokenizer)
    answers = completion_ids(split.labels.tolist(), tokenizer)
    end = [tokenizer.eos_token_id]
    whole = [[*prompt, *answer, *end] for prompt, answer in zip(prompts, answers, strict=True)]
    cut = sum(len(row) > limit for row in whole)
    lengths = [[min(len(prompt), limit)] for prompt in prompts]
    return Ragged.of([row[:limit] for row in whole]), Ragged.of(lengths), cut


def _next_tokens(ids: Ragged, prompt: np.ndarray, learn: str, pad: int, cut: int) -> Encoded:
    """Inputs without the last token, and at each place the token that follows if it is to be learned."""
    ends = ids.offsets[1:] - 1
    keep = np.ones(len(ids.values), bool)
    keep[ends] = False
    labels = np.roll(ids.values, -1)
    if learn == "completion":
        place = np.arange(len(ids.values)) - np.repeat(ids.offsets[:-1], ids.lengths)
        labels[place < np.repeat(prompt, ids.lengths) - 1] = IGNORED
    offsets = ids.offsets - np.arange(len(ids.offsets))
    first = np.maximum(prompt - 1, 0) if learn == "completion" else np.zeros(len(prompt), np.int64)
    first = np.minimum(first, np.maximum(np.diff(offsets) - 1, 0))
    return Encoded(
        Ragged(labels[keep], offsets), Ragged(ids.values[keep], offsets), prompt=prompt, pad=pad, first=first, cut=cut
    )


def _targets(split: Split, tokenizer: Any, limit: int) -> tuple[Ragged, Ragged, int]:
    """Ids of prompts (with their end token) and of completions with theirs, for an encoder-decoder."""
    prompts = tokenizer([text for (text,) in split.inputs], return_attention_mask=False)["input_ids"]
    end = [tokenizer.eos_token_id]
    answers = [[*row, *end] for row in completion_ids(split.labels.tolist(), tokenizer)]
    cut = sum(max(len(p), len(a)) > limit for p, a in zip(prompts, answers, strict=True))
    return Ragged.of([row[:limit] for row in prompts]), Ragged.of([row[:limit] for row in answers]), cut


def _numbers(info: TaskInfo, split: Split, backbone: Backbone, limit: int) -> Encoded:
    """Numbers (n, length) as token ids, all of one length; labels of a text to be generated likewise, with an end."""

    def ids(values: np.ndarray) -> np.ndarray:
        return LOWEST_ID + values % (backbone.shape.vocab - LOWEST_ID)

    if info.kind != "generation":
        return Encoded(_class_ids(split), list(ids(split.inputs)[:, :limit]))
    answers = np.pad(ids(split.labels), [(0, 0), (0, 1)], constant_values=LOWEST_ID)
    if backbone.kind == "encoder_decoder":
        return Encoded(list(answers), list(ids(split.inputs)[:, :limit]), targets=True)
    whole = np.concatenate([ids(split.inputs), answers], 1)[:, : limit + 1]
    prompt = np.full(len(whole), split.inputs.shape[1])
    return _next_tokens(Ragged.of(list(whole)), prompt, info.learn, 0, 0)


def prompts(split: Split, backbone: Backbone, new_tokens: int) -> Encoded:
    """What generation starts from: the prompts, to be padded on the left (encoder-decoder: on the right).

    Where the network has no places for a prompt and `new_tokens` more, the prompt loses its beginning.
    """
    texts, tokenizer = [text for (text,) in split.inputs], backbone.tokenizer
    decoder = backbone.kind == "decoder"
    ids = prompt_ids(texts, tokenizer) if decoder else tokenizer(texts, return_attention_mask=False)["input_ids"]
    room = max(1, _room(backbone) - new_tokens)
    ragged = Ragged.of([row[-room:] for row in ids] if decoder else ids)
    return Encoded(
        np.zeros(len(ids), np.int64), ragged, prompt=ragged.lengths, pad=padding(tokenizer), pad_left=decoder
    )


# ---- options whose likelihoods are compared --------------------------------------------------------------------


@dataclass
class Choices:
    """The options of n examples as rows of a decoder's batches: options that differ in their last token share a row.

    encoded: prompt and all but the last token of an option; labels are the next tokens of the option, -100 at the
    last place. example: (rows,) which example; options, lasts: for each row the indices of its options, and the
    token that each of them ends with.
    """

    encoded: Encoded
    example: np.ndarray
    options: list[np.ndarray]
    lasts: list[np.ndarray]


def choices(split: Split, backbone: Backbone) -> Choices:
    """The options of every example of a split."""
    tokenizer = backbone.tokenizer
    starts = prompt_ids([text for (text,) in split.inputs], tokenizer)
    counts = [len(options) for options in split.choices]
    flat = iter(completion_ids([option for options in split.choices for option in options], tokenizer))
    rows: dict[tuple[int, tuple[int, ...]], list[tuple[int, int]]] = {}
    for example, count in enumerate(counts):
        for option in range(count):
            *body, last = next(flat)
            rows.setdefault((example, tuple(body)), []).append((option, last))
    ids, labels, first = [], [], []
    for example, body in rows:
        start = starts[example][-max(1, _room(backbone) - len(body)) :]
        ids.append([*start, *body])
        labels.append([IGNORED] * (len(start) - 1) + [*body, IGNORED])
        first.append(len(start) - 1)
    places = np.array(first, np.int64)
    encoded = Encoded(
        Ragged.of(labels), Ragged.of(ids), prompt=places + 1, pad=padding(tokenizer), pad_left=True, first=places
    )
    members = list(rows.values())
    return Choices(
        encoded,
        np.array([example for example, _ in rows]),
        [np.array([option for option, _ in row]) for row in members],
        [np.array([last for _, last in row]) for row in members],
    )


def option_targets(split: Split, backbone: Backbone) -> tuple[Encoded, list[int]]:
    """Every option of every example as the target of an encoder-decoder, and the number of options of each example."""
    counts = [len(options) for options in split.choices]
    tokenizer = backbone.tokenizer
    starts = tokenizer([text for (text,) in split.inputs], return_attention_mask=False)["input_ids"]
    ids = Ragged.of(starts).take(np.repeat(np.arange(len(split)), counts))
    options = completion_ids([option for options in split.choices for option in options], tokenizer)
    return Encoded(Ragged.of(options), ids, pad=padding(tokenizer), targets=True), counts


# ---- images --------------------------------------------------------------------------------------------------


def image_size(backbone: Backbone) -> int:
    """Pixels of a side of the square that the network reads."""
    size = backbone.model.config.image_size
    return size if isinstance(size, int) else size[0]


@dataclass
class Pixels:
    """Images as the network wants them, made when a batch asks for its rows: float32 (rows, 3, size, size)."""

    inputs: np.ndarray | Images
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: str

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, rows: Sequence[int] | np.ndarray) -> Pixels:
        inputs = self.inputs.take(rows) if isinstance(self.inputs, Images) else self.inputs[rows]
        return Pixels(inputs, self.size, self.mean, self.std, self.resample)

    def __getitem__(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        if not isinstance(self.inputs, Images) and self.inputs.shape[1:3] == (self.size, self.size):
            images = self.inputs[rows]
        else:
            images = np.stack(list(self._readers.map(self._square, rows)))
        scale, shift = 1 / (255 * np.array(self.std)), np.array(self.mean) / np.array(self.std)
        pixels = images * scale.astype(np.float32) - shift.astype(np.float32)
        return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))

    @cached_property
    def _readers(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(torch.get_num_threads())

    def _square(self, row: int) -> np.ndarray:
        from PIL import Image

        image = self.inputs.read(row) if isinstance(self.inputs, Images) else self.inputs[row]
        if image.shape[:2] == (self.size, self.size):
            return image
        way = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[self.resample]
        return np.asarray(Image.fromarray(image).resize((self.size, self.size), way))


# ---- the cache -------------------------------------------------------------------------------------------------


def _cached(name: tuple, split: Split, tokenizer: Any, make) -> tuple[Ragged, Ragged | None, int]:
    """`make()`, kept in an Arrow file that all jobs with the same texts and tokenizer map into memory."""
    parts = (VERSION, *name, fingerprint(split), _digest_once(tokenizer))
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    return _read(cache.made(f"tokenised/{key}.arrow", lambda path: _write(path, *make())))


def _tokenizer_digest(tokenizer: Any) -> str:
    """sha256 (hex) over what decides on the ids: the tokenizer without its padding and truncation, which calls set."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = {name: getattr(tokenizer, name, None) for name in ("eos_token_id", "sep_token_id", "truncation_side")}
    if backend is None:
        state |= {"type": type(tokenizer).__name__, "vocab": getattr(tokenizer, "vocab", None)}
    else:
        state |= json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


_digest_once = lru_cache(maxsize=1)(_tokenizer_digest)  # what is digested stays as it was loaded


def _write(path: Path, *columns: Any) -> None:
    """Two columns of token lists (the second may be None) and a number, as one Arrow IPC file."""
    import pyarrow as pa

    first, second, cut = columns
    table = pa.table({n: _lists(c) for n, c in (("first", first), ("second", second)) if c is not None})
    table = table.replace_schema_metadata({"cut": str(cut)})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _lists(rows: Ragged):
    import pyarrow as pa

    return pa.LargeListArray.from_arrays(pa.array(rows.offsets), pa.array(rows.values.astype(np.int32)))


def _read(path: Path) -> tuple[Ragged, Ragged | None, int]:
    import pyarrow as pa

    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    columns = [_ragged(table, name) if name in table.column_names else None for name in ("first", "second")]
    return columns[0], columns[1], int(table.schema.metadata[b"cut"])


def _ragged(table: Any, name: str) -> Ragged:
    chunk = table.column(name).combine_chunks()
    lists = chunk.chunk(0) if hasattr(chunk, "chunk") else chunk
    return Ragged(lists.values.to_numpy(), lists.offsets.to_numpy())
