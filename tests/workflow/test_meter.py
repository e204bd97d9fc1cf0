"""Peaks and energy of phases, with answers that are known beforehand."""

import pytest
import torch

from workflow import meter

CPU = (torch.device("cpu"),)
MEGABYTE = 2**20


def hold(megabytes):
    held = bytearray(megabytes * MEGABYTE)
    held[::4096] = b"x" * len(held[::4096])


def peaks(run):
    found = meter.Meter(CPU)
    run(found)
    if len(found.memory) == 1:
        pytest.skip("this system does not let a process reset its peak")
    return {name: value / MEGABYTE for name, value in found.memory.items() if name != "device"}


class TestMemory:
    def test_the_peak_of_a_phase_holds_what_was_allocated_in_it(self):
        """Resident pages, to 16 MiB: the allocator and the interpreter come and go beside them."""

        def run(found):
            with found.phase("small"):
                hold(1)
            with found.phase("large"):
                hold(201)

        seen = peaks(run)
        assert abs(seen["large_peak"] - seen["small_peak"] - 200) < 16

    def test_the_peak_is_reset_between_phases(self):
        def run(found):
            with found.phase("large"):
                hold(201)
            with found.phase("small"):
                hold(1)

        seen = peaks(run)
        assert seen["large_peak"] - seen["small_peak"] > 150

    def test_what_an_inner_phase_takes_is_not_charged_to_the_outer(self):
        """Evaluation between two stretches of training: the training before and after it counts."""

        def run(found):
            with found.phase("train"):
                hold(101)
                with found.phase("evaluate"):
                    hold(301)
                hold(1)
            with found.phase("after"):
                hold(1)

        seen = peaks(run)
        assert abs(seen["evaluate_peak"] - seen["train_peak"] - 200) < 16
        assert abs(seen["train_peak"] - seen["after_peak"] - 100) < 16

    def test_a_repeated_phase_keeps_the_larger_peak(self):
        def run(found):
            for size in (1, 201, 1):
                with found.phase("train"):
                    hold(size)
            with found.phase("after"):
                hold(1)

        seen = peaks(run)
        assert seen["train_peak"] - seen["after_peak"] > 150


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
