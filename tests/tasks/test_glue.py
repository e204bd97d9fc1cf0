"""GLUE: which rows become train, validation and test; from small files made here, and real ones where there are any."""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tasks.glue import REVISION, suite
from workflow.errors import AtlasError

REAL = Path(__file__).parents[2].parent / "shared" / "data"


def write(root, task, split, size, labels=None):
    """A split of numbered sentences; every third label is 0 unless labels are given."""
    columns = {field: [f"{field} {row} of {split}" for row in range(size)] for field in suite.tasks[task].fields}
    columns["label"] = [min(row % 3, 1) for row in range(size)] if labels is None else labels
    columns["idx"] = list(range(size))
    path = root / "glue" / task / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


def load(root, task="sst2", **options):
    return suite.load(task, suite.protocol(task, options), root)


@pytest.fixture
def root(tmp_path):
    write(tmp_path, "sst2", "train", 300)
    write(tmp_path, "sst2", "validation", 30)
    return tmp_path


def test_protocol_names_the_data_revision_and_every_option():
    assert suite.protocol("cola", {}) == {
        "name": "select-on-train-slice",
        "version": 1,
        "suite_version": 1,
        "revision": REVISION,
        "validation_fraction": 0.1,
        "validation_max": 1000,
        "split_seed": 0,
        "max_train": None,
    }


def test_tasks_have_the_official_metrics_and_labels_in_id_order():
    assert {name: (task.primary, task.labels) for name, task in suite.tasks.items()} == {
        "cola": ("matthews", ("unacceptable", "acceptable")),
        "sst2": ("accuracy", ("negative", "positive")),
        "rte": ("accuracy", ("entailment", "not_entailment")),
        "wnli": ("accuracy", ("not_entailment", "entailment")),
    }


def test_test_is_the_development_set(root):
    data = load(root)
    assert data.test.inputs == [(f"sentence {row} of validation",) for row in range(30)]
    assert data.source == str(root)


def test_train_and_validation_share_out_the_training_set(root):
    data = load(root)
    assert sorted([*data.train.ids, *data.validation.ids]) == list(range(300))
    assert all(
        text == f"sentence {row} of train" for (text,), row in zip(data.train.inputs, data.train.ids, strict=True)
    )


def test_validation_keeps_the_shares_of_the_labels(root):
    assert load(root).validation.labels.mean() == pytest.approx(2 / 3, abs=0.02)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        (300, {}, 60),  # a tenth would be 30, which is raised to a fifth of train, below 100
        (700, {}, 100),  # a tenth would be 70, which is raised to 100
        (2000, {}, 200),
        (2000, {"validation_max": 150}, 150),
        (2000, {"validation_fraction": 0.25}, 500),
    ],
)
def test_size_of_validation(tmp_path, size, options, expected):
    write(tmp_path, "sst2", "train", size)
    write(tmp_path, "sst2", "validation", 30)
    assert len(load(tmp_path, **options).validation) == expected


def test_another_split_seed_draws_another_validation(root):
    assert set(load(root).validation.ids) != set(load(root, split_seed=1).validation.ids)


def test_max_train_cuts_train_and_leaves_validation_as_it_is(root):
    whole, cut = load(root), load(root, max_train=50)
    assert len(cut.train) == 50 and set(cut.train.ids) <= set(whole.train.ids)
    assert np.array_equal(cut.validation.ids, whole.validation.ids)
    assert cut.fingerprint != whole.fingerprint


def test_pairs_are_read_in_the_order_of_the_fields(tmp_path):
    write(tmp_path, "rte", "train", 30)
    write(tmp_path, "rte", "validation", 3)
    assert load(tmp_path, "rte").test.inputs[2] == ("sentence1 2 of validation", "sentence2 2 of validation")


def test_hidden_labels_are_refused(root):
    write(root, "sst2", "validation", 2, labels=[-1, -1])
    with pytest.raises(AtlasError) as error:
        load(root)
    assert "unknown labels in column 'label': -1" in str(error.value) and "glue/sst2/validation" in str(error.value)


@pytest.mark.skipif(not (REAL / "glue").is_dir(), reason="no real data beside the repository")
@pytest.mark.parametrize("task", suite.tasks)
def test_real_data_loads_with_labels_of_both_kinds_and_nothing_lost(task):
    data = load(REAL, task)
    rows = pyarrow.parquet.read_metadata(REAL / "glue" / task / "train.parquet").num_rows
    assert len(data.train) + len(data.validation) == rows
    assert 100 <= len(data.validation) <= 1000
    for split in (data.train, data.validation, data.test):
        assert set(split.labels) == {0, 1} and all(text for inputs in split.inputs for text in inputs)
