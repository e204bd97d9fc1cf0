"""Predictions of a trained cell, and their scores.

Classification and regression read the head. Generation is scored in up to three ways: by answers extracted from a
greedy continuation, by the likelihoods of given options, and by the loss on the reference answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from methods.base import Method
from models.backbone import Backbone
from models.batch import Batch, Outputs
from tasks import metrics
from tasks.base import Split, Suite, TaskInfo
from workflow import encode
from workflow.data import IGNORED, Encoded, budgeted_batches, prefetch

CLASSIFICATION_TOKENS = 8192  # tokens of a batch of evaluation: longest example times rows
IMAGES = 128  # of a batch of evaluation
SCORING_TOKENS = 2048  # where every token has scores of the whole vocabulary
GENERATION_TOKENS = 8192
GENERATED = ("accuracy", "accuracy_flexible", "unparsed")
Estimate = dict[str, float]


@dataclass
class Predictions:
    """Of n examples, in the order of the split.

    predicted: class ids, scores, or for generation what the primary metric compares: extracted answers or the text of
    the likeliest option. reference: the same of the truth. scores: (n, classes) probabilities. answers: extracted
    answers by rule. texts: what was generated. chosen: index of the likeliest option. losses: (n, 2), the summed
    negative log-likelihood (nats) of the reference answer and its number of tokens.
    """

    predicted: np.ndarray
    reference: np.ndarray
    scores: np.ndarray | None = None
    answers: dict[str, np.ndarray] = field(default_factory=dict)
    texts: np.ndarray | None = None
    chosen: np.ndarray | None = None
    losses: np.ndarray | None = None


@dataclass
class Scorer:
    """How a cell's task is scored: its facts under the protocol, and the suite that extracts answers."""

    suite: Suite
    info: TaskInfo
    protocol: Mapping[str, Any]
    backbone: Backbone
    method: Method

    @property
    def selection(self) -> str:
        """The metric that chooses on validation data."""
        return self.info.select or self.info.primary

    def select(self, data: Encoded) -> float:
        """The selection metric on encoded data, larger is better."""
        if self.info.kind == "generation":
            return -_loss_estimate(self._losses(data))["value"]
        predicted, _ = self._classes(data)
        return metrics.compute(self.selection, predicted, data.labels)["value"]

    @torch.inference_mode()
    def predict(self, split: Split, data: Encoded) -> Predictions:
        """Run a split once, without dropout. data: the split, encoded with the loss on its answers only."""
        self.backbone.train(False)
        self.method.parts.train(False)
        if self.info.kind != "generation":
            predicted, scores = self._classes(data)
            return Predictions(predicted, data.labels, scores)
        wanted = self.info.metrics
        found = Predictions(np.array(split.labels), np.array(split.labels))
        if "nll" in wanted:
            found.losses = self._losses(data)
        if any(name in wanted for name in GENERATED):
            self._answer(split, found)
        if "accuracy_likelihood" in wanted:
            found.chosen = self._choose(split)
            if self.info.primary == "accuracy_likelihood":
                options = [choices[i] for choices, i in zip(split.choices, found.chosen, strict=True)]
                found.predicted, found.reference = np.array(options), np.array(split.labels.tolist())
        return found

    def scores(self, split: Split, found: Predictions) -> dict[str, Estimate]:
        """All metrics of the task: name -> value, stderr, n; those of a part as `name/part`."""
        if not self.info.parts:
            return self._scores(split, found, np.arange(len(split)))
        parts = [part for part in self.info.parts if (split.parts == part).any()]
        by_part = {part: self._scores(split, found, np.flatnonzero(split.parts == part)) for part in parts}
        clean = [part for part in parts if part not in self.info.contaminated]
        headline = clean if self.info.headline == "mean" else [self.info.headline]
        plain = {name: _mean([by_part[part][name] for part in headline]) for name in self.info.metrics}
        return plain | {f"{name}/{part}": value for part in parts for name, value in by_part[part].items()}

    def _scores(self, split: Split, found: Predictions, rows: np.ndarray) -> dict[str, Estimate]:
        return {name: self._metric(name, split, found, rows) for name in self.info.metrics}

    def _metric(self, name: str, split: Split, found: Predictions, rows: np.ndarray) -> Estimate:
        if self.info.kind != "generation":
            return metrics.compute(name, found.predicted[rows], found.reference[rows])
        if name == "nll":
            return _loss_estimate(found.losses[rows])
        if name == "accuracy_likelihood":
            hits = [split.choices[row][found.chosen[row]] == split.labels[row] for row in rows]
        elif name == "unparsed":
            hits = found.answers["strict"][rows] == ""
        else:
            hits = found.answers["flexible" if name == "accuracy_flexible" else "strict"][rows] == split.answers[rows]
        return metrics.compute("accuracy", np.array(hits, int), np.ones(len(rows), int))

    # ---- classification ------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _classes(self, data: Encoded) -> tuple[np.ndarray, np.ndarray | None]:
        """Class ids and probabilities, or scores of a regression."""
        values = torch.from_numpy(self._over(data, CLASSIFICATION_TOKENS, lambda out, batch: self._logits(out)))
        if self.info.kind == "regression":
            return values[:, 0].numpy(), None
        return values.argmax(-1).numpy(), torch.softmax(values, -1).numpy()

    def _logits(self, outputs: Outputs) -> Tensor:
        return self.method.logits(outputs.logits, self.backbone.state).float()

    def _over(self, data: Encoded, tokens: int, function: Callable[[Outputs, Batch], Tensor]) -> np.ndarray:
        """`function` of every batch, (rows, ...), put together in the order of the data."""
        values, rows = [], []
        for batch in self._batches(data, tokens):
            values.append(function(self.method.forward(batch, self.backbone.forward), batch))
            rows.append(batch.rows)
        return torch.cat(values).cpu().numpy()[np.argsort(np.concatenate(rows))]

    def _batches(self, data: Encoded, tokens: int) -> Iterator[Batch]:
        self.backbone.train(False)
        self.method.parts.train(False)
        return prefetch(budgeted_batches(data, tokens, IMAGES), self.backbone.device)

    # ---- generation ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _losses(self, data: Encoded) -> np.ndarray:
        """(n, 2): summed negative log-likelihood of the learned tokens, and their number."""

        def loss(outputs: Outputs, batch: Batch) -> Tensor:
            labels = outputs.targets(batch)
            values = F.cross_entropy(self._logits(outputs).flatten(0, 1), labels.flatten(), reduction="none")
            return torch.stack([values.view(labels.shape).sum(1), (labels != IGNORED).sum(1)], 1)

        return self._over(data, SCORING_TOKENS, loss)

    def _answer(self, split: Split, found: Predictions) -> None:
        """Generate, extract, and note texts and answers."""
        texts = self._generate(encode.prompts(split, self.backbone, self.info.new_tokens))
        tasks = split.parts.tolist() if self.info.parts else [self.info.name] * len(texts)
        rows = zip(tasks, texts, split.inputs, strict=True)
        answers = [self.suite.extract(task, self.protocol, text, prompt) for task, text, (prompt,) in rows]
        found.texts = np.array(texts, object)
        found.answers = {rule: np.array([answer[rule] for answer in answers]) for rule in answers[0]}
        found.predicted, found.reference = found.answers["strict"], np.asarray(split.answers)

    def _generate(self, data: Encoded) -> list[str]:
        """Greedy continuations, cut at the end token."""
        texts: list[str] = [""] * len(data)
        tokenizer, info = self.backbone.tokenizer, self.info
        batches = budgeted_batches(data, GENERATION_TOKENS, IMAGES, more=info.new_tokens)
        for batch in prefetch(batches, self.backbone.device):
            room = info.new_tokens
            if info.total_tokens is not None:
                room = max(1, min(room, info.total_tokens - batch.inputs["input_ids"].shape[1]))
            ids = self.backbone.generate(batch, room, tokenizer.eos_token_id, logits=self.method.logits)
            for row, new in zip(batch.rows, ids.tolist(), strict=True):
                end = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else len(new)
                texts[row] = tokenizer.decode(new[:end], skip_special_tokens=True)
        return texts

    def _choose(self, split: Split) -> np.ndarray:
        """(n,) index of the option with the largest summed log-probability; the first of equal ones."""
        if self.backbone.kind == "encoder_decoder":
            data, counts = encode.option_targets(split, self.backbone)
            return np.array([part.argmin() for part in np.split(self._losses(data)[:, 0], np.cumsum(counts)[:-1])])
        found = encode.choices(split, self.backbone)
        best = [np.full(len(options), -np.inf) for options in split.choices]
        for batch in self._batches(found.encoded, SCORING_TOKENS):
            outputs = self.method.forward(batch, self.backbone.forward)
            scores = torch.log_softmax(self._logits(outputs), -1)
            labels = outputs.targets(batch)
            known = scores.gather(-1, labels.clamp_min(0)[..., None])[..., 0]
            common = (known * (labels != IGNORED)).sum(1)
            for i, row in enumerate(batch.rows):
                lasts = torch.from_numpy(found.lasts[row]).to(scores.device)
                total = common[i] + scores[i, -1, lasts]
                best[found.example[row]][found.options[row]] = total.cpu().numpy()
        return np.array([values.argmax() for values in best])


def _loss_estimate(losses: np.ndarray) -> Estimate:
    """Mean nats per token over all tokens; the standard error is that of a ratio over examples."""
    nats, tokens = losses.astype(np.float64).T
    value = nats.sum() / max(1.0, tokens.sum())
    spread = (nats - value * tokens).std(ddof=1) if len(nats) > 1 else 0.0
    return {"value": float(value), "stderr": float(spread / max(1.0, tokens.sum()) * len(nats) ** 0.5), "n": len(nats)}


def _mean(estimates: list[Estimate]) -> Estimate:
    """Unweighted mean of independent estimates."""
    count = len(estimates)
    return {
        "value": sum(e["value"] for e in estimates) / count,
        "stderr": sum(e["stderr"] ** 2 for e in estimates) ** 0.5 / count,
        "n": sum(e["n"] for e in estimates),
    }
