"""What profiles/slurm makes of the place where Snakemake is started; no scheduler is needed."""

import os

import pytest
from snakemake.profiles import ProfileConfigFileParser

from tests.workflow import projects
from workflow import registry

PROFILE = registry.ROOT / "profiles/slurm/config.yaml"


@pytest.fixture
def profile(tmp_path, monkeypatch):
    """The options that the profile gives, where `scontrol show config` says so, with these environment variables."""
    monkeypatch.delenv("SBATCH_PARTITION", raising=False)
    monkeypatch.delenv("SBATCH_ACCOUNT", raising=False)

    def read(said: str | None, **environment: str) -> dict:
        if said is not None:
            projects.write(tmp_path, "bin/scontrol", f"#!/bin/sh\necho '{said}'\n").chmod(0o755)
        monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "bin"), "/usr/bin", "/bin"]))
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with PROFILE.open() as file:
            return ProfileConfigFileParser().parse(file)

    return read


@pytest.mark.parametrize(
    ("said", "command"),
    [
        ("AccountingStorageType   = accounting_storage/slurmdbd", "sacct"),
        ("AccountingStorageType   = accounting_storage/none", "squeue"),
    ],
)
def test_jobs_are_followed_by_what_the_cluster_has(profile, said, command):
    options = profile(said)
    assert options["executor"] == "slurm" and options["slurm-status-command"] == command


def test_status_queries_may_fail_for_hours_before_jobs_are_given_up(profile):
    """The executor forgets all jobs, and waits forever, when so many queries in a row have failed."""
    options = profile(None)
    assert int(options["slurm-status-attempts"]) / float(options["max-status-checks-per-second"]) > 12 * 3600


def test_partition_and_account_are_absent_unless_the_environment_has_them(profile):
    assert profile(None)["default-resources"] == ["gpu=1", "mem_mb=8000", "runtime=120"]
    named = profile(None, SBATCH_PARTITION="a100", SBATCH_ACCOUNT="1234")["default-resources"]
    assert named == ["slurm_partition=a100", "slurm_account='1234'", "gpu=1", "mem_mb=8000", "runtime=120"]
