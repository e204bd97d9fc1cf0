"""PEFT Atlas: `snakemake --config grid=config/demo.yaml` runs the cells of a grid and makes its tables and report."""

import sys

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, workflow.basedir)
from workflow import entry
from workflow.errors import AtlasError

try:
    GRID = entry.read_config(config)
except AtlasError as problem:
    raise WorkflowError(str(problem))

RESULTS = f"results/{GRID.name}"
JOBS = entry.jobs(GRID)
# with --software-deployment-method conda the jobs have a Python of their own
PYTHON = "python" if DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method else sys.executable
entry.export_root()


localrules:
    all,
    tables,
    report,



include: "workflow/rules/cell.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        rules.report.output,
