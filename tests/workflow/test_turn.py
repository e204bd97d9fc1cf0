"""One process at a time works on a cell."""

import multiprocessing
import time
from pathlib import Path

import pytest

from tests.workflow import projects
from workflow import cell as cells
from workflow import results, turn
from workflow.errors import AtlasError


@pytest.fixture
def study(tmp_path, monkeypatch):
    """(grid, cell) in an empty working directory; locks are looked at often."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(turn, "WAIT", 0.05)
    grid = projects.grid(projects.make(tmp_path))
    return grid, grid.cells[0]


def hold(cell, taken, released):
    with turn.turn(cell):
        taken.touch()
        while not released.exists():
            time.sleep(0.02)


@pytest.fixture
def holder(study, tmp_path):
    """Another process that has the cell, and the file that lets it go on."""
    taken, released = tmp_path / "taken", tmp_path / "released"
    process = multiprocessing.get_context("fork").Process(target=hold, args=(study[1], taken, released))
    process.start()
    while not taken.exists():
        assert process.is_alive()
        time.sleep(0.02)
    yield process, released
    released.touch()
    process.join(60)


def test_who_comes_second_waits_and_takes_the_result_of_the_first(study, holder, capsys, monkeypatch):
    grid, cell = study
    _, released = holder
    asked = []

    def release(*_):
        asked.append(cell)
        projects.store(cell, Path())
        released.touch()
        return "process 7 on node1"

    monkeypatch.setattr(turn, "_holder", release)
    monkeypatch.setattr(cells, "main", lambda *_, **__: pytest.fail("it was run twice"))
    assert cells.once(grid, cell) == "ok"
    assert len(asked) == 1
    said = capsys.readouterr().err
    assert "waits for process 7 on node1, which runs it" in said and "has a result: ok" in said
    assert not cell.state_dir.exists()


def test_a_process_that_was_killed_keeps_nobody_waiting(study, holder):
    process, _ = holder
    process.kill()
    process.join(60)
    with turn.turn(study[1]):
        assert turn._holder(study[1].state_dir).startswith("process ")


def test_a_result_that_is_sound_is_not_made_again_and_one_that_is_damaged_is(study, monkeypatch, tmp_path):
    grid, cell = study
    made = []
    monkeypatch.setattr(cells, "main", lambda grid, cell, **_: made.append(cell) or "ok")
    projects.store(cell, tmp_path, "oom")
    assert cells.once(grid, cell) == "oom" and made == []
    cell.path.write_text(cell.path.read_text()[:-20])
    assert cells.once(grid, cell) == "ok" and made == [cell]


def test_without_locks_the_cell_is_run_all_the_same(study, monkeypatch):
    import errno
    import fcntl

    def missing(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    with turn.turn(study[1]):
        pass


def test_a_state_folder_that_cannot_be_made_is_one_clear_error(study, tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(AtlasError, match="the machine failed") as error, turn.turn(study[1]):
        pass
    assert "results" in str(error.value.file)
    assert results.state(study[1]) == "missing"
