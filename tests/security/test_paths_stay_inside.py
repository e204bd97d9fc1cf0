"""No name leaves the results folder, whoever chose it: methods, models, tasks and grids are named by strangers."""

import os

import pytest

from tests.workflow import projects
from workflow import names, registry, results
from workflow.errors import AtlasError

BAD = ("../../evil", "..", ".", ".hidden", "/etc/evil", "a/b", "a\\b", "a\0b", "a b", "a\n", "", "é", "x" * 65, "{key}")


@pytest.fixture
def root(tmp_path):
    return projects.make(tmp_path)


def method(name):
    return projects.HEAD.replace('"head"', repr(name))


@pytest.mark.parametrize("name", BAD)
def test_a_method_with_such_a_name_is_broken_and_has_no_cells(root, name):
    projects.write(root, "methods/control/new.py", method(name))
    grid = projects.grid(root, projects.GRID.replace("[head, lora]", "all"))
    assert [info.path.name for info in grid.broken] == ["new.py"]
    assert "cannot be part of a path" in grid.broken[0].error or not name
    assert {cell.method for cell in grid.cells} == {"head", "lora", "lora_plus"}


def test_a_method_whose_name_differs_only_in_case_is_broken(root):
    projects.write(root, "methods/control/new.py", method("LoRA"))
    broken = [info for info in registry.methods(root=root).values() if info.error]
    assert len(broken) == 1 and "is taken by" in broken[0].error


@pytest.mark.parametrize("name", [*BAD, "cells", "Cells", "state", "reference"])
def test_a_grid_cannot_have_such_a_name(root, name):
    with pytest.raises(AtlasError) as error:
        projects.grid(root, projects.GRID, name=name)
    assert error.value.key == "name"


def test_the_name_of_a_grids_file_is_checked_like_a_name(root):
    path = projects.write(root, "config/a {b} $(c).yaml", projects.GRID)
    from workflow.grid import load

    with pytest.raises(AtlasError, match="cannot be the name of a folder"):
        load(path, root=root)
    assert load(path, {"name": "fine"}, root).name == "fine"


@pytest.mark.parametrize("name", BAD)
def test_a_model_cannot_have_such_a_name(root, name):
    projects.write(root, "models/tiny.yaml", projects.MODELS.replace("tiny-bert:", f"{_yaml(name)}:"))
    with pytest.raises(AtlasError):
        projects.grid(root)


@pytest.mark.parametrize("name", BAD)
def test_a_task_cannot_have_such_a_name(root, name):
    projects.write(root, "tasks/small.py", projects.SUITE.replace('"one"', repr(name)))
    with pytest.raises(AtlasError):
        projects.grid(root, projects.GRID.replace("[one]", f"[{_yaml(name)}]"))


def _yaml(name):
    return '"' + name.encode("unicode_escape").decode().replace("\\", "\\\\" if "\\" in name else "\\") + '"'


def test_every_path_of_a_cell_is_below_the_results(root):
    grid = projects.grid(root, projects.GRID.replace("[head, lora]", "all"))
    for cell in grid.cells:
        assert (root / cell.path).resolve().is_relative_to((root / "results/cells").resolve())
        assert (root / cell.state_dir).resolve().is_relative_to((root / "results/state").resolve())
        assert len(cell.path.name) < 256 and all(names.is_part(part.replace(".json", "")) for part in cell.path.parts)


def test_labels_are_no_part_of_a_path(root):
    text = projects.GRID.replace("lora]", '{method: lora, label: "../../<b>"}]')
    cell = projects.grid(root, text).cells[-1]
    assert cell.label == "../../<b>" and ".." not in str(cell.path)


@pytest.mark.parametrize("label", ["a\nb", "\x1b[2Jgone", "\u202eabc", "x" * 301])
def test_a_label_or_title_is_one_visible_line(root, label):
    with pytest.raises(AtlasError, match="cannot be shown"):
        projects.grid(root, projects.GRID, methods=[{"method": "lora", "label": label}])
    with pytest.raises(AtlasError, match="cannot be shown"):
        projects.grid(root, projects.GRID, title=label)


def test_a_link_in_the_place_of_a_result_is_replaced_and_its_target_stays(root, tmp_path):
    cell = projects.grid(root).cells[0]
    target = tmp_path / "precious"
    target.write_text("precious")
    path = root / cell.path
    path.parent.mkdir(parents=True)
    os.symlink(target, path)
    assert results.state(cell, root) == "corrupt"
    assert "precious" not in results.outcome(cell, root)[1]
    results.write(path, projects.result(cell))
    assert target.read_text() == "precious"
    assert not path.is_symlink() and results.state(cell, root) == "ok"
