"""A disk that is full, wherever a file is written: one message, status 2, and nothing that was finished is lost."""

from tests.faults.runs import numbers, study, verb
from tests.workflow import projects

TIGHT = """
import os
import resource

from methods.lowrank.lora import LoRA


class Tight(LoRA):
    name = "tight"

    def on_step(self, step, ctx):
        with open("steps", "a") as file:
            file.write("x")

    def prepare_inference(self):
        super().prepare_inference()
        if os.path.exists("room"):
            room = int(open("room").read())
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
"""


def beside(cell):
    """The names of all files next to a cell's result."""
    return sorted(path.name for path in cell.path.parent.glob("*")) if cell.path.parent.exists() else []


def test_a_trained_cell_that_finds_no_room_for_what_it_writes_is_not_trained_again(tmp_path, monkeypatch):
    """The disk is full when training is over: first for the predictions, then for the result."""
    monkeypatch.chdir(tmp_path)
    (cell,) = study(tmp_path, ["tight"], {"tight": TIGHT}).cells
    command = ("cell", "--grid", "grid.yaml", "--key", cell.grid_key)
    status, said = verb(*command)
    assert status == 0, said
    undisturbed, steps = numbers(cell), (tmp_path / "steps").read_text()
    predictions = cell.path.with_name("seed0.predictions.parquet")
    rooms = [path.stat().st_size * 9 // 10 for path in (predictions, cell.path)]
    assert predictions.stat().st_size < rooms[1]
    cell.path.unlink(), predictions.unlink(), (tmp_path / "steps").unlink()

    for room, file, left in zip(rooms, (predictions, cell.path), ([], [predictions.name]), strict=True):
        (tmp_path / "room").write_text(str(room))
        status, said = verb(*command, ATLAS_CHECKPOINT_SECONDS=0)
        assert status == 2 and "File too large" in said and "mend: free some space" in said, said
        assert file.name in said, said
        assert beside(cell) == left, "nothing that is half written"
    (tmp_path / "room").unlink()
    status, said = verb(*command)
    assert status == 0, said
    assert numbers(cell) == undisturbed
    assert (tmp_path / "steps").read_text() == steps, "it was trained once"


def test_tables_and_their_index_on_a_full_disk(tmp_path, monkeypatch):
    """The old tables stay whole, and without an index the states of cells are told all the same."""
    monkeypatch.chdir(tmp_path)
    grid = study(tmp_path, ["lora", "head"])
    projects.store(grid.cells[0], tmp_path)
    status, said = verb("tables", "--grid", "grid.yaml")
    assert status == 0, said
    folder = tmp_path / "results/grid/tables"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "cells.csv" in before

    projects.store(grid.cells[1], tmp_path, "oom")
    status, said = verb("tables", "--grid", "grid.yaml", room=100)
    assert status == 2 and "the machine failed: [Errno 27] File too large" in said, said
    assert "mend: free some space" in said and "Traceback" not in said, said
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    status, said = verb("status", "--grid", "grid.yaml", room=100)
    assert status == 0 and "2 cells: 1 ok, 1 oom" in said, said
    assert not [path for path in (tmp_path / "results/.index").rglob(".*") if path.is_file()]
