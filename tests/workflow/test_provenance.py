"""Where a cell was run: taken in the job, complete, and honest about what is not known."""

import re

import torch

from workflow import provenance


def test_a_job_says_host_packages_threads_and_commit():
    found = provenance.collect(torch.device("cpu"), threads=3)
    assert found["threads"] == 3 and found["device"] == "cpu" and "driver" not in found
    assert found["packages"]["torch"] == torch.__version__ and found["cpu"]
    assert set(found["git"]) in ({"commit", "dirty"}, set())


def test_the_scheduler_is_named_only_inside_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in provenance.SCHEDULER:
        monkeypatch.delenv(name, raising=False)
    assert "scheduler" not in provenance.collect(torch.device("cpu"), 1)
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    assert provenance.collect(torch.device("cpu"), 1)["scheduler"] == {"name": "slurm", "job_id": "42"}


def test_how_often_a_job_was_put_back_into_the_queue_is_asked_of_the_controller(monkeypatch, tmp_path):
    controller = tmp_path / "scontrol"
    controller.write_text(
        '#!/bin/sh\n[ "$*" = "--oneliner show job 43" ] && echo "JobId=43 Requeue=1 Restarts=2 X=1"\n'
    )
    controller.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "43")
    assert provenance.collect(torch.device("cpu"), 1)["scheduler"]["restarts"] == "2"


def test_times_are_utc_to_the_second():
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", provenance.now())
