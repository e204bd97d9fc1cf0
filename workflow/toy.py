"""Tiny networks and toy tasks for checking methods: no files, no network, the same numbers for the same seed."""

from __future__ import annotations

import io
import pickle
import types
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from transformers.utils import logging

from models import load
from models.backbone import Backbone
from models.batch import ForwardState
from models.entries import ModelEntry
from models.entries import model as model_entry
from tasks.base import Split, TaskInfo
from workflow.data import IGNORED, Encoded

MODELS = ("tiny-bert", "tiny-llama", "tiny-vit", "tiny-t5", "tiny-swin", "tiny-gemma3", "tiny-gpt2")
DROPOUT = 0.1
_DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout_rate"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
)
_SMALLER = {"tiny-swin": {"image_size": 16, "window_size": 2}}  # in both stages several windows still, and shifted ones
LENGTHS = (6, 14)  # tokens of a text; the longer ones exceed Gemma's sliding window of 8
ANSWER = 3  # tokens that a decoder continues with and an encoder-decoder repeats
FIRST, PERIOD = 20, 8  # texts to be continued count through these tokens in a circle
MARKS = (10, 11)  # first token of a text of class 0 and 1
PAD = 0


@cache
def entry(model: str) -> ModelEntry:
    """The network as it is built here."""
    found = model_entry(model)
    return replace(found, config=found.config | _SMALLER.get(model, {}))


@cache
def task(model: str) -> TaskInfo:
    """Generation where the network has a language-model head, else two classes."""
    kind = entry(model).kind
    generation = kind in ("decoder", "encoder_decoder")
    return TaskInfo(
        suite="toy",
        name="pattern",
        kind="generation" if generation else "classification",
        modality="image" if kind == "vision" else "text",
        fields=("image",) if kind == "vision" else ("text",),
        labels=() if generation else ("zero", "one"),
        metrics=("accuracy",),
        primary="accuracy",
        max_length=LENGTHS[1],
        title="Toy pattern",
    )


def backbone(model: str, dtype: torch.dtype = torch.float32) -> Backbone:
    """A fresh copy of a tiny network whose every weight and bias matters, with dropout."""
    return _mould(model, dtype).cast()


def meta(model: str) -> Backbone:
    """The network without weights, on torch's meta device."""
    return _mould(model, None).cast()


@cache
def _mould(model: str, dtype: torch.dtype | None) -> _Mould:
    if dtype is None:
        return _Mould(load.load(entry(model), task(model).kind, weights="meta"))
    return _Mould(_awake(model, dtype))


class _Mould:
    """Gives deep copies of a network several times faster than `copy.deepcopy`, which runs in Python."""

    def __init__(self, backbone: Backbone):
        file = io.BytesIO()
        pickler = _Pickler(file, pickle.HIGHEST_PROTOCOL)
        pickler.dump(backbone)
        self.pickled, self.kept = file.getvalue(), pickler.kept

    def cast(self) -> Backbone:
        unpickler = _Unpickler(io.BytesIO(self.pickled))
        unpickler.copies = [_copy(thing) for thing in self.kept]
        return unpickler.load()


class _Pickler(pickle.Pickler):
    """Keeps tensors apart, to be copied, and functions, to be shared, as in any deep copy."""

    def __init__(self, *args):
        super().__init__(*args)
        self.kept: list[torch.Tensor | types.FunctionType] = []
        self.places: dict[int, int] = {}

    def persistent_id(self, thing: object) -> int | None:
        if not isinstance(thing, torch.Tensor | types.FunctionType):
            return None
        if id(thing) not in self.places:
            self.places[id(thing)] = len(self.kept)
            self.kept.append(thing)
        return self.places[id(thing)]


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, place: int) -> torch.Tensor | types.FunctionType:
        return self.copies[place]


def _copy(thing: torch.Tensor | types.FunctionType) -> torch.Tensor | types.FunctionType:
    if not isinstance(thing, torch.Tensor):
        return thing
    copied = thing.detach().clone()
    return torch.nn.Parameter(copied, thing.requires_grad) if isinstance(thing, torch.nn.Parameter) else copied


def _awake(model: str, dtype: torch.dtype) -> Backbone:
    """A random network as transformers makes it has tiny weights and zero biases, so that faults hardly show."""
    logging.set_verbosity_error()
    made = load.load(_with_dropout(entry(model)), task(model).kind)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.model.parameters():
            _waken(parameter, rng)
        if made.head is not None:
            for parameter in made.head.parameters():
                _waken(parameter, rng)
    made.model.to(dtype)
    made.train(False)
    with torch.no_grad():  # Swin settles its window sizes at the first pass
        made.forward(examples(model, 2).batch(np.arange(2)))
    made.train(True)
    made.state = ForwardState()
    return made


