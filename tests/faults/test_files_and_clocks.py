"""Result files that are cut short, and clocks that jump."""

import base64
import itertools
import os
import re
import time

import pytest

from tests.faults.runs import snakemake, study, verb
from tests.workflow import projects
from workflow import cell as cells
from workflow import entry, index, results


def planned(output):
    return set(re.findall(r"output: (results/cells/\S+)", output))


def test_what_is_finished_stays_and_what_is_cut_short_is_made_again(tmp_path, monkeypatch):
    """One result is cut short; one was finished after Snakemake had been killed, which thinks it incomplete; one is
    from the future, for a clock was set back."""
    monkeypatch.chdir(tmp_path)
    grid = study(tmp_path, ["head", "lora", "ia3"])
    cut, orphan, later = (projects.store(cell, tmp_path) for cell in grid.cells)
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-30])
    tomorrow = time.time() + 86400
    os.utime(later, (tomorrow, tomorrow))
    incomplete = tmp_path / ".snakemake/incomplete" / base64.b64encode(str(grid.cells[1].path).encode()).decode()
    projects.write(tmp_path, incomplete.relative_to(tmp_path), "")

    first = snakemake(tmp_path, "tables", "--dry-run")
    assert first.ended() == 0, first.output
    assert planned(first.output) == {str(grid.cells[0].path), str(grid.cells[1].path)}
    assert f"damaged result, the cell runs again: {grid.cells[0].path}" in first.output
    assert cut.with_name("seed0.json.damaged").read_bytes() == whole[:-30] and not cut.exists()

    cut.write_bytes(whole)
    kept = orphan.read_bytes()
    second = snakemake(tmp_path, "tables")
    assert second.ended() == 0, second.output
    assert planned(second.output) == {str(grid.cells[1].path)} and "has a result: ok" in second.output
    assert orphan.read_bytes() == kept and later.stat().st_mtime < tomorrow
    assert (tmp_path / "results/grid/tables/cells.csv").read_text().count(",ok,") == 3

    third = snakemake(tmp_path, "tables", "--dry-run")
    assert third.ended() == 0 and "Nothing to be done" in third.output, third.output


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_times_in_a_result_are_not_by_the_clock_of_the_day(tmp_path, monkeypatch, capsys, jump):
    """It is set back or ahead by an hour whenever somebody looks at it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ATLAS_RUN", "2000000000 0")
    grid = study(tmp_path, ["lora", "head"])
    clock = itertools.count(2_000_000_000 + jump, jump)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    began = time.perf_counter()
    assert cells.main(grid, grid.cells[0]) == "ok"
    took = time.perf_counter() - began
    found = results.read(grid.cells[0].path)["time"]
    assert all(0 <= found[name] <= took for name in ("load", "data", "train", "test", "total"))
    assert found["total"] == pytest.approx(took, rel=0.2)
    assert "1 of 2 cells done" in (said := capsys.readouterr().err) and ("left" in said) == (jump > 0)


def test_files_from_the_future_get_the_time_of_now(tmp_path):
    past, future = tmp_path / "past", tmp_path / "future"
    for path, when in ((past, 1e9), (future, time.time() + 1000)):
        path.write_text("")
        os.utime(path, (when, when))
    entry.settle([past, future, tmp_path / "missing"])
    assert past.stat().st_mtime == 1e9
    assert time.time() - 60 < future.stat().st_mtime <= time.time()


def test_tables_from_the_future_follow_results_that_have_changed_since(tmp_path, monkeypatch):
    """They were made when the clock was ahead: a result that comes when it is right again looks older."""
    monkeypatch.chdir(tmp_path)
    grid = study(tmp_path, ["head"])
    projects.store(grid.cells[0], tmp_path)
    status, said = verb("tables", "--grid", "grid.yaml")
    assert status == 0, said
    tomorrow = time.time() + 86400
    for path in (tmp_path / "results/grid/tables").iterdir():
        os.utime(path, (tomorrow, tomorrow))
    projects.store(grid.cells[0], tmp_path, "oom")
    run = snakemake(tmp_path, "tables", "--dry-run")
    assert run.ended() == 0 and "results/grid/logs/tables.log" in run.output, run.output


def test_results_that_were_read_are_not_opened_again_to_look_for_damage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(index, "SETTLED_NS", -(10**9))
    grid = study(tmp_path, ["head", "lora", "ia3"])
    read, cut, new = (projects.store(cell, tmp_path) for cell in grid.cells)
    new.unlink()
    index.read(grid.cells)
    projects.store(grid.cells[2], tmp_path)
    cut.write_bytes(cut.read_bytes()[:-30])
    looked_at, is_cut_short = [], results.is_cut_short
    monkeypatch.setattr(results, "is_cut_short", lambda path: looked_at.append(path) or is_cut_short(path))
    entry.set_aside_damaged(grid)
    assert looked_at == [grid.cells[1].path, grid.cells[2].path]
    assert read.exists() and new.exists() and not cut.exists()
