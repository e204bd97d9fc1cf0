"""The index says what the result files say, and is believed only where they have not changed."""

import json
import multiprocessing
import os
import signal

import pyarrow.parquet as pq
import pytest

from tests.workflow import synthetic
from tests.workflow.studies import cell, failed, result, store
from workflow import index, results

CELLS = tuple(cell(seed=seed) for seed in range(4))
SCORE = "metrics.selected.accuracy.value"
processes = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files of a moment ago count as settled."""
    monkeypatch.setattr(index, "SETTLED_NS", -(10**9))


@pytest.fixture
def root(tmp_path):
    store(tmp_path, *(result(one, 0.5 + one.seed / 10) for one in CELLS))
    return tmp_path


@pytest.fixture
def opened(monkeypatch):
    """The result files that are read, in order."""
    paths, read = [], results.read
    monkeypatch.setattr(results, "read", lambda path: paths.append(path) or read(path))
    return paths


def scores(root, cells=CELLS):
    readings = index.read(cells, root)
    return [readings.value(SCORE, position) for position in range(len(cells))]


def file(root, task="sst2", suite="glue"):
    return root / "results" / ".index" / suite / f"{task}.parquet"


def rows(root):
    return pq.read_table(file(root))["path"].to_pylist()


def leaves(part, prefix=""):
    for name, value in part.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield f"{prefix}{name}", value


def test_every_figure_of_a_real_result_is_in_it_with_its_type(tmp_path):
    of = cell()
    real = synthetic.real() | {"key": of.key, "cell": of.to_json()}
    store(tmp_path, real)
    for _ in range(2):  # from the file, then from the index
        readings = index.read((of,), tmp_path)
        expected = dict(leaves({name: part for name, part in real.items() if name not in index.NOT_FIGURES}))
        expected |= {f"parameters.expected.{name}.{end}": n for name, n in real["parameters"]["expected"].items()
                     for end in ("low", "high")}  # fmt: skip
        for name in real["parameters"]["expected"]:
            del expected[f"parameters.expected.{name}"]
        found = {name: readings.value(name, 0) for name in expected}
        assert found == expected and len(expected) > 60
        assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in expected.items()}
        assert readings.value("metrics.selected.gone.value", 0) is None


def test_a_second_reading_opens_no_result_file(root, opened):
    first = scores(root)
    assert len(opened) == 4 and first == [0.5, 0.6, 0.7, 0.8]
    assert scores(root) == first
    assert len(opened) == 4


def test_cells_keep_their_order_whatever_their_tasks(root):
    mixed = (cell(task="rte"), CELLS[2], cell(task="rte", seed=1), CELLS[0])
    store(root, result(mixed[0], 0.1), result(mixed[2], 0.2))
    for _ in range(2):
        assert scores(root, mixed) == [0.1, 0.7, 0.2, 0.5]


def test_only_files_that_are_new_are_read(root, opened):
    scores(root)
    more = (*CELLS, cell("vera"))
    store(root, result(more[-1], 0.95))
    assert scores(root, more)[-1] == 0.95
    assert opened[4:] == [root / more[-1].path]


@pytest.mark.parametrize("in_place", [True, False])
def test_a_changed_file_is_read_again_although_size_and_mtime_are_the_same(root, in_place):
    scores(root)
    path = root / CELLS[0].path
    before = path.stat()
    changed = json.dumps(result(CELLS[0], 0.4))
    assert len(changed) == before.st_size
    if in_place:
        path.write_text(changed)
    else:
        path.with_name("other").write_text(changed)
        os.replace(path.with_name("other"), path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert scores(root)[0] == 0.4


def test_a_file_of_this_very_moment_is_not_yet_believed(root, opened, monkeypatch):
    monkeypatch.setattr(index, "SETTLED_NS", 10**12)
    scores(root), scores(root)
    assert len(opened) == 8 and not file(root).exists()


def test_a_file_that_changes_under_the_reader_is_not_believed(root, monkeypatch):
    read, path = results.read, root / CELLS[0].path

    def meddled(of):
        found = read(of)
        if of == path:
            path.write_text(json.dumps(result(CELLS[0], 0.41)))
        return found

    monkeypatch.setattr(results, "read", meddled)
    scores(root)
    monkeypatch.setattr(results, "read", read)
    assert scores(root)[0] == 0.41


def test_states_are_those_of_the_files(root):
    cells = (*CELLS, cell("oft"), cell("gone"), cell("cut"), cell("moved"))
    store(root, failed(cells[4], "oom", "too large"), result(cells[6]), result(cells[7]))
    (root / cells[6].path).write_text("{")
    os.replace(root / CELLS[1].path, root / cells[7].path)
    for _ in range(2):
        readings = index.read(cells, root)
        expected = [results.outcome(one, root) for one in cells]
        assert list(zip(readings.statuses, readings.reasons, strict=True)) == expected
        assert [state for state, _ in expected] == ["ok", "missing", "ok", "ok", "oom", "missing", "corrupt", "corrupt"]


def test_a_result_that_is_gone_is_missing_and_forgotten(root):
    scores(root)
    (root / CELLS[0].path).unlink()
    assert index.read(CELLS, root).statuses[0] == "missing"
    assert len(rows(root)) == 3


def test_other_grids_rows_stay(root):
    scores(root, CELLS[:2])
    scores(root, CELLS[2:])
    assert sorted(rows(root)) == sorted(one.name for one in CELLS)


@pytest.mark.parametrize("damage", [b"", b"PAR1 and no more", None])
def test_an_index_that_cannot_be_read_is_made_again(root, opened, damage):
    scores(root)
    whole = file(root).read_bytes()
    file(root).write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert scores(root) == [0.5, 0.6, 0.7, 0.8]
    assert len(opened) == 8
    scores(root)
    assert len(opened) == 8


def test_an_index_of_another_version_is_made_again(root, opened, monkeypatch):
    scores(root)
    monkeypatch.setattr(index, "_version", lambda: b"2 x")
    scores(root), scores(root)
    assert len(opened) == 8


def test_without_a_place_for_the_index_everything_is_read(root, opened):
    (root / "results" / ".index").write_text("in the way")
    assert scores(root) == scores(root) == [0.5, 0.6, 0.7, 0.8]
    assert len(opened) == 8


def test_figures_may_be_numbers_in_one_result_and_words_in_another(root):
    other = result(cell("vera"))
    other["provenance"] = other["provenance"] | {"scheduler": {"job": "a-1", "tasks": [1, 2]}}
    numbered = result(cell("oft"))
    numbered["provenance"] = numbered["provenance"] | {"scheduler": {"job": 17}}
    store(root, numbered)
    index.read((cell("oft"),), root)
    store(root, other)
    both = (cell("oft"), cell("vera"))
    for _ in range(2):
        readings = index.read(both, root)
        assert [readings.value("provenance.scheduler.job", at) for at in (0, 1)] == ["17", "a-1"]
        assert readings.value("provenance.scheduler.tasks", 1) == "[1, 2]"


def test_numbers_that_are_not_finite_are_absent(root):
    path = root / CELLS[0].path
    path.write_text(path.read_text().replace('"train": 12.5', '"train": NaN'))
    readings = index.read(CELLS, root)
    assert (readings.value("time.train", 0), readings.value("time.train", 1)) == (None, 12.5)


def alive(function, *arguments):
    """A process of its own that runs the function."""
    process = processes.Process(target=function, args=arguments)
    process.start()
    return process


def test_two_processes_at_once_spoil_nothing(root):
    def work(cells):
        for _ in range(20):
            file(root).unlink(missing_ok=True)
            assert scores(root, cells) == [0.5 + one.seed / 10 for one in cells]

    working = [alive(work, CELLS[:3]), alive(work, CELLS[1:])]
    for process in working:
        process.join(60)
    assert [process.exitcode for process in working] == [0, 0]
    assert scores(root) == [0.5, 0.6, 0.7, 0.8]
    assert [path.name for path in file(root).parent.iterdir()] == [file(root).name]


@pytest.mark.parametrize("moment", ["write_table", "replace"])
def test_a_kill_in_the_middle_of_writing_costs_nothing_but_time(root, opened, moment, monkeypatch):
    scores(root, CELLS[:2])

    def killed():
        module = index.pq if moment == "write_table" else index.os
        setattr(module, moment, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        scores(root)

    process = alive(killed)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert len(rows(root)) == 2
    opened.clear()
    assert scores(root) == [0.5, 0.6, 0.7, 0.8]
    assert len(opened) == 2


def test_files_that_were_never_read_or_have_changed_are_told_apart_unopened(root, opened):
    more = (*CELLS, cell("vera"), cell("gone"), cell(task="rte"))
    store(root, result(more[4]))
    assert index.unknown(more, root) == list(more[:5]), "without an index all that are there are unknown"
    scores(root)
    (root / CELLS[2].path).write_text("{")
    read = len(opened)
    assert index.unknown(more, root) == [CELLS[2], more[4]]
    assert len(opened) == read
