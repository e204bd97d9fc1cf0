"""Figures that can be known beforehand: bytes, steps, and a merge that is wrong."""

import pytest
from safetensors.torch import save_file

from methods.base import LinearSettings
from methods.lowrank.lora import LoRA
from tests.helpers import attach, backbone, lively, text
from workflow import measure


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
        """The first step stands apart; of 1..20 the median is 10.5, the quartiles 5.75 and 15.25, and the 95th
        percentile the 20th value."""
        found = measure.step_times([99.0, *map(float, range(1, 21))])
        quartiles = {"step_p25": 5.75, "step_p75": 15.25}
        assert found == {"first_step": 99.0, "step_median": 10.5, "step_p95": 20.0} | quartiles

    def test_one_step_and_none(self):
        assert set(measure.step_times([2.0]).values()) == {2.0}
        assert measure.step_times([]) == {}


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
