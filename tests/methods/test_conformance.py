"""Every method that discovery finds, on every tiny network, against every rule. A new file is picked up by itself."""

from functools import cache

import pytest
import torch

from workflow import conformance, registry, toy
from workflow.conformance import RULES, Case

METHODS = registry.methods()
PER_MODEL = [name for name, rule in RULES.items() if rule.per_model]
ONCE = [name for name, rule in RULES.items() if not rule.per_model]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@cache
def case(method, model):
    return Case(METHODS[method], model)


def show(result):
    if result.status == "skipped":
        pytest.skip(result.text)
    assert result.status == "ok", result.text


@pytest.mark.parametrize("rule", PER_MODEL)
@pytest.mark.parametrize("model", toy.MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_on_every_network(method, model, rule):
    show(conformance.apply(RULES[rule], case(method, model)))


@pytest.mark.parametrize("rule", ONCE)
@pytest.mark.parametrize("method", METHODS)
def test_once(method, rule):
    supported = (model for model in toy.MODELS if not case(method, model).unsupported)
    show(conformance.apply(RULES[rule], case(method, next(supported))))


@pytest.mark.parametrize("method", METHODS)
def test_some_network_is_supported(method):
    assert not all(case(method, model).unsupported for model in toy.MODELS)
