"""Where and with what a cell was run, taken in the job itself."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "evaluate", "numpy", "safetensors", "scikit-learn")
SCHEDULER = {
    "SLURM_JOB_ID": "job_id",
    "SLURM_ARRAY_TASK_ID": "array_task_id",
    "SLURM_JOB_PARTITION": "partition",
    "SLURM_NODELIST": "nodes",
}


def now() -> str:
    """UTC time to the second, ISO 8601."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def collect(device, threads: int) -> dict:
    """Host, device, scheduler, packages and git state."""
    found = {
        "host": platform.node(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "threads": threads,
        "python": platform.python_version(),
        "packages": packages(),
        "git": git_state(),
        "device": device.type,
    }
    if device.type == "cuda":
        import torch

        found["device"] = torch.cuda.get_device_name(device)
        found["driver"] = _driver()
    scheduler = {name: os.environ[key] for key, name in SCHEDULER.items() if key in os.environ}
    if "job_id" in scheduler and (restarts := _restarts(scheduler["job_id"])):
        scheduler["restarts"] = restarts
    return found | ({"scheduler": {"name": "slurm", **scheduler}} if scheduler else {})


@cache
def packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def git_state() -> dict[str, object]:
    """Commit of the project and whether tracked files differ from it; {} outside a checkout."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments):
        return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=20)

    try:
        head, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    if head.returncode:
        return {}
    return {"commit": head.stdout.strip(), "dirty": bool(changed.stdout.strip())}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or sys.platform
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@cache
def _restarts(job: str) -> str | None:
    """How often a job was put back into the queue, by the controller: Snakemake hides SLURM_RESTART_COUNT from its
    jobs. None where nobody tells."""
    try:
        told = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"\bRestarts=(\d+)", told.stdout)
    return found[1] if found else None


def _driver() -> str:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
