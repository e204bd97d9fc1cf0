"""Cells in a container: the image has a Python of its own, and nothing of the machine's is called."""

import os
import sys

from tests.workflow import projects
from tests.workflow.test_snakefile import dry_run

APPTAINER = """
    #!/bin/sh
    echo "apptainer version 1.3.0"
"""
GRID = """
tasks: {demo_glue: [acceptability]}
models: [tiny-bert]
methods: [head]
"""


def test_jobs_in_a_container_call_the_python_that_is_in_it(tmp_path, monkeypatch):
    projects.write(tmp_path, "grid.yaml", GRID)
    projects.write(tmp_path, "bin/apptainer", APPTAINER).chmod(0o755)
    image = projects.write(tmp_path, "image.sif", "")
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]))
    own = ("--printshellcmds", "--sdm", "apptainer", "--config", "grid=grid.yaml", f"container={image}")
    output = dry_run(tmp_path, *own)
    assert "; python -m workflow cell" in output
    assert sys.executable not in output
