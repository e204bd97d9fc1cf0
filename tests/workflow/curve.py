"""The curve of docs/scale.md: `python -m tests.workflow.curve CELLS FOLDER [STEP ...]`, time and memory of each step.

FOLDER keeps the grid and the made-up results, so that steps may be measured one by one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.workflow import projects, synthetic
from workflow import registry

TRIVIAL = """
rule all:
    input:
        [f"results/cells/suite/task/model/method-{{i:08d}}/seed0.json" for i in range({cells})],

rule cell:
    output:
        "results/cells/{{cell}}.json",
    shell:
        "touch {{output}}"
"""
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "all", "--cores", "1", "--nolock", "-s")


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds (user and system), and the peak of resident memory, MiB, of a process."""

    wall: float
    cpu: float
    peak: float

    def __str__(self) -> str:
        return f"{self.cpu:.1f} s CPU, {self.wall:.1f} s, {self.peak:,.0f} MiB"


def cost(folder: Path, *command: str) -> Cost:
    """Run a command in the folder; RuntimeError with its last lines where it fails."""
    log = folder / "log.txt"
    began = time.monotonic()
    with log.open("w") as file:
        environment = os.environ | {"PYTHONPATH": str(registry.ROOT)}
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError("\n".join(log.read_text().splitlines()[-10:]))
    return Cost(time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def steps(cells: int, folder: Path) -> dict:
    """What can be measured: name -> a function that does it and returns its Cost."""
    ours = (*SNAKEMAKE, str(registry.ROOT / "Snakefile"), "--config", "grid=grid.yaml")

    def bare() -> Cost:
        projects.write(folder, "bare/Snakefile", TRIVIAL.format(cells=cells))
        return cost(folder / "bare", *SNAKEMAKE, "Snakefile")

    def store() -> None:
        synthetic.store(folder, synthetic.grid(folder, cells).cells)

    def verb(*words: str):
        return lambda: cost(folder, sys.executable, "-m", "workflow", *words, "--grid", "grid.yaml")

    return {
        "bare": bare,
        "dry-run": lambda: cost(folder, *ours),
        "store": store,
        "dry-run done": lambda: cost(folder, *ours),
        "first status": verb("status"),
        "status": verb("status"),
        "tables": verb("tables"),
        "report": verb("report"),
    }


def main(cells: int, folder: Path, *wanted: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    synthetic.grid(folder, cells)
    known = steps(cells, folder)
    for name in wanted or known:
        print(f"{cells:,} cells, {name}: {known[name]()}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]).resolve(), *sys.argv[3:])
