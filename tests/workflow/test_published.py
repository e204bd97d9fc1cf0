"""Published scores on file are about things that exist, and are put beside a grid's own with a fair verdict."""

import math
from functools import cache

import pytest

from models.entries import model
from tests.workflow import studies
from tests.workflow.studies import cell, failed, grid, result, store
from workflow import outcomes, published, registry
from workflow.errors import AtlasError
from workflow.published import Target, comparisons, targets, verdict

CELL = cell("lora", settings={"rank": 8})


def target(value=90.0, half=1.0, settings=(("rank", 8),), trained=None, metric="accuracy"):
    return Target("paper", "glue", "sst2", "minilm-l6", "lora", settings, metric, value, half, trained, "")


def compared(root, monkeypatch, *known):
    monkeypatch.setattr(registry, "suites", studies.suites)
    return comparisons(outcomes.load(grid(CELL), root), known)


def test_every_target_names_what_the_project_has():
    methods, suites = cache(registry.methods)(), registry.suites()
    for one in targets():
        task = suites[one.suite].tasks[one.task]
        name, _, part = one.metric.partition("/")
        assert name in task.metrics and (not part or part in task.parts), one
        assert model(one.model).name == one.model
        assert dict(one.settings).keys() <= methods[one.method].settings.keys(), one
        assert 0 <= one.value <= 100


def test_every_source_is_explained():
    text = (published.SCORES.parent / "README.md").read_text()
    assert all(f"| `{source}` |" in text for source in {one.source for one in targets()})


def test_a_difference_has_the_interval_of_both_figures(tmp_path, monkeypatch):
    store(tmp_path, result(CELL, 0.92, 0.01))
    (found,) = compared(tmp_path, monkeypatch, target())
    assert found.difference == pytest.approx(2.0)
    assert found.half == pytest.approx(math.hypot(1.96, 1.0))
    assert found.verdict == "agrees within the interval"


def test_other_settings_are_no_match(tmp_path, monkeypatch):
    store(tmp_path, result(CELL, 0.92))
    assert compared(tmp_path, monkeypatch, target(settings=(("rank", 16),))) == []


def test_another_count_of_parameters_is_another_set_up(tmp_path, monkeypatch):
    store(tmp_path, result(CELL, 0.92, trained=1000))
    near, far = compared(tmp_path, monkeypatch, target(trained=1004), target(trained=2000))
    assert near.remarks == () and near.verdict == "agrees within the interval"
    assert far.remarks == ("trains 1,000 parameters, the source 2,000",)
    assert far.verdict == "another set-up, 2.0 above"


@pytest.mark.parametrize("ran, word", [(True, "oom"), (False, "missing")])
def test_a_cell_without_a_score_says_why(tmp_path, monkeypatch, ran, word):
    if ran:
        store(tmp_path, failed(CELL, "oom", "no memory"))
    (found,) = compared(tmp_path, monkeypatch, target())
    assert found.measured is None and found.verdict == f"no score: {word}"


def test_a_part_is_compared_with_that_part(tmp_path, monkeypatch):
    store(tmp_path, result(CELL, 0.92, others={"accuracy/hard": 0.7}))
    (found,) = compared(tmp_path, monkeypatch, target(value=71.0, metric="accuracy/hard"))
    assert found.difference == pytest.approx(-1.0)


@pytest.mark.parametrize(
    "difference, own, other, words",
    [
        (-3.0, 1.0, 1.0, "below by more than the interval"),
        (1.3, 1.0, 1.0, "agrees within the interval"),
        (1.7, 1.0, 1.0, "above by more than the interval"),
        (1.3, 1.0, None, "above by more than the interval; the published figure has none"),
        (0.5, None, 1.0, "agrees within the interval; the grid's own has none"),
        (0.5, None, None, "above; neither figure has an interval"),
    ],
)
def test_a_verdict_says_which_intervals_it_knows(difference, own, other, words):
    assert verdict(difference, own, other, another=False) == words


def test_the_spread_is_over_seeds_or_of_sampling():
    by_seeds = published._half(95.1, {"std": "0.2", "seeds": "5", "n": ""})
    by_sampling = published._half(50.0, {"std": "", "seeds": "1", "n": "1000"})
    assert by_seeds == pytest.approx(2.776 * 0.2 / math.sqrt(5), rel=1e-3)
    assert by_sampling == pytest.approx(3.099, rel=1e-3)
    assert published._half(50.0, {"std": "", "seeds": "", "n": ""}) is None


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text(published.SCORES.read_text().splitlines()[0] + "\na,glue,sst2,m,lora,rank,accuracy,x,,,,,\n")
    with pytest.raises(AtlasError, match="line 2 is no published score"):
        targets(path)
