"""Recomputing blocks in the backward pass changes no gradient, and what would change it silently."""

import pytest
import torch
from torch import nn

from models.shape import SiteId
from tests.helpers import EVERY, backbone, batch, close, differ, gradients, text
from tests.places import branches, lora, prefixes, prompt


def attached(on):
    """Everything at once: weight deltas, prefixes, adapters and, where there is room, a prompt; its parameters."""
    found = [*lora(on).parts.parameters(), *branches(on).parameters()]
    if on.architecture.dispatches:
        found += [p for prefix in prefixes(on).values() for p in prefix.parameters()]
    return found + (list(prompt(on).parameters()) if on.architecture.first_slot is not None else [])


@pytest.mark.parametrize("name", EVERY)
def test_gradients_are_equal_with_dropout_on(name):
    on = backbone(name)
    parameters, given = attached(on), batch(name)
    plain = gradients(on, given, parameters)
    on.gradient_checkpointing()
    assert all(close(a, b, 1e-6) for a, b in zip(plain, gradients(on, given, parameters), strict=True))
    second = gradients(on, given, parameters)
    assert all(close(a, b, 1e-6) for a, b in zip(plain, second, strict=True)), "nothing is left from the first pass"


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama"])
def test_no_graph_goes_through_frozen_embeddings(name):
    on, seen = backbone(name), []
    parameters = list(lora(on).parts.parameters())
    on.map_.modules[SiteId("", 0, "block")].register_forward_pre_hook(
        lambda module, args: seen.append(args[0].requires_grad)
    )
    on.gradient_checkpointing()
    gradients(on, batch(name), parameters)
    assert not any(seen)
    on.model.enable_input_require_grads()  # what transformers does by itself
    gradients(on, batch(name), parameters)
    assert seen[-1]


def chained(on, one_slot: bool):
    """Each block's adapter also reads what the adapter of the block before it left."""
    weights = nn.Parameter(torch.randn(2, 32, generator=torch.Generator().manual_seed(0)))
    last = {}

    def adapter(layer):
        site = SiteId("", layer, "mlp")

        def function(x, y, residual):
            memory, before = (last, "slot") if one_slot else (on.state.memory, site._replace(layer=layer - 1))
            own = torch.tanh(weights[layer] * y + memory.get(before, 0))
            memory["slot" if one_slot else site] = own
            return y + own

        return function

    for layer in range(2):
        on.branch(SiteId("", layer, "block"), "mlp", adapter(layer))
    return weights, last


def both_ways(attach, reset=lambda: None):
    """The gradient without and with checkpointing."""
    found = []
    for checkpointing in (False, True):
        on = backbone("tiny-bert")
        weights, last = attach(on)
        if checkpointing:
            on.gradient_checkpointing()
        found += gradients(on, text("tiny-bert"), [weights])
    return found


def test_state_with_one_entry_a_site_gives_right_gradients():
    plain, recomputed = both_ways(lambda on: chained(on, one_slot=False))
    assert close(plain, recomputed, 1e-6)


def test_state_in_one_slot_gives_wrong_gradients_without_an_error():
    plain, recomputed = both_ways(lambda on: chained(on, one_slot=True))
    assert differ(plain, recomputed, 1e-2 * plain.abs().max())


def masked(on, in_forward: bool):
    """An adapter with a random mask from a generator of its own."""
    weights, rng = nn.Parameter(torch.ones(32)), torch.Generator().manual_seed(0)
    drawn = {}

    def mask(layer, y):
        if in_forward:
            return torch.rand(y.shape, generator=rng) > 0.5
        return drawn.setdefault(layer, torch.rand(y.shape, generator=rng) > 0.5)

    for layer in range(2):
        on.branch(SiteId("", layer, "block"), "mlp", lambda x, y, r, i=layer: y + weights * y * mask(i, y))
    return weights, drawn


def test_a_mask_drawn_inside_forward_gives_wrong_gradients_without_an_error():
    plain, recomputed = both_ways(lambda on: masked(on, in_forward=True))
    assert differ(plain, recomputed, 1e-2 * plain.abs().max())


def test_a_mask_drawn_once_a_step_gives_right_gradients():
    plain, recomputed = both_ways(lambda on: masked(on, in_forward=False))
    assert close(plain, recomputed, 1e-6)
