"""The metrics as classes of `evaluate`, defined locally so that none is fetched. Importing this imports `evaluate`."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np

from tasks import metrics


class LocalMetric(evaluate.Metric):
    """A metric whose arithmetic is a function of tasks.metrics; `compute` returns {name: value}."""

    metric_name: str
    value_type: str  # of one prediction: int64 or float64

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value(self.value_type)
        return evaluate.MetricInfo(
            description=metrics.FUNCTIONS[self.metric_name].__doc__ or self.metric_name,
            citation="",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        function = metrics.FUNCTIONS[self.metric_name]
        return {self.metric_name: function(np.asarray(predictions), np.asarray(references))}


class Accuracy(LocalMetric):
    metric_name, value_type = "accuracy", "int64"


class F1(LocalMetric):
    metric_name, value_type = "f1", "int64"


class Matthews(LocalMetric):
    metric_name, value_type = "matthews", "int64"


class Pearson(LocalMetric):
    metric_name, value_type = "pearson", "float64"


class Spearman(LocalMetric):
    metric_name, value_type = "spearman", "float64"


CLASSES = {metric.metric_name: metric for metric in (Accuracy, F1, Matthews, Pearson, Spearman)}
