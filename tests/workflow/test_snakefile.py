"""The workflow as a user runs it. Every start of Snakemake takes seconds, so each test asks several things of one."""

import re
import subprocess
import sys

import pytest

from tests.workflow import projects
from workflow import products, registry
from workflow.grid import load

GRID = """
tasks: {glue: [sst2]}
models: [tiny-bert, tiny-gpt2]
methods: [head, lora, new, broken]
plugins: [mine]
"""
NEW = projects.HEAD.replace('"head"', '"new"')


@pytest.fixture
def folder(tmp_path):
    """A working directory with a grid and two plugins of its own, one of them broken."""
    projects.write(tmp_path, "mine/new.py", NEW)
    projects.write(tmp_path, "mine/broken.py", "class Broken(:\n    name = 'broken'\n")
    projects.write(tmp_path, "grid.yaml", GRID)
    return tmp_path


def snakemake(folder, *arguments, grid="grid.yaml"):
    """Run the workflow in the folder; returns (exit status, all output)."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(registry.ROOT / "Snakefile"), "--nolock"]
    command += ["--config", f"grid={grid}", "--cores", "1", *arguments]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    return done.returncode, done.stdout


def planned(output):
    """The result files of the cells that a dry run would make."""
    return set(re.findall(r"output: (results/cells/\S+)", output))


def dry_run(folder, *arguments):
    status, output = snakemake(folder, "--dry-run", "--quiet", "host", *arguments)
    assert status == 0, output
    return output


def paths(folder):
    return {str(cell.path) for cell in load(folder / "grid.yaml").cells}


def test_only_cells_without_a_result_run_and_an_edited_plugin_changes_only_its_own(folder):
    grid = load(folder / "grid.yaml")
    assert {cell.method for cell in grid.cells} == {"head", "lora", "new"}
    output = dry_run(folder)
    assert planned(output) == paths(folder)
    assert "resources: tmpdir" in output and "mem_mb=" in output and "runtime=" in output and "gpu" not in output

    for cell in grid.cells:
        projects.store(cell, folder)
    projects.write(folder, "mine/new.py", "# a remark\n" + NEW.replace('"""Task head only."""', '"""Only the head."""'))
    assert planned(dry_run(folder)) == set()

    projects.write(folder, "mine/new.py", NEW + "    size = 3\n")
    changed = planned(dry_run(folder))
    assert changed == paths(folder) - {str(cell.path) for cell in grid.cells}
    assert all("/new-" in path for path in changed) and len(changed) == 2


def test_a_result_that_is_gone_is_made_again_although_the_tables_are_there(folder):
    grid = load(folder / "grid.yaml")
    for cell in grid.cells:
        projects.store(cell, folder)
    projects.write(folder, "results/grid/tables/cells.csv", "")
    projects.write(folder, "results/grid/tables/summary.md", "")
    for name in products.table_names(grid):
        projects.write(folder, f"results/grid/tables/{name}.csv", "")
    projects.write(folder, "results/grid/report/index.html", "")
    (folder / grid.cells[0].path).unlink()
    assert planned(dry_run(folder)) == {str(grid.cells[0].path)}


def test_the_slurm_profile_is_read_and_asks_for_a_gpu(folder):
    projects.write(folder, "grid.yaml", GRID + "resources: {mem_mb: 1234, runtime: 56}\n")
    output = dry_run(folder, "--profile", str(registry.ROOT / "slurm"))
    assert re.search(r"resources: .*mem_mb=1234\b.*\bgpu=1\b.*runtime=56\b", output)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("sedes: [0]\n", [], ["unknown key 'sedes'", "file: grid.yaml", "key: sedes", "mend: did you mean 'seeds'?"]),
        ("", ["gird=other.yaml"], ["unknown option 'gird'", "mend: did you mean 'grid'?"]),
    ],
)
def test_a_bad_grid_or_option_is_one_clear_message(folder, text, options, expected):
    projects.write(folder, "grid.yaml", GRID + text)
    status, output = snakemake(folder, "--dry-run", *(["--config", "grid=grid.yaml", *options] if options else []))
    assert status == 2
    assert len(output.strip().splitlines()) <= 5
    for line in expected:
        assert line in output


def test_the_workflow_is_free_of_lints():
    command = [sys.executable, "-m", "snakemake", "--lint"]
    done = subprocess.run(command, cwd=registry.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
