"""Metrics with standard errors. `compute` is what the harness calls; `metric` gives the same as an `evaluate.Metric`.

Both share the functions of this module, because the machinery of `evaluate.Metric.compute` (arrow tables, locks, cache
files) takes longer than the metric. scikit-learn, scipy and evaluate are imported when they are needed.

Edge cases: `matthews` is 0 where only one class is predicted or present, `f1` is 0 where class 1 is neither, and a
correlation with a constant is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from workflow.errors import AtlasError, suggest

RESAMPLES = 1000
BOOTSTRAP_SEED = 0


def compute(name: str, predictions: Sequence | np.ndarray, references: Sequence | np.ndarray) -> dict[str, float | int]:
    """{"value", "stderr", "n"} of a metric over n examples.

    The standard error of accuracy is sqrt(p (1 - p) / n); that of the others is the standard deviation over 1,000
    bootstrap resamples of the examples, with a fixed seed. Raises AtlasError on an unknown name and ValueError on
    arrays that are empty, of different lengths, or not finite.
    """
    function = _lookup(FUNCTIONS, name)
    predictions, references = _checked(predictions, references)
    value = function(predictions, references)
    return {"value": value, "stderr": STANDARD_ERRORS[name](predictions, references), "n": len(references)}


def metric(name: str):
    """The metric as an `evaluate.Metric` (importing `evaluate` takes about a second)."""
    from tasks import _evaluate_metrics

    return _lookup(_evaluate_metrics.CLASSES, name)(keep_in_memory=True)


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(references, predictions))


def f1(predictions: np.ndarray, references: np.ndarray) -> float:
    """F1 of class 1 against class 0. Raises ValueError on any other class."""
    from sklearn.metrics import f1_score

    return float(f1_score(references, predictions, pos_label=1, zero_division=0))


def matthews(predictions: np.ndarray, references: np.ndarray) -> float:
    """Matthews correlation coefficient, of any number of classes."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(references, predictions))


def pearson(predictions: np.ndarray, references: np.ndarray) -> float:
    from scipy.stats import pearsonr

    if _constant(predictions) or _constant(references):
        return 0.0
    return float(pearsonr(predictions, references).statistic)


def spearman(predictions: np.ndarray, references: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if _constant(predictions) or _constant(references):
        return 0.0
    return float(spearmanr(predictions, references).statistic)


FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def _accuracy_error(predictions: np.ndarray, references: np.ndarray) -> float:
    share = float(np.mean(predictions == references))
    return math.sqrt(share * (1 - share) / len(references))


def _f1_error(predictions: np.ndarray, references: np.ndarray) -> float:
    counts = _resampled_confusions(predictions, references, np.array([0, 1]))
    hits = counts[:, 1, 1]
    return _spread(2 * hits, counts[:, 1, :].sum(axis=1) + counts[:, :, 1].sum(axis=1))


def _matthews_error(predictions: np.ndarray, references: np.ndarray) -> float:
    classes = np.union1d(predictions, references)
    counts = _resampled_confusions(predictions, references, classes).astype(float)
    n = len(references)
    true, predicted = counts.sum(axis=2), counts.sum(axis=1)
    covariance = n * np.trace(counts, axis1=1, axis2=2) - (true * predicted).sum(axis=1)
    variances = (n**2 - (true**2).sum(axis=1)) * (n**2 - (predicted**2).sum(axis=1))
    return _spread(covariance, np.sqrt(variances))


def _pearson_error(predictions: np.ndarray, references: np.ndarray) -> float:
    x, y = _standardised(predictions), _standardised(references)
    moments = np.stack([x, y, x * x, y * y, x * y]) @ _resampled_weights(len(x)) / len(x)
    mean_x, mean_y, square_x, square_y, product = moments
    variances = np.clip(square_x - mean_x**2, 0, None) * np.clip(square_y - mean_y**2, 0, None)
    return _spread(product - mean_x * mean_y, np.sqrt(variances))


def _spearman_error(predictions: np.ndarray, references: np.ndarray) -> float:
    weights = _resampled_weights(len(references))
    x, y = _resampled_ranks(weights, predictions), _resampled_ranks(weights, references)
    weighted_x = weights * x
    covariance, variance_x = (weighted_x * y).sum(axis=0), (weighted_x * x).sum(axis=0)
    variance_y = (weights * y * y).sum(axis=0)
    return _spread(covariance, np.sqrt(variance_x * variance_y))


STANDARD_ERRORS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy_error,
    "f1": _f1_error,
    "matthews": _matthews_error,
    "pearson": _pearson_error,
    "spearman": _spearman_error,
}


def _resampled_confusions(predictions: np.ndarray, references: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(RESAMPLES, true class, predicted class) counts: resampling rows is a multinomial draw of the confusions."""
    k, n = len(classes), len(references)
    cells = np.searchsorted(classes, references) * k + np.searchsorted(classes, predictions)
    shares = np.bincount(cells, minlength=k * k) / n
    return np.random.default_rng(BOOTSTRAP_SEED).multinomial(n, shares, size=RESAMPLES).reshape(RESAMPLES, k, k)


def _resampled_weights(n: int) -> np.ndarray:
    """(n, RESAMPLES): how often each row is in each resample, as floats."""
    rows = np.random.default_rng(BOOTSTRAP_SEED).integers(n, size=(n, RESAMPLES))
    cells = rows * RESAMPLES + np.arange(RESAMPLES)
    return np.bincount(cells.ravel(), minlength=n * RESAMPLES).reshape(n, RESAMPLES).astype(float)


def _resampled_ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mid-ranks of the values inside each resample, (n, RESAMPLES), less their mean; values are sorted only once."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    counts = np.add.reduceat(weights[order], starts, axis=0)
    middles = np.cumsum(counts, axis=0) - counts / 2
    return middles[group] - len(values) / 2


def _spread(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Standard deviation of the ratios; a ratio over nothing is 0, as in the metrics themselves."""
    nothing = denominators <= 1e-12
    ratios = np.where(nothing, 0.0, numerators / np.where(nothing, 1.0, denominators))
    return float(ratios.std(ddof=1))


def _standardised(values: np.ndarray) -> np.ndarray:
    deviation = values.std()
    return (values - values.mean()) / (deviation if deviation > 0 else 1.0)


def _constant(values: np.ndarray) -> bool:
    return bool(np.all(values == values[0]))


def _checked(predictions: Sequence | np.ndarray, references: Sequence | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    predictions, references = np.asarray(predictions), np.asarray(references)
    if predictions.ndim != 1 or predictions.shape != references.shape or not len(references):
        raise ValueError(
            f"predictions {predictions.shape} and references {references.shape} must be (n,) alike, and not empty"
        )
    if not (np.isfinite(predictions).all() and np.isfinite(references).all()):
        raise ValueError("predictions and references must be finite")
    return predictions, references


def _lookup(table: dict, name: str):
    if name not in table:
        raise AtlasError(f"no metric '{name}'", mend=suggest(name, table))
    return table[name]
