"""Metrics against answers worked out by hand, and standard errors against formulas and plain bootstraps."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from tasks import metrics
from workflow.errors import AtlasError

# 10 examples: 4 true positives, 3 true negatives, 1 false positive, 2 false negatives
REFERENCES = [1, 1, 1, 1, 1, 1, 0, 0, 0, 0]
PREDICTIONS = [1, 1, 1, 1, 0, 0, 1, 0, 0, 0]


def value(name, predictions, references):
    return metrics.compute(name, predictions, references)["value"]


def test_accuracy_is_the_share_of_hits_with_the_binomial_error():
    result = metrics.compute("accuracy", PREDICTIONS, REFERENCES)
    assert result == {"value": 0.7, "stderr": pytest.approx((0.7 * 0.3 / 10) ** 0.5), "n": 10}


def test_f1_of_class_one():
    # precision 4/5, recall 4/6: 2 * (4/5 * 2/3) / (4/5 + 2/3) = 8 / 11
    assert value("f1", PREDICTIONS, REFERENCES) == pytest.approx(8 / 11)


def test_matthews_of_two_classes():
    # (4 * 3 - 1 * 2) / sqrt(5 * 6 * 4 * 5) = 10 / sqrt(600)
    assert value("matthews", PREDICTIONS, REFERENCES) == pytest.approx(10 / 600**0.5)


def test_pearson_of_four_points():
    # deviations (-1.5, -.5, .5, 1.5) and (-2, 0, -1, 3): 7 / sqrt(5 * 14)
    assert value("pearson", [1, 2, 3, 4], [0, 2, 1, 5]) == pytest.approx(7 / 70**0.5)


def test_spearman_takes_ranks_with_ties_shared():
    # ranks (1, 2, 3, 4) and (1.5, 1.5, 3, 4), deviations (-1.5, -.5, .5, 1.5) and (-1, -1, .5, 1.5):
    # 4.5 / sqrt(5 * 4.5)
    assert value("spearman", [1, 20, 300, 4000], [5, 5, 6, 9]) == pytest.approx(4.5 / 22.5**0.5)


@pytest.mark.parametrize(("name", "predictions"), [("matthews", [1, 1, 1, 1]), ("f1", [0, 0, 0, 0])])
def test_only_one_class_predicted_is_zero(name, predictions):
    assert metrics.compute(name, predictions, [0, 1, 0, 1]) == {"value": 0.0, "stderr": 0.0, "n": 4}


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlation_with_a_constant_is_zero(name):
    assert metrics.compute(name, [2.5, 2.5, 2.5], [1.0, 2.0, 3.0]) == {"value": 0.0, "stderr": 0.0, "n": 3}


@pytest.mark.parametrize("name", metrics.FUNCTIONS)
def test_perfect_predictions_have_value_one_and_no_error(name):
    labels = [0, 1] * 20
    assert metrics.compute(name, labels, labels) == {"value": pytest.approx(1.0), "stderr": pytest.approx(0.0), "n": 40}


def test_matthews_of_three_classes_agrees_with_its_own_resampling():
    generator = np.random.default_rng(1)
    references = generator.integers(3, size=500)
    predictions = np.where(generator.random(500) < 0.6, references, generator.integers(3, size=500))
    assert_error_is_that_of_a_plain_bootstrap("matthews", matthews_corrcoef, predictions, references)


@pytest.mark.parametrize(("name", "function"), [("f1", f1_score), ("matthews", matthews_corrcoef)])
def test_error_of_a_classification_metric_is_that_of_a_plain_bootstrap(name, function):
    generator = np.random.default_rng(2)
    references = (generator.random(400) < 0.3).astype(int)
    predictions = np.where(generator.random(400) < 0.8, references, 1 - references)
    assert_error_is_that_of_a_plain_bootstrap(name, function, predictions, references)


@pytest.mark.parametrize(("name", "function"), [("pearson", pearsonr), ("spearman", spearmanr)])
def test_error_of_a_correlation_is_that_of_a_plain_bootstrap(name, function):
    generator = np.random.default_rng(3)
    references = np.round(generator.random(400) * 5, 1)
    predictions = references + generator.normal(size=400)
    assert_error_is_that_of_a_plain_bootstrap(name, lambda *pair: function(*pair).statistic, predictions, references)


def assert_error_is_that_of_a_plain_bootstrap(name, function, predictions, references):
    generator = np.random.default_rng(4)
    resamples = generator.integers(len(references), size=(250, len(references)))
    spread = np.std([function(references[rows], predictions[rows]) for rows in resamples], ddof=1)
    assert metrics.compute(name, predictions, references)["stderr"] == pytest.approx(spread, rel=0.15)


def test_error_of_pearson_for_independent_normals_is_one_over_root_n():
    generator = np.random.default_rng(5)
    x, y = generator.normal(size=(2, 900))
    assert metrics.compute("pearson", x, y)["stderr"] == pytest.approx(1 / 30, rel=0.12)


@pytest.mark.parametrize("name", metrics.FUNCTIONS)
def test_standard_errors_do_not_change_between_calls(name):
    assert metrics.compute(name, PREDICTIONS, REFERENCES) == metrics.compute(name, PREDICTIONS, REFERENCES)


def test_unknown_metric_is_an_error_with_a_suggestion():
    with pytest.raises(AtlasError, match="did you mean 'accuracy'"):
        metrics.compute("acuracy", [1], [1])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [([], [], "not empty"), ([1, 0], [1], "alike"), ([float("nan"), 1.0], [1.0, 2.0], "finite")],
)
def test_arrays_that_cannot_be_scored_are_refused(predictions, references, message):
    with pytest.raises(ValueError, match=message):
        metrics.compute("pearson", predictions, references)


def test_importing_metrics_imports_nothing_heavy():
    heavy = ("sklearn", "scipy", "evaluate", "datasets")
    code = f"import sys, tasks.metrics; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_every_metric_is_an_evaluate_metric_that_gives_the_same_value(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import evaluate

    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)
    for name in metrics.FUNCTIONS:
        metric = metrics.metric(name)
        assert isinstance(metric, evaluate.Metric)
        result = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
        assert result == {name: pytest.approx(value(name, PREDICTIONS, REFERENCES))}
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
