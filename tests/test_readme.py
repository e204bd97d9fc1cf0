"""README tells the truth: its plugin works as printed, and the files and verbs it names are there."""

import re
from pathlib import Path

import pytest

from workflow import registry
from workflow.__main__ import parser

ROOT = registry.ROOT
README = (ROOT / "README.md").read_text()


def test_the_printed_plugin_works(tmp_path):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    (tmp_path / "my_lora.py").write_text(code)
    info = registry.methods([tmp_path])["my_lora"]
    assert info.error is None and info.mergeable and info.settings["rank"].default == 8
    method = registry.load_method(info).create({"rank": 4, "alpha": 8.0})
    from models.shape import LinearShape

    assert method.make_map(None, LinearShape(6, 6, True)).scale == pytest.approx(4.0)  # 8 / sqrt(4)


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_it_names_exists():
    verbs = {verb for verb in re.findall(r"python -m workflow (\w+)", README)}
    assert verbs <= set(parser()._subparsers._group_actions[0].choices)


def test_every_make_target_it_names_exists():
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = set(re.findall(r"(?:    |`)make (\w+)", README))
    assert {"demo", "test"} <= named <= set(targets)


def test_the_tree_it_maps_is_the_tree():
    for folder in re.findall(r"^\| `([\w/]+)/?`", README, re.MULTILINE):
        assert Path(ROOT, folder).exists(), folder


def test_every_method_is_named():
    named = set(re.findall(r"`(\w+)`", README[README.index("Methods: ") :]))
    assert [name for name in registry.methods() if name not in named] == []
