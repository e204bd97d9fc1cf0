"""Figures that can be known beforehand: bytes, quantiles, sleeps, and a merge that is wrong."""

import time

import pytest
import torch
from safetensors.torch import save_file

from methods.base import LinearSettings
from methods.lowrank.lora import LoRA
from tests.helpers import attach, backbone, lively, text
from workflow import measure

CPU = torch.device("cpu")
MEGABYTE = 2**20


class TestMemory:
    def phases(self, *sizes):
        memory = measure.Memory(CPU)
        for i, size in enumerate(sizes):
            with memory.phase(f"phase{i}"):
                held = bytearray(size * MEGABYTE)
                held[::4096] = b"x" * len(held[::4096])
                del held
        if len(memory.figures) == 1:
            pytest.skip("this system does not let a process reset its peak")
        return [memory.figures[f"phase{i}_peak"] for i in range(len(sizes))]

    def test_the_peak_of_a_phase_holds_what_was_allocated_in_it(self):
        """Resident pages, to 16 MiB: the allocator and the interpreter come and go beside them."""
        small, large = self.phases(1, 201)
        assert abs(large - small - 200 * MEGABYTE) < 16 * MEGABYTE

    def test_the_peak_is_reset_between_phases(self):
        large, small = self.phases(201, 1)
        assert large - small > 150 * MEGABYTE

    def test_a_repeated_phase_keeps_the_larger_peak(self):
        memory = measure.Memory(CPU)
        memory._keep("train_peak", 5)
        memory._keep("train_peak", 3)
        assert memory.figures == {"device": "cpu", "train_peak": 5}


class TestStoredBytes:
    def test_is_the_size_of_the_file(self, tmp_path):
        on, method = backbone("tiny-bert"), LoRA()
        attach(method, on)
        save_file(method.state_dict(), tmp_path / "task.safetensors")
        assert measure.stored_bytes(method.state_dict()) == (tmp_path / "task.safetensors").stat().st_size

    def test_nothing_stored_is_nothing(self):
        assert measure.stored_bytes({}) == 0


class TestStepTimes:
    def test_by_hand(self):
        """The first step stands apart; of 1..20 the median is 10.5 and the 95th percentile the 20th value."""
        found = measure.step_times([99.0, *map(float, range(1, 21))])
        assert found == {"first_step": 99.0, "step_median": 10.5, "step_p95": 20.0}

    def test_one_step_and_none(self):
        assert measure.step_times([2.0]) == {"first_step": 2.0, "step_median": 2.0, "step_p95": 2.0}
        assert measure.step_times([]) == {}


def test_quantiles_by_hand():
    assert measure.quantiles([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "p25": 2.0, "p75": 4.0}
    assert measure.quantiles([7.0]) == {"median": 7.0, "p25": 7.0, "p75": 7.0}


def test_interleaved_timings_tell_a_known_sleep_and_take_turns(monkeypatch):
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.05)
    order = []

    def sleeper(name, seconds):
        return lambda: (order.append(name), time.sleep(seconds))

    found = measure.interleaved({"short": sleeper("short", 0.004), "long": sleeper("long", 0.02)}, CPU)
    assert 0.004 <= found["short"]["median"] < 0.02 <= found["long"]["median"] < 0.1
    turns = order[2 * measure.WARM_UP :]
    assert turns == ["short", "long"] * (len(turns) // 2)
    assert len(turns) // 2 >= measure.LATENCY_REPEATS[0]


class Wrong(LoRA):
    """Merges twice its delta."""

    class Map(LoRA.Map):
        def weight(self, W, b):
            return W + 2 * self.delta(), b


@pytest.mark.parametrize(("plugin", "right"), [(LoRA, True), (Wrong, False)])
def test_a_wrong_merge_is_seen(plugin, right):
    on, method = backbone("tiny-bert"), plugin(plugin.Settings(*vars(LinearSettings()).values(), rank=2))
    attach(method, on)
    lively(method.parts)
    found = measure.merge_error(on, method, text("tiny-bert"))
    assert (found["relative"] < 1e-5) if right else (found["relative"] > 1e-2)
    assert found["exact"], "the report speaks of rounding only; the error of the output tells the rest"


def test_latency_is_told_bare_attached_and_merged_and_leaves_the_method_as_it_was(monkeypatch):
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.0)
    on, method = backbone("tiny-bert"), LoRA()
    attach(method, on)
    lively(method.parts)
    before = on.forward(text("tiny-bert")).logits
    found = measure.latency(on, method, {"batch_3": text("tiny-bert")})
    assert set(found["batch_3"]) == {"bare", "attached", "merged"}
    assert torch.equal(on.forward(text("tiny-bert")).logits, before)
