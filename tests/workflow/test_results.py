"""A result is whole or not there, and what is read was checked."""

import json
import math
import os

import numpy as np
import pytest

from tests.workflow import projects
from workflow import results
from workflow.errors import AtlasError

ESTIMATE = {"accuracy": {"value": 0.9, "stderr": 0.01, "n": 872}}
METRICS = {"primary": "accuracy", "rule": "selected", "selected": ESTIMATE, "last": ESTIMATE, "selected_step": 30}


@pytest.fixture
def root(tmp_path):
    return projects.make(tmp_path)


@pytest.fixture
def cell(root):
    return projects.grid(root).cells[0]


@pytest.fixture
def path(root, cell):
    return root / cell.path


def test_what_is_written_is_read(cell, path):
    result = projects.result(cell, metrics=METRICS, curves={"train_loss": [[1, 0.5], [2, 0.25]]})
    results.write(path, result)
    assert results.read(path) == result
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_numpy_scalars_and_tuples_are_written_as_json(cell, path):
    parameters = {"backbone": np.int64(7), "expected": {"trained": (1, 2)}}
    results.write(path, projects.result(cell, parameters=parameters, time={"total": np.float32(0.5)}))
    read = results.read(path)
    assert (read["parameters"]["backbone"], read["parameters"]["expected"]["trained"]) == (7, [1, 2])
    assert read["time"]["total"] == 0.5


def test_figures_that_are_not_finite_are_absent_and_null_in_curves(cell, path):
    metrics = METRICS | {"last": ESTIMATE | {"pearson": {"value": math.nan, "n": 3}}}
    curves = {"train_loss": [[1, 0.5], [2, math.inf]]}
    results.write(path, projects.result(cell, metrics=metrics, curves=curves, time={"train": 1.0, "test": math.nan}))
    read = results.read(path)
    assert read["metrics"]["last"] == ESTIMATE
    assert read["curves"]["train_loss"] == [[1, 0.5], [2, None]]
    assert read["time"] == {"train": 1.0}


@pytest.mark.parametrize(
    ("change", "key", "mend"),
    [
        ({"tiem": {}}, "tiem", "did you mean 'time'?"),
        ({"time": {"trian": 1}}, "time.trian", "did you mean 'train'?"),
        ({"status": "okay"}, "status", "did you mean 'ok'?"),
        ({"schema": 2}, "schema", None),
        ({"memory": {"device": "cpu", "train_peak": 1.5}}, "memory.train_peak", "give a whole number"),
        ({"curves": {"lr": [[1, 2, 3]]}}, "curves.lr[0]", "give [step, value]"),
        ({"curves": {"lr": [["one", 2]]}}, "curves.lr[0]", "give [step, value]"),
        ({"status": "oom", "reason": None}, "reason", "give a text"),
    ],
)
def test_a_result_that_does_not_fit_the_schema_is_not_written(cell, path, change, key, mend):
    with pytest.raises(AtlasError) as error:
        results.write(path, projects.result(cell) | change)
    assert (error.value.file, error.value.key) == (path, key)
    assert mend is None or mend in error.value.mend
    assert not path.exists()


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_is_one_clear_error_and_leaves_no_file(cell, path, monkeypatch, where):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, where, full)
    with pytest.raises(AtlasError, match="No space left on device") as error:
        results.write(path, projects.result(cell))
    assert "free some space" in error.value.mend
    assert list(path.parent.iterdir()) == []


def test_an_old_result_survives_a_write_that_fails(cell, path, monkeypatch):
    results.write(path, projects.result(cell))
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(AtlasError):
        results.write(path, projects.result(cell, "oom"))
    assert results.read(path)["status"] == "ok"


def cut(text):
    return text[: len(text) // 2]


def unknown_key(text):
    return json.dumps(json.loads(text) | {"extra": 1})


@pytest.mark.parametrize("damage", [cut, unknown_key, lambda _: "", lambda _: "[]", lambda _: "\x00\x00"])
def test_a_corrupt_file_names_itself_and_the_mend(cell, path, damage):
    results.write(path, projects.result(cell))
    path.write_text(damage(path.read_text()))
    with pytest.raises(AtlasError, match="corrupt") as error:
        results.read(path)
    assert error.value.file == path
    assert error.value.mend == "delete it and run the same command again"


@pytest.mark.parametrize("status", results.STATUSES)
def test_the_state_of_a_cell_is_its_status(root, cell, status):
    projects.store(cell, root, status)
    assert results.state(cell, root) == status


def test_a_cell_may_be_missing_corrupt_or_another_ones(root, cell, path):
    assert results.state(cell, root) == "missing"
    projects.store(cell, root)
    path.write_text(cut(path.read_text()))
    assert results.state(cell, root) == "corrupt"
    other = projects.result(cell.with_seed(9))
    results.write(path, other)
    assert results.outcome(cell, root)[0] == "corrupt"
    assert "another cell" in results.outcome(cell, root)[1]


def test_a_file_that_is_cut_short_is_known_by_its_end(cell, path):
    assert not results.is_cut_short(path), "a missing file is not cut short"
    results.write(path, projects.result(cell, curves={"train_loss": [[20, 0.5]]}))
    whole = path.read_bytes()
    assert not results.is_cut_short(path)
    for end in range(len(whole) - 1):
        path.write_bytes(whole[:end])
        assert results.is_cut_short(path), whole[:end][-20:]
    path.write_bytes(whole.replace(b"\n", b" "))
    assert not results.is_cut_short(path), "another editor's line ends"
