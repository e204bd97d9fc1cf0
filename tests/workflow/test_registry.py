"""Methods are found by their files and read from their source."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workflow import projects
from workflow import registry
from workflow.errors import AtlasError
from workflow.source import Setting, Unknown


@pytest.fixture
def root(tmp_path):
    return projects.make(tmp_path)


def method(root, name):
    return registry.methods(root=root)[name]


def test_every_file_below_methods_is_found_but_base_and_private_ones(root):
    projects.write(root, "methods/lowrank/_shared.py", projects.HEAD)
    projects.write(root, "methods/_old/x.py", projects.HEAD)
    assert list(registry.methods(root=root)) == ["head", "lora", "lora_plus"]


def test_files_are_parsed_again_only_when_one_has_changed(root):
    """Also where size and time stay as they were, and where it is a file of building blocks."""
    first, again = registry.methods(root=root), registry.methods(root=root)
    assert again is not first and all(again[name] is info for name, info in first.items())
    path = root / "methods/lowrank/lora.py"
    text, times = path.read_text(), path.stat()
    assert "5e-4" in text
    path.write_text(text.replace("5e-4", "6e-4"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert method(root, "lora").recipe == method(root, "lora_plus").recipe == {"lr": 6e-4}
    before = registry.methods(root=root)["lora"]
    projects.write(root, "methods/base/more.py", "x = 1")
    assert method(root, "lora") is not before


def test_metadata_and_settings_are_read_with_what_is_inherited(root):
    lora = method(root, "lora")
    assert (lora.family, lora.paper, lora.class_name) == ("lowrank", "2106.09685", "LoRA")
    assert (lora.kinds, lora.mergeable, lora.identity_at_init) == (("encoder", "decoder"), True, True)
    assert lora.title == "LoRA: low-rank adaptation (Hu et al., 2021, arXiv:2106.09685)."
    assert lora.recipe == {"lr": 5e-4}
    assert list(lora.settings) == ["sites", "layers", "rank", "alpha"]
    assert lora.settings["sites"] == Setting(("attn.q", "attn.v"), "tuple[str, ...]")


def test_a_method_may_derive_from_another_plugin(root):
    plus = method(root, "lora_plus")
    assert (plus.family, plus.paper, plus.recipe) == ("lowrank", "2402.12354", {"lr": 5e-4})
    assert list(plus.settings)[-2:] == ["alpha", "ratio"]


def test_defaults_may_be_fields_constants_or_absent(root):
    text = """
    from dataclasses import dataclass, field
    from methods.base import Method
    SITES = ("mlp.up",)
    class M(Method):
        a = name = "m"
        @dataclass(frozen=True)
        class Settings:
            sites: tuple = SITES
            width: int = field(default=3)
            layers: list = field(default_factory=lambda: [1, 2])
            path: str
            scale: float = max(1, 2)
    """
    projects.write(root, "methods/x/m.py", text)
    defaults = {name: setting.default for name, setting in method(root, "m").settings.items()}
    assert defaults == {
        "sites": ("mlp.up",),
        "width": 3,
        "layers": [1, 2],
        "path": Unknown.REQUIRED,
        "scale": Unknown.COMPUTED,
    }


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("class X(:\n  name = 'lora_xs'\n", "SyntaxError: invalid syntax (lora_xs.py, line 1)"),
        ("x = 1\n", 'no class in this file has a literal name = "..."'),
        ("class A:\n  name = 'lora_xs'\nclass B:\n  name = 'b'\n", "one method a file, but A and B are both named"),
        ("class A:\n  name = 'lora_xs'\n  kinds = tuple('a')\n", "A.kinds is not a literal"),
        ("from methods.lowrank.gone import X\nclass A(X):\n  name = 'lora_xs'\n", "imports 'methods.lowrank.gone'"),
    ],
)
def test_a_broken_file_is_a_row_with_its_error_and_leaves_the_others(root, text, error):
    (root / "methods/lowrank/lora_xs.py").write_text(text)
    found = registry.methods(root=root)
    assert error in found["lora_xs"].error
    assert [name for name, info in found.items() if not info.error] == ["head", "lora", "lora_plus"]


def test_a_file_that_does_not_parse_keeps_the_name_it_gives(root):
    projects.write(root, "methods/lowrank/lora.py", projects.LORA.replace("class LoRA(", "class LoRA(("))
    assert "SyntaxError" in method(root, "lora").error
    assert "lora.py" in method(root, "lora_plus").error


def test_a_name_that_is_taken_is_an_error_of_the_second_file(root, tmp_path_factory):
    extra = tmp_path_factory.mktemp("mine")
    projects.write(extra, "again.py", projects.LORA)
    found = registry.methods([extra], root)
    assert found["lora"].error is None
    assert "'lora' is taken" in found["again"].error


@pytest.mark.parametrize(
    "same",
    [
        projects.LORA.replace("(Hu et al., 2021", "(Hu and others, 2021"),
        projects.LORA.replace("    recipe =", '    no_gradient = ("*.bias",)\n    recipe ='),
        projects.LORA.replace("    identity_at_init", "    # a remark\n    identity_at_init"),
        projects.LORA.replace(
            '    name, family, paper = "lora", "lowrank"', "    name, family, paper = 'lora',\\\n 'lowrank'"
        ),
        projects.LORA.replace("class LoRA(LinearMethod):", 'class LoRA(LinearMethod):\n    """Said again."""\n'),
    ],
)
def test_comments_docstrings_layout_and_what_only_checks_read_leave_the_digest(root, same):
    before = method(root, "lora").digest
    assert projects.write(root, "methods/lowrank/lora.py", same).read_text() != projects.LORA.lstrip()
    assert method(root, "lora").digest == before


def test_code_changes_the_digest_of_the_method_and_of_those_derived_from_it_only(root):
    before = {name: info.digest for name, info in registry.methods(root=root).items()}
    projects.write(root, "methods/lowrank/lora.py", projects.LORA.replace("rank: int = 8", "rank: int = 4"))
    after = {name: info.digest for name, info in registry.methods(root=root).items()}
    assert {name for name in before if before[name] != after[name]} == {"lora", "lora_plus"}


def test_building_blocks_are_no_part_of_the_digest(root):
    before = method(root, "lora").digest
    projects.write(root, "methods/base/contract.py", projects.BASE + "\nX = 1\n")
    assert method(root, "lora").digest == before


def test_a_plugin_that_fails_to_import_is_one_clear_error(root, tmp_path_factory):
    extra = tmp_path_factory.mktemp("mine")
    text = 'import not_a_package_anywhere\nclass M:\n    name, requires = "m", ("surely-missing",)\n'
    path = projects.write(extra, "m.py", text)
    info = registry.methods([extra], root)["m"]
    assert registry.missing_package(info) == "not_a_package_anywhere"
    with pytest.raises(AtlasError) as error:
        registry.load_method(info)
    assert "No module named 'not_a_package_anywhere'" in error.value.message
    assert (error.value.file, error.value.mend) == (path, "pip install surely-missing")


def test_a_plugin_outside_the_project_is_imported_from_its_file(tmp_path):
    projects.write(tmp_path, "m.py", 'class M:\n    name = "m"\n    value = 3\n')
    assert registry.load_method(registry.methods([tmp_path])["m"]).value == 3


def test_a_suite_that_fails_to_import_leaves_the_others(root):
    projects.write(root, "tasks/broken.py", "1 / 0\n")
    found = registry.suites(root)
    assert found["broken"].error == "ZeroDivisionError: division by zero"
    assert "one" in found["small"].tasks


def test_the_projects_own_plugins_can_be_read():
    assert {name: info.error for name, info in registry.methods().items() if info.error} == {}


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from workflow import registry, grid, results, entry, listing;"
        "registry.methods(); registry.suites(); registry.models();"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pandas', 'sklearn') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=registry.ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_root_is_the_project():
    assert (Path(registry.ROOT) / "methods" / "base").is_dir()
