"""What inference keeps of a method: all it has, nothing where it merges, or what the method says."""

import pytest

from methods.adapter.houlsby import Houlsby
from methods.base import Count, Wrapper, WrapperSettings
from methods.lowrank.lora import LoRA
from tests.helpers import attach, backbone
from workflow import cell


class Distilled(Houlsby):
    """Adapters that only training needs."""

    def kept(self):
        return []

    def expected_parameters(self, shape):
        return Count(super().expected_parameters(shape).trained, added=0)


class Around(Wrapper):
    name, family = "around", "control"


def counts(method):
    on = backbone("tiny-bert")
    attach(method, on)
    return cell._counts(method, on)


@pytest.mark.parametrize(("plugin", "added"), [(LoRA, 0), (Distilled, 0), (Houlsby, 4 * (2 * 64 * 32 + 64 + 32))])
def test_added_at_inference(plugin, added):
    found = counts(plugin())
    assert found["added_at_inference"] == found["expected"]["added"] == added


@pytest.mark.parametrize("base", ["lora", "houlsby"])
def test_a_wrapper_keeps_what_the_method_inside_keeps(base):
    method = Around(WrapperSettings(base))
    attach(method, backbone("tiny-bert"))
    assert [id(p) for p in method.kept()] == [id(p) for p in method.child.kept()]
    assert bool(method.kept()) == (base == "houlsby")
