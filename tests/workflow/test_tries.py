"""A second try with half the micro-batch, and starts that vanish without a word."""

import json
import os

import pytest

from workflow import tries
from workflow.tries import Tries

RECIPE = {"batch_size": 8, "micro_batch_size": None}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose boot and count of processes killed for memory can be set."""
    monkeypatch.setattr(tries, "BOOT", tmp_path / "boot_id")
    monkeypatch.setattr(tries, "KERNEL", tmp_path / "vmstat")

    def is_at(boot, kills):
        tries.BOOT.write_text(f"{boot}\n")
        tries.KERNEL.write_text("nr_free_pages 12\n" + (f"oom_kill {kills}\n" if kills is not None else ""))

    is_at("first", 5)
    return is_at


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


def vanish(folder):
    """A start that never ends: the process is gone in the middle of it, and only the note is left."""
    begun = Tries.of(folder)
    with begun.start():
        note = begun._path.read_text()
    begun._path.write_text(note)
    return begun


@pytest.mark.parametrize(
    ("recipe", "first", "second"),
    [
        (RECIPE, 8, 4),
        (RECIPE | {"micro_batch_size": 3}, 3, 2),
        (RECIPE | {"micro_batch_size": 20}, 8, 4),
        (RECIPE | {"micro_batch_size": 1}, 1, None),
    ],
)
def test_the_second_try_has_half_the_micro_batch_and_is_the_last(folder, recipe, first, second):
    tried = Tries(folder)
    assert tried.micro_batch(recipe) == first
    tried.out_of_memory("full")
    assert tried.micro_batch(recipe) == second
    tried.out_of_memory("full again")
    assert tried.micro_batch(recipe) is None and tried.number == 3


def test_a_start_that_ended_somehow_changes_nothing(folder, machine):
    with pytest.raises(KeyboardInterrupt), Tries.of(folder).start():
        machine("first", 9)
        raise KeyboardInterrupt
    again = Tries.of(folder)
    assert (again.ends, again.silent, again.running) == ([], 0, None)


def test_a_kill_that_the_kernel_counted_is_want_of_memory(folder, machine):
    vanish(folder)
    machine("first", 6)
    again = Tries.of(folder)
    assert again.number == 2 and "killed" in again.ends[0]
    vanish(folder)
    machine("first", 7)
    assert Tries.of(folder).micro_batch(RECIPE) is None


def test_any_other_kill_on_this_machine_is_not(folder, machine):
    for _ in range(5):
        assert vanish(folder).number == 1


@pytest.mark.parametrize("elsewhere", [("second", 0), ("first", None)])
def test_where_nothing_tells_two_in_a_row_are_want_of_memory(folder, machine, elsewhere):
    """On another node, or after it was started again, or where the kernel does not count."""
    machine(*elsewhere)
    vanish(folder)
    machine("third", elsewhere[1])
    assert vanish(folder).number == 1
    machine("fourth", elsewhere[1])
    again = Tries.of(folder)
    assert again.number == 2 and "2 times in a row" in again.ends[0]


def test_a_newer_checkpoint_says_that_it_got_on(folder, machine):
    for count in range(4):
        begun = vanish(folder)
        assert begun.number == 1
        begun.checkpoint.write_text("")
        os.utime(begun.checkpoint, (count, count))
        machine(f"boot {count}", count)


def test_a_new_try_begins_at_the_beginning(folder, machine):
    begun = vanish(folder)
    begun.checkpoint.write_text("")
    (folder / "trained.pt").write_text("")
    (folder / "holder").write_text("")
    Tries.of(folder).out_of_memory("full")
    assert sorted(path.name for path in folder.iterdir()) == ["holder", "tries.json"]


@pytest.mark.parametrize("note", ["", "{", "[]", json.dumps({"other": 1})])
def test_a_note_that_cannot_be_read_is_none(folder, note):
    folder.mkdir()
    (folder / "tries.json").write_text(note)
    assert Tries.of(folder) == Tries(folder)
