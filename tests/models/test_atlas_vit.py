"""The project's own ViT: what is stored, how it was made, and that its features are worth something."""

import ast
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models import _pretrain_vit, _procedural
from models._procedural import CLASSES, FAMILIES, Images
from models.entries import FOLDER, model
from models.load import load
from tasks.demo_vtab import suite

ENTRY = model("atlas-vit")
STORED = FOLDER / ENTRY.location
ROWS = 500


@pytest.fixture(scope="module")
def images():
    return Images(0)


def test_weights_are_small_and_need_no_pickle():
    assert {path.name for path in STORED.iterdir()} == {"config.json", "model.safetensors", "training.csv"}
    assert (STORED / "model.safetensors").stat().st_size <= 6_000_000


def test_the_stored_configuration_is_that_of_the_entry():
    stored = json.loads((STORED / "config.json").read_text())
    assert {name: stored[name] for name in ENTRY.config} == ENTRY.config and stored["model_type"] == ENTRY.architecture


def test_it_loads_with_every_weight_as_stored():
    from safetensors.torch import load_file

    network = load(ENTRY, labels=10).model
    assert sum(p.numel() for p in network.parameters()) == 1_204_608
    stored = sum(tensor.double().sum() for tensor in load_file(STORED / "model.safetensors").values())
    assert sum(p.double().sum() for p in network.parameters()).item() == pytest.approx(stored.item())


def test_the_curve_is_that_of_the_script_and_goes_down():
    rows = list(csv.DictReader((STORED / "training.csv").open()))
    steps, losses = [int(row["step"]) for row in rows], [float(row["loss"]) for row in rows]
    assert steps == sorted(steps) and steps[-1] == _pretrain_vit.STEPS
    assert losses[-1] < 0.6 * losses[0] and float(rows[-1]["accuracy"]) > 0.3


def test_the_same_seed_makes_the_same_images(images):
    first, again = Images(0).batch(16), Images(0).batch(16)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], Images(1).batch(16)[0])


def test_a_batch_has_all_families_and_classes_in_their_ranges(images):
    pixels, labels = images.batch(32)
    assert pixels.shape == (32, 3, 32, 32) and pixels.min() >= -1 and pixels.max() <= 1
    assert (labels // CLASSES).tolist() == [family for family in range(len(FAMILIES)) for _ in range(8)]
    assert pixels.flatten(1).std(1).min() > 0.01


def test_images_that_are_not_varied_are_grey(images):
    assert _chroma(images.batch(16, varied=0.0)[0]) < 0.03 < _chroma(images.batch(16, varied=1.0)[0])


def _chroma(pixels):
    return pixels.mean((2, 3)).std(1).mean().item()


def test_colours_come_in_after_the_start_and_are_all_there_at_the_end():
    shares = [_pretrain_vit._varied(done) for done in (0.0, 0.1, 0.35, 0.6, 1.0)]
    assert shares == pytest.approx([0, 0, 0.5, 1, 1])


def test_nothing_of_the_tasks_is_in_the_pretraining():
    for module in (_procedural, _pretrain_vit):
        nodes = ast.walk(ast.parse(Path(module.__file__).read_text()))
        assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module.startswith("tasks")]


def test_pretraining_makes_the_same_weights_again():
    (first, curve), (again, _) = (_pretrain_vit.pretrain(steps=1) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert [step for step, _, _ in curve] == [1]


def test_weights_stay_when_writing_new_ones_breaks(tmp_path):
    (tmp_path / "model.safetensors").write_text("old")

    class Broken:
        def save_pretrained(self, folder):
            raise OSError("no space left")

    with pytest.raises(OSError):
        _pretrain_vit.write(Broken(), [], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert (tmp_path / "model.safetensors").read_text() == "old"


@pytest.mark.parametrize("task", suite.tasks)
def test_its_features_beat_those_of_random_weights(task):
    data = suite.load(task, suite.protocol(task, {"train": ROWS, "validation": 20, "test": ROWS}), None)
    pretrained, random = (_probe(data, weights) for weights in ("pretrained", "random"))
    assert pretrained > random


def _probe(data, weights):
    """Test accuracy of logistic regression on the frozen features that the head would read."""
    backbone = load(ENTRY, labels=10, weights=weights)
    assert backbone.head.pooling == "mean"
    train, test = (_features(backbone.model, split.inputs) for split in (data.train, data.test))
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300)).fit(train, data.train.labels)
    return probe.score(test, data.test.labels)


@torch.no_grad()
def _features(network, images: np.ndarray) -> np.ndarray:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    network.eval()
    return np.concatenate([network(pixel_values=part).last_hidden_state.mean(1).numpy() for part in pixels.split(100)])
