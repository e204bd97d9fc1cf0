"""Where a cell was run: taken in the job, complete, and honest about what is not known."""

import re

import torch

from workflow import provenance


def test_a_job_says_host_packages_threads_and_commit():
    found = provenance.collect(torch.device("cpu"), threads=3)
    assert found["threads"] == 3 and found["device"] == "cpu" and "driver" not in found
    assert found["packages"]["torch"] == torch.__version__ and found["cpu"]
    assert set(found["git"]) in ({"commit", "dirty"}, set())


def test_the_scheduler_is_named_only_inside_one(monkeypatch):
    for name in provenance.SCHEDULER:
        monkeypatch.delenv(name, raising=False)
    assert "scheduler" not in provenance.collect(torch.device("cpu"), 1)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert provenance.collect(torch.device("cpu"), 1)["scheduler"] == {"name": "slurm", "job_id": "42"}
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")  # of a job that was put back into the queue twice
    assert provenance.collect(torch.device("cpu"), 1)["scheduler"]["restarts"] == "2"


def test_times_are_utc_to_the_second():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", provenance.now())
