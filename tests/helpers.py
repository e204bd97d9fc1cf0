"""Tiny random networks, batches and trainings that the tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from methods.base import Method
from models.backbone import Backbone
from models.batch import Batch
from models.entries import model as model_entry
from models.load import load
from workflow.data import Encoded
from workflow.grid import BASE_RECIPE
from workflow.train import Training

torch.set_num_threads(1)  # tiny networks: more threads only wait for one another

ENCODERS = ("tiny-bert", "tiny-roberta", "tiny-deberta", "tiny-modernbert")
DECODERS = (
    *("tiny-llama", "tiny-mistral", "tiny-qwen2", "tiny-qwen3", "tiny-gemma", "tiny-gemma3"),
    *("tiny-gpt2", "tiny-opt", "tiny-opt-post", "tiny-bloom"),
)
ENCODER_DECODERS = ("tiny-t5", "tiny-t5-gated")
TEXT = (*ENCODERS, *DECODERS, *ENCODER_DECODERS)
VISION = ("tiny-vit", "tiny-deit", "tiny-dinov2", "tiny-dinov2-gated", "tiny-swin")
EVERY = (*TEXT, *VISION)
OWN_ATTENTION = ("tiny-deberta", "tiny-bloom")  # these compute it themselves: it cannot be replaced

LENGTHS = {"right": (7, 4, 5), "left": (7, 4, 5), "none": (6, 6, 6)}
PIXELS = {"tiny-swin": 32}


def lively(module: nn.Module, seed: int = 0, std: float = 0.3) -> None:
    """Weights large enough that attention and every bias matter: fresh ones are so small that faults drown."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.empty(parameter.shape).normal_(0, std if parameter.dim() > 1 else 0.1, generator=rng)
            parameter.copy_(noise.to(parameter.dtype) + (0 if parameter.dim() > 1 else parameter))


def backbone(
    name: str, task: str | None = None, seed: int = 0, pooling: str | None = None, dtype: torch.dtype | None = None
) -> Backbone:
    """A tiny network in evaluation mode, as a classifier of three classes or (T5, and if asked) as a generator."""
    entry = model_entry(name)
    if pooling is not None:
        entry = type(entry)(**{**vars(entry), "pooling": pooling})
    task = task or ("generation" if name in ENCODER_DECODERS else "classification")
    made = load(entry, task, labels=3, seed=seed, dtype=dtype)
    for module in filter(None, (made.model, made.head)):
        lively(module, seed)
    made.train(False)
    return made


def token_ids(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 97, length) for length in lengths]


def text(name: str, side: str = "right", seed: int = 0, lengths: Sequence[int] | None = None) -> Batch:
    """Three texts padded on the `right`, on the `left`, or of equal length (`none`); labels fit the network."""
    ids = token_ids(lengths or LENGTHS[side], seed)
    pad = 1 if name == "tiny-roberta" else 0
    data = Encoded(np.arange(len(ids)) % 3, ids, pad=pad, pad_left=side == "left")
    batch = data.batch(range(len(ids)))
    if name in ENCODER_DECODERS:
        batch.labels = torch.from_numpy(np.stack(token_ids([5] * len(ids), seed + 1)))
        batch.labels[0, 3:] = -100
    return batch


def images(name: str, count: int = 3, seed: int = 0) -> Batch:
    size = PIXELS.get(name, 16)
    pixels = np.random.default_rng(seed).normal(size=(count, 3, size, size)).astype(np.float32)
    return Encoded(np.arange(count) % 3, pixels=pixels).batch(np.arange(count))


def batch(name: str, side: str = "right", seed: int = 0) -> Batch:
    return images(name, seed=seed) if name in VISION else text(name, side, seed)


def single(of: Batch, row: int) -> Batch:
    """One example of a text batch without its padding."""
    keep = of.mask[row]
    inputs = {k: v[row : row + 1, keep] for k, v in of.inputs.items()}
    return Batch(inputs, None if of.labels is None else of.labels[row : row + 1], unpadded=True)


