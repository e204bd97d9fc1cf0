"""Standing between a module and its callers leaves everything else about the module as it was."""

import copy

import torch
from torch import nn

from models.intercept import Switch, intercept


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 3)


X = torch.arange(6.0).reshape(2, 3)


def plus(amount):
    return lambda proceed, x: proceed(x) + amount


def times(factor):
    return lambda proceed, x: proceed(x) * factor


def test_the_later_function_is_the_outer_one():
    module, plain = linear(), linear()
    intercept(module, plus(1), switch := Switch())
    intercept(module, times(2), switch)
    assert torch.equal(module(X), (plain(X) + 1) * 2)


def test_names_attributes_and_class_checks_stay():
    module, plain = linear(), linear()
    intercept(module, plus(1), Switch())
    assert isinstance(module, nn.Linear) and type(module).__name__ == "Linear"
    assert [n for n, _ in module.named_modules()] == [n for n, _ in plain.named_modules()]
    assert list(module.state_dict()) == list(plain.state_dict())
    assert (module.in_features, repr(module)) == (plain.in_features, repr(plain))


def test_the_switch_gives_the_plain_function():
    module, plain = linear(), linear()
    intercept(module, plus(1), switch := Switch())
    switch.on = False
    assert torch.equal(module(X), plain(X))


def test_removing_the_last_function_restores_the_class():
    module, plain = linear(), linear()
    switch = Switch()
    first, second = intercept(module, plus(1), switch), intercept(module, times(2), switch)
    first.remove()
    assert torch.equal(module(X), plain(X) * 2)
    second.remove()
    second.remove()
    assert type(module) is nn.Linear and vars(module).keys() == vars(plain).keys()
    assert torch.equal(module(X), plain(X))


def test_a_deep_copy_computes_the_same_and_is_independent():
    module = linear()
    handle = intercept(module, plus(1), Switch())
    twin = copy.deepcopy(module)
    assert torch.equal(twin(X), module(X))
    handle.remove()
    assert torch.equal(twin(X), module(X) + 1)


def test_hooks_and_checkpointing_still_work():
    module = linear()
    intercept(module, plus(1), Switch())
    seen = []
    module.register_forward_hook(lambda m, a, out: seen.append(out))
    x = X.clone().requires_grad_(True)
    torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False).sum().backward()
    assert torch.equal(seen[0], module(X)) and torch.equal(x.grad, linear().weight.sum(0).expand(2, 3))
