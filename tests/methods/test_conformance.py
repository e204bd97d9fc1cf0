"""Every method that discovery finds, on every tiny network, against every rule. A new file is picked up by itself.

One test is a method on a network, with all its rules: they share what they look at.
"""

from functools import cache

import pytest
import torch

from workflow import conformance, registry, toy
from workflow.conformance import RULES, Case

METHODS = registry.methods()


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@cache
def supported(method):
    return [model for model in toy.MODELS if not Case(METHODS[method], model).unsupported]


@pytest.mark.parametrize("model", toy.MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_every_rule(method, model):
    case = Case(METHODS[method], model)
    if case.unsupported:
        pytest.skip(case.unsupported)
    first = model == supported(method)[0]
    results = [conformance.apply(rule, case) for rule in RULES.values() if rule.per_model or first]
    failed = [f"{r.rule.number} {r.rule.name}: {r.text}" for r in results if r.status == "FAILED"]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("method", METHODS)
def test_some_network_is_supported(method):
    assert supported(method)