def run(on: Backbone, of: Batch, method: Method | None = None) -> Tensor:
    """Logits without a graph."""
    with torch.no_grad():
        return (on.forward(of) if method is None else method.forward(of, on.forward)).logits


def assert_cache_changes_nothing(on: Backbone, of: Batch) -> None:
    """The same tokens, and logits but for rounding, are generated with a cache and without."""
    scores = {True: [], False: []}

    def note(cached):
        return lambda logits, state: scores[cached].append(logits) or logits

    tokens = {c: on.generate(of, 9, cached=c, logits=note(c)) for c in scores}
    assert torch.equal(tokens[True], tokens[False])
    assert close(torch.stack(scores[True]), torch.stack(scores[False]), 1e-4)


def encoded(count: int = 12, classes: int = 3, lengths: Sequence[int] | None = None, seed: int = 0) -> Encoded:
    """A learnable toy task: the first token tells the class."""
    lengths = lengths or [4 + i % 5 for i in range(count)]
    labels = np.arange(count) % classes
    ids = token_ids(lengths, seed)
    for row, label in zip(ids, labels, strict=True):
        row[0] = 10 + label
    return Encoded(labels, ids)


def training(
    on: Backbone, method: Method, data: Encoded | None = None, score: Callable | None = None, **more
) -> Training:
    """A training of a few steps without dropout in the learning rate; recipe keys and arguments of Training mix."""
    recipe = dict(BASE_RECIPE) | {"lr": 1e-2, "warmup": 0.0, "batch_size": 4, "max_steps": 4, "evaluations": 2}
    recipe |= {k: more.pop(k) for k in list(more) if k in recipe}
    data = encoded() if data is None else data
    made = Training(on, method, recipe, data if score else None, score, seed=more.pop("seed", 0), **more)
    made.splits["train"] = data
    return made


def attach(method: Method, on: Backbone, context: Training | None = None) -> Training:
    """Plan, calibrate, attach and initialise, as a cell does; returns the context."""
    context = context or training(on, method)
    method.planned = method.plan(on.shape)
    method.calibrate(on, context)
    method.attach(on, context)
    method.initialise(on, context)
    return context


def double(name: str) -> Backbone:
    """A tiny network in float64."""
    on = backbone(name)
    for module in filter(None, (on.model, on.head)):
        module.double()
    return on


def made(plugin: type[Method], name: str, **settings) -> tuple[Backbone, Method]:
    """A method attached to a tiny network in float64, every number of it random; evaluation mode."""
    on, method = double(name), plugin.create(settings)
    attach(method, on)
    method.parts.double()
    lively(method.parts)
    method.parts.train(False)
    return on, method


def trained(method: Method, name: str = "tiny-bert", **more) -> Training:
    """A method attached to a network and trained to the end; then dropout is off."""
    on = backbone(name)
    context = training(on, method, **more)
    attach(method, on, context)
    context.run()
    on.train(False)
    method.parts.train(False)
    return context


def copies(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer, copied."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Equal bit for bit, types included."""
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype and torch.equal(left[k], right[k]) for k in left
    )


def gradients(on: Backbone, of: Batch, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Gradients of the task's loss plus penalties, in training mode, from a fixed random state."""
    from workflow.train import task_loss

    on.train(True)
    torch.manual_seed(5)
    loss = task_loss(on.forward(of), of)
    for penalty in on.state.penalties.values():
        loss = loss + penalty
    found = torch.autograd.grad(loss, parameters)
    on.train(False)
    return list(found)


def close(left: Tensor, right: Tensor, tolerance: float = 1e-5) -> bool:
    return left.shape == right.shape and bool((left - right).abs().max() <= tolerance)


def bound(name: str, usual: float) -> float:
    """How far equal results may be apart: more in T5 v1.1, whose unscaled scores make rounding ten thousand times
    larger in a random network (merged and attached LoRA agree to 3e-12 in float64)."""
    return 10 * usual if name == "tiny-t5-gated" else usual


def differ(left: Tensor, right: Tensor, least: float = 1e-3) -> bool:
    return bool((left - right).abs().max() > least)
