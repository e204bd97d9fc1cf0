"""The command line: what it prints, and one clear error with status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow import projects
from workflow import registry
from workflow.__main__ import main
from workflow.cells import Cell
from workflow.grid import load

GRID = """
tasks: {glue: [sst2]}
models: [tiny-bert]
methods: [head, lora, new]
plugins: [mine]
"""


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """A grid of the real registry with a broken plugin, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    projects.write(tmp_path, "mine/new.py", 'class New(:\n    name = "new"\n')
    return load(projects.write(tmp_path, "grid.yaml", GRID))


def run(capsys, *arguments):
    status = main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_methods_are_an_aligned_table(capsys):
    status, out, _ = run(capsys, "list", "methods")
    lines = out.splitlines()
    assert status == 0
    assert lines[0].split() == ["name", "family", "kinds", "mergeable", "title", "status"]
    lora = next(line for line in lines if line.startswith("lora "))
    assert lora.split()[-1] == "ok"
    assert lora[: lora.index("lowrank")] == "lora".ljust(lines[0].index("family"))


def test_a_method_that_needs_a_missing_package_is_broken(capsys, monkeypatch, tmp_path):
    root = projects.make(tmp_path)
    projects.write(root, "methods/control/head.py", "import not_anywhere\n" + projects.HEAD)
    found = registry.methods(root=root)
    monkeypatch.setattr(registry, "methods", lambda: found)
    _, out, _ = run(capsys, "list", "methods", "--json")
    status = {row["name"]: row["status"] for row in json.loads(out)}
    assert status == {"head": "broken: 'not_anywhere' is not installed", "lora": "ok", "lora_plus": "ok"}


def test_tasks_models_and_cells_are_listed(capsys, grid):
    assert "glue/sst2" in run(capsys, "list", "tasks")[1]
    assert "tiny-bert" in run(capsys, "list", "models")[1]
    cell = grid.cells[0]
    assert f"{cell.config_key}/0  glue/{cell.name}" in run(capsys, "list", "cells", "--grid", "grid.yaml")[1]


def test_a_method_is_described_with_its_defaults(capsys):
    out = run(capsys, "describe", "lora")[1]
    assert "arXiv:2106.09685" in out
    assert "rank     8  (int)" in out


def test_status_counts_cells_and_gives_every_reason(capsys, grid, tmp_path):
    assert run(capsys, "status", "--grid", "grid.yaml")[1].startswith("grid: 2 cells: 2 missing, 1 broken")
    projects.store(grid.cells[0], tmp_path)
    projects.store(grid.cells[1], tmp_path, "oom").write_text("{")
    status, out, _ = run(capsys, "status", "--grid", "grid.yaml", "--json")
    found = json.loads(out)
    assert (status, found["counts"]) == (0, {"ok": 1, "corrupt": 1, "broken": 1})
    corrupt, broken = found["not_ok"]
    assert "delete it and run the same command again" in corrupt["reason"]
    assert "SyntaxError" in broken["reason"]


@pytest.mark.parametrize("chance", [False, True], ids=["", "both with one key"])
def test_retry_deletes_only_results_of_the_status_asked_for(capsys, grid, tmp_path, monkeypatch, chance):
    if chance:
        monkeypatch.setattr(Cell, "config_key", "0a1b2c3d")
    kept, dropped = projects.store(grid.cells[0], tmp_path), projects.store(grid.cells[1], tmp_path, "oom")
    assert "deleted 0 results" in run(capsys, "retry", "--grid", "grid.yaml", "--status", "error,timeout")[1]
    out = run(capsys, "retry", "--grid", "grid.yaml")[1]
    assert str(grid.cells[1].path) in out
    assert (kept.exists(), dropped.exists()) == (True, False)
    status, _, err = run(capsys, "retry", "--grid", "grid.yaml", "--status", "omm")
    assert (status, "did you mean 'oom'?" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["describe", "lroa"], "error: unknown method 'lroa'\n  mend: did you mean 'lora'?\n"),
        (["count", "--method", "lora", "--model", "tiny-brt"], "mend: did you mean 'tiny-bert'?"),
        (["count", "--method", "lora", "--model", "tiny-bert", "--set", "rnak=2"], "mend: did you mean 'rank'?"),
        (["count", "--method", "lora", "--model", "tiny-bert", "--set", "rank"], "mend: write --set name=value"),
        (
            ["status", "--grid", "gone.yaml"],
            "error: cannot read the file: No such file or directory\n  file: gone.yaml",
        ),
        (["cell", "--grid", "grid.yaml", "--key", "0/0"], "error: the grid has no cell '0/0'"),
        (["check", "gone.py"], "error: no such file\n  file: gone.py"),
        (["check", str(registry.ROOT / "methods/lowrank/lora.py"), "gone.py"], "error: no such file\n  file: gone.py"),
    ],
)
def test_errors_go_to_stderr_with_status_2(capsys, grid, arguments, text):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert text in err


def test_a_reader_that_stops_early_is_no_error():
    command = f"{sys.executable} -m workflow list methods --json | head -n 1"
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, shell=True, cwd=registry.ROOT, env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[\n", "")


def test_a_report_reads_its_samples_where_the_cells_read_their_data(capsys, grid, monkeypatch):
    seen = []
    monkeypatch.setattr("workflow.report.build", lambda grid: seen.append(grid.data_root))
    run(capsys, "report", "--grid", "grid.yaml", "--data-root", "elsewhere")
    run(capsys, "report", "--grid", "grid.yaml")
    assert seen == [Path("elsewhere"), None]