def _with_dropout(plain: ModelEntry) -> ModelEntry:
    configuration = load.configuration(plain)
    return replace(plain, config=plain.config | {name: DROPOUT for name in _DROPOUTS if hasattr(configuration, name)})


def _waken(parameter: torch.Tensor, rng: torch.Generator) -> None:
    """Matrices from Normal(0, 1 / fan in); vectors move by Normal(0, 0.1)."""
    noise = torch.empty(parameter.shape).normal_(generator=rng)
    if parameter.dim() > 1:
        parameter.copy_(noise / parameter[0].numel() ** 0.5)
    else:
        parameter.add_(0.1 * noise)


# ---- data ----------------------------------------------------------------------------------------------------


def split(model: str, n: int, lengths: tuple[int, int] = LENGTHS, seed: int = 0) -> Split:
    """n examples of the network's toy task.

    Encoders: the first token tells the class. Images: the brighter half tells it. Decoders: the next numbers
    in a circle. Encoder-decoders: the first tokens again. Token ids stand in the place of texts.
    """
    rng = np.random.default_rng(seed)
    kind = entry(model).kind
    classes = rng.permutation(np.arange(n) % 2)
    if kind == "vision":
        return Split(_images(entry(model).config["image_size"], classes, rng), classes, np.arange(n))
    sizes = rng.integers(lengths[0], lengths[1] + 1, n)
    if kind == "encoder":
        texts = [np.append(MARKS[c], rng.integers(12, 97, size - 1)) for c, size in zip(classes, sizes, strict=True)]
        return Split([(text,) for text in texts], classes, np.arange(n))
    starts = rng.integers(0, PERIOD, n)
    counted = [FIRST + (start + np.arange(size)) % PERIOD for start, size in zip(starts, sizes, strict=True)]
    answers = np.empty(n, object)
    for row, text in enumerate(counted):
        answers[row] = text[-ANSWER:] if kind == "decoder" else text[:ANSWER]
    return Split([(text[:-ANSWER] if kind == "decoder" else text,) for text in counted], answers, np.arange(n))


def _images(size: int, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    images = rng.integers(0, 100, (len(classes), size, size, 3), dtype=np.uint8)
    for image, label in zip(images, classes, strict=True):
        half = slice(size // 2, None) if label else slice(0, size // 2)
        image[:, half] += 120
    return images


def encode(model: str, data: Split, pad: int = PAD, pad_left: bool = False) -> Encoded:
    """What the suites' encoders do, for texts that are token ids already and for images."""
    if isinstance(data.inputs, np.ndarray):
        pixels = (data.inputs.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
        return Encoded(data.labels.astype(np.int64), pixels=pixels)
    ids = [text for (text,) in data.inputs]
    if data.labels.dtype != object:
        return Encoded(data.labels.astype(np.int64), ids, pad=pad, pad_left=pad_left)
    kind = entry(model).kind
    if kind == "encoder_decoder":
        return Encoded(list(data.labels), ids, pad=pad, pad_left=pad_left)
    whole = [np.append(text, answer) for text, answer in zip(ids, data.labels, strict=True)]
    labels = [_next_tokens(text, answer) for text, answer in zip(ids, data.labels, strict=True)]
    prompt = np.array([len(text) for text in ids])
    return Encoded(labels, whole, prompt=prompt, pad=pad, pad_left=pad_left)


def _next_tokens(prompt: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """At each place of prompt and answer the token that follows, if it belongs to the answer."""
    nothing = np.full(len(prompt) - 1, IGNORED)
    return np.concatenate([nothing, answer, [IGNORED]])


@cache
def examples(model: str, n: int, lengths: tuple[int, int] = LENGTHS, seed: int = 0) -> Encoded:
    return encode(model, split(model, n, lengths, seed))


def texts(model: str, lengths: tuple[int, ...], pad: int = PAD, pad_left: bool = False) -> Encoded:
    """One example of each of these lengths (images have none); the same text whatever the padding."""
    parts = [split(model, 1, (length, length), seed) for seed, length in enumerate(lengths)]
    labels = np.concatenate([part.labels for part in parts])
    inputs = [part.inputs[0] for part in parts]
    data = Split(np.stack(inputs) if isinstance(inputs[0], np.ndarray) else inputs, labels, np.arange(len(parts)))
    return encode(model, data, pad, pad_left)
