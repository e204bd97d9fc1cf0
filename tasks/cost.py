"""Costs on synthetic batches: networks with random weights, inputs of stated size, no scores.

Memory, time and latency of a method depend on the sizes of network and batch, hardly on the weights or the texts, so
they can be measured where neither can be had. Inputs are drawn from a seed: token ids, or pixels.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from tasks.base import Option, Protocol, Split, Suite, TaskData, TaskInfo

EXAMPLES = 256
SEED = 0
VALUES = 1 << 31  # token ids are drawn below this and brought into a network's vocabulary when they are encoded

_task = partial(TaskInfo, suite="cost", cost_only=True, ranked=False)


class Cost(Suite):
    name, title, version = "cost", "Costs on synthetic batches", 1
    tasks = {
        "classify": _task(
            name="classify",
            kind="classification",
            modality="text",
            fields=("tokens",),
            labels=("0", "1"),
            metrics=("accuracy",),
            primary="accuracy",
            max_length=128,
            title="One class for a text",
        ),
        "images": _task(
            name="images",
            kind="classification",
            modality="image",
            fields=("image",),
            labels=tuple(map(str, range(100))),
            metrics=("accuracy",),
            primary="accuracy",
            max_length=0,
            title="One of 100 classes for an image",
        ),
        "generate": _task(
            name="generate",
            kind="generation",
            modality="text",
            fields=("tokens",),
            labels=(),
            metrics=("nll",),
            primary="nll",
            max_length=768,
            title="A text that continues another",
        ),
    }
    protocols = (
        Protocol(
            name="synthetic",
            version=1,
            options={
                "length": Option(None, int, 2, optional=True),
                "answer": Option(512, int, 1),
                "size": Option(224, int, 1),
            },
            report="last",
            text="""
The network of a model entry is built with random weights, whatever the entry's source, and trained for a few steps on
inputs drawn from a seed. Nothing is scored (the metrics above serve methods that look at validation data while they
train); the figures are memory, time, latency and parameters.

Every example has exactly `length` tokens (null: 128 to be classified, 768 to be generated), so nothing is padded. Of a
text to be generated the last `answer` tokens are learned, and an end token; an encoder-decoder reads the others and
writes those. Images have `size` pixels a side and are brought to the size that the network wants. The batch size is the
recipe's.

The defaults for generation are those of huggingface/peft's comparison on MetaMathQA at its longest: 4 texts of 768
tokens.""",
        ),
    )

    def recipe(self, task: str) -> dict:
        batch = {"classify": 32, "images": 64, "generate": 4}[task]
        return {"batch_size": batch, "max_steps": 23, "lr": 1e-4, "evaluations": 0}

    def facts(self, task: str, protocol) -> TaskInfo:
        info = self.info(task)
        return replace(info, max_length=protocol["length"] or info.max_length)

    def load(self, task: str, protocol, data_root) -> TaskData:
        """256 examples of the size that the protocol says; the three splits are the same."""
        rng, info = np.random.default_rng(SEED), self.facts(task, protocol)
        ids = np.arange(EXAMPLES)
        if task == "images":
            inputs = rng.integers(0, 256, (EXAMPLES, protocol["size"], protocol["size"], 3), dtype=np.uint8)
        else:
            inputs = rng.integers(0, VALUES, (EXAMPLES, info.max_length), dtype=np.int64)
        labels = rng.integers(0, max(1, len(info.labels)), EXAMPLES)
        if task == "generate":
            answer = min(protocol["answer"], info.max_length - 1)
            inputs, labels = inputs[:, :-answer], inputs[:, -answer:]
        split = Split(inputs, labels, ids)
        return TaskData.of(split, split, split, "generated")


suite = Cost()
