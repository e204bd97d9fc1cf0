"""Predictions of a trained cell, and their scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from methods.base import Method
from models.backbone import Backbone
from tasks import metrics
from tasks.base import TaskInfo
from workflow.data import Encoded, prefetch, sorted_batches

EVALUATION_TOKENS = 8192  # tokens in a batch of evaluation, longest example times rows


@dataclass
class Predictions:
    """predicted: (n,) class ids or scores in the order of the split; scores: (n, classes) probabilities or None."""

    predicted: np.ndarray
    scores: np.ndarray | None


@torch.inference_mode()
def predict(
    backbone: Backbone, method: Method, data: Encoded, info: TaskInfo, batch_size: int | None = None
) -> Predictions:
    """Run a split once, without dropout, and return its predictions in the split's own order."""
    backbone.train(False)
    method.parts.train(False)
    size = batch_size or max(8, EVALUATION_TOKENS // max(1, int(data.lengths.max())) // 8 * 8)
    outputs, rows = [], []
    for batch in prefetch(sorted_batches(data, size), backbone.device):
        out = method.forward(batch, backbone.forward)
        outputs.append(method.logits(out.logits, backbone.state).float())
        rows.append(batch.rows)
    values = torch.cat(outputs)
    order = np.argsort(np.concatenate(rows))
    if info.kind == "regression":
        return Predictions(values[:, 0].cpu().numpy()[order], None)
    probabilities = torch.softmax(values, -1).cpu().numpy()[order]
    return Predictions(values.argmax(-1).cpu().numpy()[order], probabilities)


def scores(info: TaskInfo, predictions: Predictions, references: np.ndarray) -> dict[str, dict[str, float]]:
    """All metrics of the task: name -> value, stderr, n."""
    return {name: metrics.compute(name, predictions.predicted, references) for name in info.metrics}
