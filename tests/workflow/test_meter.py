"""Peaks and energy of phases, with answers that are known beforehand."""

import json
import subprocess
import sys

import pytest
import torch

from workflow import meter
from workflow.registry import ROOT

CPU = (torch.device("cpu"),)
SCRIPT = """
import json
import torch
from workflow.meter import Meter

def hold(megabytes):
    held = bytearray(megabytes * 2**20)
    held[::4096] = b"x" * len(held[::4096])

meter = Meter((torch.device("cpu"),))
for size in (1, 201, 1):
    with meter.phase("repeated"):
        hold(size)
with meter.phase("pieces"):
    pieces = [bytes([1]) * 2**16 for _ in range(3200)]
    last = bytes([1]) * 2**16
    del pieces
with meter.phase("small"):
    hold(1)
with meter.phase("outer"):
    hold(101)
    with meter.phase("inner"):
        hold(301)
    hold(1)
print(json.dumps(meter.memory))
"""


@pytest.fixture(scope="module")
def peaks():
    """Peaks (MiB) of a fresh process: in an old one other tests' garbage comes and goes."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout)
    if len(found) == 1:
        pytest.skip("this system does not let a process reset its peak")
    return {name.removesuffix("_peak"): value / 2**20 for name, value in found.items() if name != "device"}


class TestMemory:
    """Resident pages, to 16 MiB: the allocator and the interpreter come and go beside what is held."""

    def test_a_repeated_phase_keeps_its_largest_peak_and_it_is_reset_for_the_next(self, peaks):
        assert abs(peaks["repeated"] - peaks["small"] - 200) < 16

    def test_what_the_heap_keeps_of_freed_blocks_is_not_in_the_next_phase(self, peaks):
        """200 MiB in blocks of 64 KiB below one that is still held."""
        assert abs(peaks["pieces"] - peaks["small"] - 200) < 16

    def test_what_an_inner_phase_takes_is_not_charged_to_the_outer(self, peaks):
        """Evaluation between two stretches of training: the training before and after it counts."""
        assert abs(peaks["inner"] - peaks["outer"] - 200) < 16
        assert abs(peaks["outer"] - peaks["small"] - 100) < 16


def test_peaks_of_several_gpus_are_summed(monkeypatch):
    gpus = tuple(torch.device("cuda", index) for index in range(2))
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 100 + device.index)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 200 + device.index)
    found = meter.Meter(gpus)
    with found.phase("train"):
        pass
    assert found.memory == {"device": "cuda", "train_peak": 201, "train_reserved": 401}


class Steady:
    """A counter that gives one joule a look."""

    name = "steady"

    def __init__(self):
        self.total = 100.0

    def joules(self):
        self.total += 1
        return self.total


class TestEnergy:
    def test_is_charged_to_the_innermost_phase(self):
        found = meter.Meter(CPU, Steady())
        with found.phase("train"):
            found.sample()
            with found.phase("evaluate"):
                pass
            found.sample()
        assert found.energy == {"train": 4.0, "evaluate": 1.0}

    def test_without_a_counter_there_is_none(self):
        found = meter.Meter(CPU)
        with found.phase("train"):
            found.sample()
        assert found.energy == {}

    def powercap(self, root, microjoules):
        for name, value in microjoules.items():
            folder = root / name
            folder.mkdir(exist_ok=True)
            (folder / "energy_uj").write_text(f"{value}\n")
            (folder / "max_energy_range_uj").write_text("1000000\n")

    def test_of_processors_is_the_sum_over_packages_and_runs_over(self, tmp_path):
        """Domains inside a package (`intel-rapl:0:0`) are in its figure already."""
        self.powercap(tmp_path, {"intel-rapl:0": 900_000, "intel-rapl:1": 0, "intel-rapl:0:0": 5})
        counter = meter.counter(CPU, tmp_path)
        assert counter.joules() == 0.0
        self.powercap(tmp_path, {"intel-rapl:0": 100_000, "intel-rapl:1": 250_000, "intel-rapl:0:0": 500_000})
        assert counter.joules() == pytest.approx(0.2 + 0.25)

    def test_a_machine_without_a_readable_counter_has_none(self, tmp_path):
        assert meter.counter(CPU, tmp_path) is None
        assert meter.counter((torch.device("cuda"),), tmp_path) is None or torch.cuda.is_available()
