"""What jobs need on a cluster besides memory and time: their site's names, and a command that a scheduler can stop."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

OPTIONS = ("slurm_partition", "slurm_account", "slurm_gres", "container")  # of `--config`


def named(config: dict) -> dict[str, str]:
    """Partition and account of `--config slurm_partition=... slurm_account=...` as resources; what is absent is left
    to the profile, and so to the cluster."""
    return {name: str(config[name]) for name in ("slurm_partition", "slurm_account") if name in config}


def gpus(config: dict, number: Callable[[Any], int] | None) -> dict[str, Any]:
    """GPUs of a job as resources: a number, or with `--config slurm_gres=gpu:a100` so many of a generic resource.

    number: of a job by its wildcards; None leaves it to the profile, which asks for one.
    """
    if "slurm_gres" not in config:
        return {} if number is None else {"gpu": number}

    def generic(wildcards: Any) -> str:
        wanted = 1 if number is None else number(wildcards)
        return f"{config['slurm_gres']}:{wanted}" if wanted else ""

    return {"gpu": 0, "gres": generic}


def grown(needs: Callable[[Any], dict[str, int]], name: str) -> Callable[[Any, int], int]:
    """A resource that grows with the attempt: as much as the job of these wildcards needs at first, twice and so on.

    Snakemake asks for its signature, at every job, which is costly to work out on thousands.
    """

    def resource(wildcards: Any, attempt: int) -> int:
        return needs(wildcards)[name] * attempt

    resource.__signature__ = inspect.signature(resource)
    return resource


def logged(command: str) -> str:
    """A rule's shell command that shows what `command` says and keeps it in the rule's log.

    A scheduler that stops a job signals all its processes. Shell and `tee` outlive SIGTERM: if they went first,
    Snakemake would end the job before the command has written its checkpoint, and nobody would read what it says.
    """
    return f"trap : TERM; {command} 2>&1 | (trap '' TERM; exec tee {{log:q}})"
