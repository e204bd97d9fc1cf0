"""GLUE: which rows become train, validation and test; from small files made here, and real ones where there are any."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tasks.glue import REVISION, suite
from workflow.errors import AtlasError
from workflow.registry import ROOT

REAL = Path(__file__).parents[2].parent / "shared" / "data"
REFERENCES = sorted((ROOT / "results/reference/glue_small/cells/glue").glob("*/*/*/seed0.json"))


PROTOCOLS = [protocol.name for protocol in suite.protocols]


def write(root, task, split, size, labels=None):
    """A split of numbered texts; every third label is 0 unless labels are given."""
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
    binary = ("entailment", "not_entailment")
    assert {name: (task.metrics, task.labels) for name, task in suite.tasks.items()} == {
        "cola": (("matthews", "accuracy"), ("unacceptable", "acceptable")),
        "sst2": (("accuracy",), ("negative", "positive")),
        "mrpc": (("accuracy", "f1"), ("not_equivalent", "equivalent")),
        "stsb": (("pearson", "spearman"), ()),
        "qqp": (("accuracy", "f1"), ("not_duplicate", "duplicate")),
        "mnli": (("accuracy",), ("entailment", "neutral", "contradiction")),
        "qnli": (("accuracy",), binary),
        "rte": (("accuracy",), binary),
        "wnli": (("accuracy",), binary[::-1]),
    }


def test_tasks_have_the_columns_of_the_hub():
    assert {name: task.fields for name, task in suite.tasks.items() if task.fields != ("sentence1", "sentence2")} == {
        "cola": ("sentence",),
        "sst2": ("sentence",),
        "qqp": ("question1", "question2"),
        "mnli": ("premise", "hypothesis"),
        "qnli": ("question", "sentence"),
    }


def test_facts_of_every_task_fit_together():
    for task in suite.tasks.values():
        assert task.primary == task.metrics[0] and (task.modality, task.max_length) == ("text", 128)
        assert task.kind == ("classification" if task.labels else "regression")
        assert task.chance == (1 / len(task.labels) if task.primary == "accuracy" else 0.0)


def test_averages_leave_out_wnli_and_only_wnli():
    assert [name for name, task in suite.tasks.items() if not task.ranked] == ["wnli"]


@pytest.mark.parametrize("task", suite.tasks)
def test_what_is_fetched_is_what_is_read(task):
    (source,) = suite.sources(task, suite.protocol(task, {}))
    development = ("validation_matched", "validation_mismatched") if task == "mnli" else ("validation",)
    assert source[:4] == ("nyu-mll/glue", task, REVISION, ("train", *development))


def test_only_the_tasks_of_the_paper_start_from_mnli_and_only_where_it_is_asked_for():
    starts = {
        name: [task for task in suite.tasks if suite.start(task, suite.protocol(task, {"name": name})) == "mnli"]
        for name in PROTOCOLS
    }
    assert starts == {"select-on-train-slice": [], "mnli-start": ["mrpc", "stsb", "rte"]}


def test_both_protocols_read_and_split_the_data_alike(root):
    assert len({load(root, name=name).fingerprint for name in PROTOCOLS}) == 1


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


@pytest.fixture
def mnli(tmp_path):
    write(tmp_path, "mnli", "train", 60, labels=[row % 3 for row in range(60)])
    write(tmp_path, "mnli", "validation_matched", 4, labels=[0, 1, 2, 0])
    write(tmp_path, "mnli", "validation_mismatched", 3, labels=[2, 1, 0])
    return load(tmp_path, "mnli")


def test_both_development_sets_of_mnli_are_parts_of_test(mnli):
    assert mnli.test.parts.tolist() == ["matched"] * 4 + ["mismatched"] * 3
    assert mnli.test.labels.tolist() == [0, 1, 2, 0, 2, 1, 0]
    assert mnli.test.inputs[4] == ("premise 0 of validation_mismatched", "hypothesis 0 of validation_mismatched")
    assert suite.tasks["mnli"].headline in suite.tasks["mnli"].parts


def test_ids_of_both_development_sets_stay_apart(mnli):
    assert mnli.test.ids.tolist() == [0, 1, 2, 3, 1_000_000, 1_000_001, 1_000_002]


def test_only_the_test_split_has_parts(mnli):
    assert mnli.train.parts is None and mnli.validation.parts is None
    assert set(mnli.validation.labels) == {0, 1, 2}


def write_scores(root, split, scores):
    write(root, "stsb", split, len(scores), labels=pyarrow.array(scores, pyarrow.float32()))


def test_stsb_has_scores_and_a_validation_slice_with_the_share_of_each(tmp_path):
    scores = [row % 26 / 5 for row in range(520)]
    write_scores(tmp_path, "train", scores)
    write_scores(tmp_path, "validation", [0.0, 2.4, 5.0])
    data = load(tmp_path, "stsb", max_train=100)
    assert data.test.labels.dtype == np.float32 and data.test.labels.tolist() == [0.0, np.float32(2.4), 5.0]
    assert (len(data.validation), len(data.train)) == (100, 100)
    for split in (data.train, data.validation):
        drawn = np.bincount(np.round(split.labels).astype(int), minlength=6) / len(split)
        assert drawn == pytest.approx(np.bincount(np.round(scores).astype(int)) / len(scores), abs=0.011)


@pytest.mark.parametrize("score", [-1.0, 5.2, None])
def test_scores_that_are_hidden_or_impossible_are_refused(tmp_path, score):
    write_scores(tmp_path, "train", [1.0] * 30)
    write_scores(tmp_path, "validation", [1.0, score])
    with pytest.raises(AtlasError, match="from 0 to 5") as error:
        load(tmp_path, "stsb")
    assert "glue/stsb/validation" in str(error.value)


def real(task):
    """The folder of a task's real data; skips where there is none."""
    folder = REAL / "glue" / task
    if not folder.is_dir():
        pytest.skip("no real data beside the repository")
    return folder


@pytest.mark.parametrize("task", suite.tasks)
def test_real_data_loads_with_every_label_and_nothing_lost(task):
    rows = pyarrow.parquet.read_metadata(real(task) / "train.parquet").num_rows
    data = load(REAL, task)
    assert len(data.train) + len(data.validation) == rows
    assert 100 <= len(data.validation) <= 1000
    for split in (data.train, data.validation, data.test):
        assert all(text for inputs in split.inputs for text in inputs)
        if suite.tasks[task].labels:
            assert set(split.labels) == set(range(len(suite.tasks[task].labels)))


@pytest.mark.parametrize("path", REFERENCES, ids=lambda path: "/".join(path.parts[-4:]))
def test_the_committed_study_was_made_from_what_is_loaded_today(path):
    result = json.loads(path.read_text())
    cell = result["cell"]
    real(cell["task"])
    assert cell["protocol"] == suite.protocol(cell["task"], {})
    assert fingerprint(cell["task"]) == result["provenance"]["data"]["fingerprint"]


@cache
def fingerprint(task):
    return load(REAL, task).fingerprint
