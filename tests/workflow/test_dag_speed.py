"""Planning a grid takes at most half as long again as planning as many trivial jobs."""

import os
import subprocess
import sys

import pytest

from tests.workflow import projects
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
GRID = """
tasks: {{glue: [sst2, cola]}}
models: [tiny-bert, tiny-roberta, tiny-llama, tiny-gpt2, minilm-l6]
methods:
  - {{method: lora, settings: {{rank: {{grid: {ranks}}}}}}}
seeds: [0, 1, 2, 3]
"""


def seconds(folder, *arguments):
    """CPU seconds, user and system, of a dry run: what others do on the machine counts less than in wall time."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "--cores", "1", "--nolock", *arguments]
    before = os.times()
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    after = os.times()
    assert done.returncode == 0, done.stdout
    return after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("cells", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_planning_a_grid_is_as_quick_as_planning_trivial_jobs(tmp_path, cells):
    projects.write(tmp_path, "trivial/Snakefile", TRIVIAL.format(cells=cells))
    projects.write(tmp_path, "grid/grid.yaml", GRID.format(ranks=list(range(1, cells // 40 + 1))))
    trivial = seconds(tmp_path / "trivial", "--snakefile", "Snakefile")
    ours = seconds(tmp_path / "grid", "--snakefile", str(registry.ROOT / "Snakefile"), "--config", "grid=grid.yaml")
    print(f"{cells} cells: {ours:.1f} s, trivial jobs: {trivial:.1f} s, ratio {ours / trivial:.2f}")
    assert ours <= 1.5 * trivial + 1.0
