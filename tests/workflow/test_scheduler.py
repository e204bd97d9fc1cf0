"""Commands of jobs that a scheduler stops, and what a job asks of one site."""

import os
import signal
import subprocess
import sys
import time

from workflow import scheduler

SAVES = """
import signal, sys, time

def stop(number, frame):
    time.sleep(0.5)  # that a checkpoint may take
    open("checkpoint", "w").close()
    print("stopped by the scheduler", flush=True)
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
print("trains", flush=True)
time.sleep(60)
"""


def run(command: str, folder) -> subprocess.Popen:
    """A rule's shell command as Snakemake runs it."""
    shell = "set -euo pipefail; " + scheduler.logged(command).replace("{log:q}", "said.log")
    return subprocess.Popen(
        ["bash", "-c", shell], cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def test_a_stopped_command_writes_its_checkpoint_and_its_last_word_is_in_the_log(tmp_path):
    (tmp_path / "saves.py").write_text(SAVES)
    job = run(f"{sys.executable} saves.py", tmp_path)
    assert job.stdout.readline() == "trains\n"
    os.killpg(job.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert job.poll() is None, "Snakemake would end the job, and with it the command, before its checkpoint is written"
    assert job.wait(30) == 143
    assert (tmp_path / "checkpoint").exists()
    assert job.stdout.read() == "stopped by the scheduler\n"
    assert (tmp_path / "said.log").read_text() == "trains\nstopped by the scheduler\n"


def test_a_command_that_fails_fails_the_rule_and_what_it_says_is_kept(tmp_path):
    job = run("sh -c 'echo so; echo why >&2; exit 3'", tmp_path)
    assert job.communicate()[0] == (tmp_path / "said.log").read_text() == "so\nwhy\n"
    assert job.returncode == 3


def test_partition_and_account_of_the_command_line():
    assert scheduler.named({"grid": "g.yaml"}) == {}
    named = scheduler.named({"slurm_partition": "gpu", "slurm_account": 1234, "threads": 2})
    assert named == {"slurm_partition": "gpu", "slurm_account": "1234"}


def test_gpus_are_a_number_or_a_generic_resource():
    assert scheduler.gpus({}, None) == {}, "the profile says how many"
    assert scheduler.gpus({}, lambda wildcards: wildcards)["gpu"](2) == 2
    typed = {"slurm_gres": "gpu:a100"}
    one, many = scheduler.gpus(typed, None), scheduler.gpus(typed, lambda wildcards: wildcards)
    assert (one["gpu"], one["gres"](None)) == (0, "gpu:a100:1")
    assert (many["gres"](3), many["gres"](0)) == ("gpu:a100:3", "")


def test_memory_and_time_grow_with_the_attempt_and_their_signature_is_at_hand():
    memory = scheduler.grown(lambda wildcards: {"mem_mb": 300, "runtime": 5}, "mem_mb")
    assert [memory(None, attempt) for attempt in (1, 2, 3)] == [300, 600, 900]
    assert list(memory.__signature__.parameters) == ["wildcards", "attempt"]
