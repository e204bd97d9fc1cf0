"""What is measured while a cell runs costs next to nothing; what costs more is done only where the grid asks for it."""

import subprocess
import sys
import time

import pytest
import torch

from methods.lowrank.lora import LoRA
from tests.helpers import attach, backbone, encoded, training
from workflow import registry
from workflow.grid import MEASURES
from workflow.meter import Meter

SHARE = 0.03


def test_a_phase_costs_less_than_a_share_of_the_shortest_cell():
    """A cell of one second has six phases and an evaluation or two; the best of ten, as others use the machine too.

    In a process of its own, as a cell has: what many tests have left on the heap is given back at each phase.
    """
    code = "from tests.workflow.test_measuring_is_cheap import best_of_ten; print(best_of_ten())"
    done = subprocess.run([sys.executable, "-c", code], cwd=registry.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < SHARE


def best_of_ten():
    """Seconds of eight phases."""
    meter = Meter((torch.device("cpu"),))
    return min(_seconds(lambda: [_phase(meter) for _ in range(4)]) for _ in range(10))


def _phase(meter):
    with meter.phase("train"), meter.phase("evaluate"):
        meter.sample()


def _seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def test_training_does_not_wait_for_the_meter(monkeypatch):
    """The meter is looked at when the loss is, and not at every step."""
    looks = []
    monkeypatch.setattr(Meter, "sample", lambda self: looks.append(True))
    on, method = backbone("tiny-bert"), LoRA()
    run = training(on, method, data=encoded(40), max_steps=40)
    attach(method, on, run)
    run.run()
    assert len(looks) <= 3


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_may_be_asked_for(name):
    from workflow import documents

    documents.check({"tasks": {"glue": "all"}, "models": ["m"], "methods": "all", "measure": [name]}, "grid", file="f")
