"""Cells of every kind of task, end to end on tiny random networks: generation, options, images."""

import pyarrow.parquet as pq
import pytest

from workflow import cell as cells
from workflow import grid as grids
from workflow import results

STUDY = """
tasks: {{{suite}: [{task}]}}
models: [{model}]
methods: [{method}]
recipe: {{max_steps: 6, evaluations: 2, batch_size: 4, lr: 1.0e-2}}
protocol: {{{suite}: {{train: 20, validation: 20, test: 20}}}}
measure: [accuracy, latency]
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run one cell in an empty folder; returns its result and its predictions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path / "cache"))

    def one(suite, task, model, method="lora"):
        (tmp_path / "grid.yaml").write_text(STUDY.format(suite=suite, task=task, model=model, method=method))
        grid = grids.load(tmp_path / "grid.yaml")
        cells.main(grid, grid.cells[0])
        path = grid.cells[0].path
        table = path.with_name("seed0.predictions.parquet")
        return results.read(path), pq.read_table(table).to_pandas() if table.exists() else None

    return one


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-gpt2", "tiny-t5"])
def test_generation(run, model):
    result, table = run("demo_gsm8k", "arithmetic", model)
    assert result["status"] == "ok", result["reason"]
    metrics = result["metrics"]
    assert metrics["select"] == "nll" and metrics["last"].keys() == {"accuracy", "accuracy_flexible", "unparsed", "nll"}
    assert result["data"]["train"] == 20 and result["data"]["test"] == 20
    assert (table.prediction_selected == table.reference).mean() == metrics["selected"]["accuracy"]["value"]
    assert table.nats.sum() / table.tokens.sum() == pytest.approx(metrics["last"]["nll"]["value"], rel=1e-5)
    curve = result["curves"]["validation"]
    assert all(value > 0 for _, value in curve), "the curve is the loss itself"
    assert metrics["selected_step"] == min(curve, key=lambda point: point[1])[0]


def test_the_validation_loss_falls_and_random_labels_do_not_help(run):
    losses = {name: run("demo_gsm8k", "arithmetic", "tiny-llama", name)[0] for name in ("untrained", "full")}
    before, after = (losses[name]["metrics"]["last"]["nll"]["value"] for name in ("untrained", "full"))
    assert after < before - 0.1


@pytest.mark.parametrize("model", ["tiny-llama", "tiny-t5"])
def test_options(run, model):
    result, table = run("demo_commonsense", "truth", model)
    assert result["status"] == "ok", result["reason"]
    found = result["metrics"]["selected"]
    assert {"accuracy", "accuracy_likelihood", "nll"} <= found.keys()
    assert found["accuracy_likelihood"]["n"] == 20 and set(table.chosen) <= {0, 1}


@pytest.mark.parametrize("model", ["tiny-vit", "tiny-swin"])
def test_images(run, model):
    result, table = run("demo_vtab", "count", model)
    assert result["status"] == "ok", result["reason"]
    assert (table.prediction_last == table.reference).mean() == result["metrics"]["last"]["accuracy"]["value"]


@pytest.mark.parametrize(
    ("suite", "task", "model", "reason"),
    [
        ("demo_vtab", "count", "tiny-bert", "reads texts"),
        ("demo_gsm8k", "arithmetic", "tiny-vit", "reads images"),
        ("demo_gsm8k", "arithmetic", "tiny-bert", "cannot generate"),
    ],
)
def test_a_model_that_does_not_fit_the_task_is_unsupported(run, suite, task, model, reason):
    result, _ = run(suite, task, model)
    assert result["status"] == "unsupported" and reason in result["reason"]


@pytest.mark.parametrize(
    ("suite", "task", "model", "rule"),
    [("demo_gsm8k", "arithmetic", "tiny-llama", "last"), ("demo_glue", "entailment", "tiny-bert", "selected")],
)
def test_the_protocol_says_which_checkpoint_is_reported(run, suite, task, model, rule):
    result, _ = run(suite, task, model, "full")
    assert result["metrics"]["rule"] == rule


def test_texts_and_losses_beside_a_result_are_those_of_the_checkpoint_that_tables_show(run, monkeypatch):
    values = iter([1.0, 0.0])
    monkeypatch.setattr("workflow.evaluate.Scorer.select", lambda self, data: next(values))
    result, table = run("demo_gsm8k", "arithmetic", "tiny-llama", "full")
    metrics = result["metrics"]
    assert metrics["rule"] == "last" and metrics["selected_step"] == 3
    assert metrics["selected"]["nll"]["value"] != pytest.approx(metrics["last"]["nll"]["value"], rel=1e-3)
    assert table.nats.sum() / table.tokens.sum() == pytest.approx(metrics["last"]["nll"]["value"], rel=1e-5)


COST = """
tasks: {{cost: [{task}]}}
models: [{model}]
methods: [lora]
recipe: {{max_steps: 3, batch_size: 4}}
protocol: {{cost: {{length: 12, answer: 5, size: 16}}}}
"""


@pytest.mark.parametrize(
    ("task", "model", "tokens", "length"),
    [
        ("classify", "tiny-bert", 12, 12),
        ("generate", "tiny-llama", 12, 7),
        ("generate", "tiny-t5", 7, 7),
        ("images", "tiny-vit", 1, 1),
    ],
)
def test_a_cost_cell_measures_and_scores_nothing(tmp_path, monkeypatch, task, model, tokens, length):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "grid.yaml").write_text(COST.format(task=task, model=model))
    grid = grids.load(tmp_path / "grid.yaml")
    assert cells.main(grid, grid.cells[0]) == "ok"
    path = grid.cells[0].path
    result = results.read(path)
    assert result["cost_only"] and "metrics" not in result and not path.with_name("seed0.predictions.parquet").exists()
    assert result["training"] | {"steps": 3, "tokens": 3 * 4 * tokens, "padding_fraction": 0.0} == result["training"]
    assert result["latency"]["length"] == length and result["time"]["step_median"] > 0
    assert result["memory"]["train_peak"] > 0 and result["memory"]["inference_peak"] > 0
    assert result["memory"]["parts"]["batch"] == 4 and result["memory"]["parts"]["tokens"] == 4 * tokens
    assert result["flops"]["train_step"] > 0 and 0 < result["flops"]["utilisation"] < 1
    assert result["provenance"]["model"]["source"].startswith("random:")


@pytest.mark.parametrize(("method", "status"), [("lora", "ok"), ("houlsby", "ok"), ("full", "unsupported")])
def test_a_quantised_base_is_an_option_of_the_recipe(tmp_path, monkeypatch, method, status):
    monkeypatch.chdir(tmp_path)
    text = COST.format(task="classify", model="tiny-bert").replace("[lora]", f"[{method}]")
    (tmp_path / "grid.yaml").write_text(text.replace("max_steps: 3", "max_steps: 3, quantize: int8"))
    grid = grids.load(tmp_path / "grid.yaml")
    assert cells.main(grid, grid.cells[0]) == status
    result = results.read(grid.cells[0].path)
    assert result["cell"]["recipe"]["quantize"] == "int8"
    if status == "ok":
        plain = 4 * result["parameters"]["backbone"]
        blocks = 2 * (4 * 32 * 32 + 2 * 32 * 64)
        scales = 2 * 4 * (4 * 32 + 64 + 32)
        positions = 8 * 64 * 2  # buffers of the embeddings: position and type ids
        assert result["memory"]["parts"]["base"] == plain - 3 * blocks + scales + positions
    else:
        assert "quantised" in result["reason"]


def test_compiling_is_an_option_of_the_recipe_and_comes_after_attaching(tmp_path, monkeypatch):
    from models.backbone import Backbone

    monkeypatch.chdir(tmp_path)
    attached = []
    monkeypatch.setattr(Backbone, "compile", lambda self: attached.append(len(self._handles)))
    text = COST.format(task="classify", model="tiny-bert")
    for option in ("false", "true"):
        (tmp_path / "grid.yaml").write_text(text.replace("max_steps: 3", f"max_steps: 3, compile: {option}"))
        grid = grids.load(tmp_path / "grid.yaml")
        assert cells.main(grid, grid.cells[0]) == "ok"
    assert attached == [4], "once, with two maps in each of two blocks"


def test_what_a_method_does_between_its_phases_is_charged_under_its_name(run):
    result, _ = run("demo_vtab", "texture", "tiny-vit", "e2vpt")
    assert result["status"] == "ok", result["reason"]
    assert result["time"]["method"].keys() == {"importance"} and result["time"]["method"]["importance"] > 0
