"""What the Snakefile needs: the grid named by Snakemake's configuration, and each cell's key and resources by path."""

from __future__ import annotations

import os
from pathlib import Path

from workflow import registry, resources
from workflow.errors import AtlasError, suggest
from workflow.grid import Grid, load

OPTIONS = ("grid", "data_root", "threads")


def read_config(config: dict) -> Grid:
    """The grid of `--config grid=FILE data_root=FOLDER threads=N`; AtlasError on any other option."""
    for name in config:
        if name not in OPTIONS:
            raise AtlasError(f"unknown option '{name}'", key=f"--config {name}=...", mend=suggest(name, OPTIONS))
    overrides = {"data_root": str(config["data_root"])} if config.get("data_root") else {}
    return load(find(config.get("grid", "config/demo.yaml")), overrides)


def find(name: str) -> Path:
    """A grid's file: relative to the working directory, else to the project."""
    here = Path(name)
    return here if here.exists() else registry.ROOT / name if (registry.ROOT / name).exists() else here


def jobs(grid: Grid) -> dict[str, dict]:
    """For each cell, by the part of its path between `results/cells/` and `.json`: key, mem_mb and runtime."""
    entries = registry.models()
    needs = {name: resources.estimate(entries[name].config) | grid.resources for name in {c.model for c in grid.cells}}
    return {
        f"{cell.suite}/{cell.name}": {"key": f"{cell.config_key}/{cell.seed}"} | needs[cell.model]
        for cell in grid.cells
    }


def export_root() -> None:
    """Let `python -m workflow` be found from any working directory."""
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(registry.ROOT), *([inherited] if inherited else [])])
