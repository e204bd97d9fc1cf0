"""A small project in a temporary folder: three methods, one suite, two models; and results for its cells."""

from __future__ import annotations

import textwrap
from pathlib import Path

from workflow import results
from workflow.cells import Cell
from workflow.grid import Grid, load

BASE = """
from dataclasses import dataclass


class Method:
    kinds = ("encoder", "decoder")
    mergeable = False

    @dataclass(frozen=True)
    class Settings:
        pass


@dataclass(frozen=True)
class LinearSettings:
    sites: tuple[str, ...] = ("attn.q", "attn.v")
    layers: tuple[int, ...] | None = None


class LinearMethod(Method):
    Settings = LinearSettings
    mergeable = True
"""

LORA = '''
"""LoRA: low-rank adaptation (Hu et al., 2021, arXiv:2106.09685)."""

from dataclasses import dataclass

from methods.base import LinearMethod, LinearSettings


class LoRA(LinearMethod):
    name, family, paper = "lora", "lowrank", "2106.09685"
    identity_at_init = True
    recipe = {"lr": 5e-4}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 8
        alpha: float = 16
'''

PLUS = '''
"""LoRA+ (Hayou et al., 2024, arXiv:2402.12354)."""

from dataclasses import dataclass

from methods.lowrank.lora import LoRA


class LoRAPlus(LoRA):
    name = "lora_plus"
    paper = "2402.12354"

    @dataclass(frozen=True)
    class Settings(LoRA.Settings):
        ratio: float = 16.0
'''

HEAD = '''
"""Task head only."""

from methods.base import Method


class Head(Method):
    name = "head"
    title = "Head only"
'''

SUITE = """
from tasks.base import Option, Protocol, Suite, TaskInfo


def task(name):
    facts = ("classification", "text", ("text",), ("no", "yes"), ("accuracy",), "accuracy", 32, name, 0.5)
    return TaskInfo("small", name, *facts)


class Small(Suite):
    name, title, version, demo = "small", "Small", 1, True
    tasks = {name: task(name) for name in ("one", "two")}
    protocols = (Protocol("plain", 1, {"size": Option(100, int, minimum=1)}),)

    def recipe(self, task):
        return {"epochs": 2, "batch_size": 16}


suite = Small()
"""

MODELS = """
family: tiny
source: random
revision: "1"
licence: none
sizes:
  tiny-bert:
    architecture: bert
    config: {hidden_size: 32, num_hidden_layers: 2, vocab_size: 97}
  tiny-llama:
    architecture: llama
    config: {hidden_size: 32, num_hidden_layers: 2, vocab_size: 97}
"""


def write(root: Path, name: str, text: str) -> Path:
    """Write a file of the project, dedented, and return its path."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip())
    return path


def make(root: Path) -> Path:
    """The project below `root`."""
    write(root, "methods/base/__init__.py", '"""Gives its names out lazily, so none is imported here."""\n')
    write(root, "methods/base/contract.py", BASE)
    write(root, "methods/lowrank/lora.py", LORA)
    write(root, "methods/lowrank/lora_plus.py", PLUS)
    write(root, "methods/control/head.py", HEAD)
    write(root, "tasks/small.py", SUITE)
    write(root, "models/tiny.yaml", MODELS)
    return root


GRID = """
tasks: {small: [one]}
models: [tiny-bert]
methods: [head, lora]
"""


def grid(root: Path, text: str = GRID, **overrides) -> Grid:
    """The grid written as `root/config/grid.yaml`, loaded with the project's own methods, tasks and models."""
    return load(write(root, "config/grid.yaml", text), overrides, root=root)


def result(cell: Cell, status: str = "ok", **sections) -> dict:
    """The smallest valid result of a cell."""
    reason = None if status == "ok" else f"it was {status}"
    identity = {"schema": 1, "key": cell.key, "cell": cell.to_json(), "status": status, "reason": reason}
    return {**identity, "provenance": {}, **sections}


def store(cell: Cell, root: Path, status: str = "ok") -> Path:
    """Write a result where the cell's belongs, below `root`."""
    results.write(root / cell.path, result(cell, status))
    return root / cell.path
