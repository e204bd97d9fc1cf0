"""PEFT Atlas: `snakemake --config grid=config/demo.yaml` runs the cells of a grid and makes its tables and report."""

import sys

from snakemake.settings.types import DeploymentMethod

sys.path.insert(0, workflow.basedir)
from workflow import entry, pack, products, scheduler
from workflow.errors import AtlasError

try:
    GRID = entry.read_config(config)
except AtlasError as problem:
    print(f"error: {problem}", file=sys.stderr)
    sys.exit(2)

RESULTS = f"results/{GRID.name}"
NEEDS = entry.Needs(GRID)
PACKS = pack.packs(GRID)
if workflow.is_main_process:
    entry.set_aside_damaged(GRID)
    pack.update_markers(GRID, PACKS)
AWAITED = pack.awaited(GRID, PACKS)
ON_GPU = bool({"gpu", "gpu_mb"} & GRID.resources.keys())
OF_CELL = lambda wildcards: NEEDS[f"{wildcards.place}-{wildcards.key}"]
GPU = scheduler.gpus(
    config, (lambda wildcards: OF_CELL(wildcards)["gpu"]) if ON_GPU else None
)
SITE = scheduler.named(config)

# The commands are made here, once, rather than from `params` of every job, which costs seconds on thousands of jobs.
# With --software-deployment-method conda or apptainer the jobs have a Python of their own.
own_python = bool(
    {DeploymentMethod.CONDA, DeploymentMethod.APPTAINER}
    & set(workflow.deployment_settings.deployment_method)
)
ATLAS = entry.command("python" if own_python else sys.executable, "-m", "workflow")
ON_GRID = entry.command("--grid", GRID.path)
ON_DATA = entry.command("--data-root", GRID.data_root) if GRID.data_root else ""
entry.export_root()
entry.export_progress(GRID)

if "container" in config:

    container: config["container"]


localrules:
    all,
    tables,
    report,
    fetch,


include: "workflow/rules/cell.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/atlas_vit.smk"


if workflow.is_main_process:
    entry.outdate([*rules.tables.output, *rules.report.output])


rule all:
    default_target: True
    input:
        entry.lost(AWAITED, rules.tables.output),
        rules.report.output,
