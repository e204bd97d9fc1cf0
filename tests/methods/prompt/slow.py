"""Attention by its definition: one row of the batch, one head and one query at a time, in float64."""

import torch

from methods.base.contract import key
from tests.helpers import VISION, backbone
from tests.models.test_prefix import visible

CASES = [(name, side) for name in ("tiny-bert", "tiny-llama") for side in ("right", "left", "none")]
CASES += [("tiny-gemma3", "left"), ("tiny-gpt2", "right"), ("tiny-t5", "right"), ("tiny-vit", "none")]
CASES += [("tiny-swin", "none")]


def exact(name, task=None):
    """A tiny network in float64."""
    on = backbone(name, task)
    for module in filter(None, (on.model, on.head)):
        module.double()
    return on


def weights(method, site):
    """The module that a method has at a site."""
    return method.parts[key(site)]


def scores(on, site, call, b, h, i):
    """(S,) what query i of head h gives to each key of the text; -inf where it may not look."""
    found = call.k[b, h * call.k.shape[1] // call.q.shape[1]] @ call.q[b, h, i] * call.scale
    if call.bias is not None:
        found = found + call.bias[0, h, i]
    if on.kind == "vision":
        return found if call.mask is None else found + call.mask.expand(*call.q.shape[:3], -1)[b, h, i]
    return found.masked_fill(~visible(on, call, site, b, i), -torch.inf)


def projected(on, site, name, rows):
    """rows (K, d) through the k or v projection of a layer, from its matrices: (KV heads, K, D)."""
    place = on.site(site._replace(name=site.name.replace("core", name)))
    out = rows @ place.weight().T
    out = out if place.bias() is None else out + place.bias()
    out = out.unflatten(-1, (-1, on.shape.block(site).head_dim))
    norm = on.norms().get(site._replace(name=f"norm.{name}"))
    return (out if norm is None else norm(out)).detach().transpose(0, 1)


def check(on, method, slow, given, sites=None):
    """Run a batch; at every attention with a module, the result is that of `slow(on, site, call, b, h, i, group)`.

    Returns the network's output.
    """
    seen = []

    def compare(site):
        def attention(call, proceed):
            fast, wanted = proceed(), torch.zeros_like(call.q)
            rows, heads, length, _ = call.q.shape
            for b in range(min(rows, 4)):
                for h in range(heads):
                    for i in range(length):
                        wanted[b, h, i] = slow(on, site, call, b, h, i, heads // call.k.shape[1])
            real = torch.ones(rows, length, dtype=torch.bool)
            if on.name not in VISION and length == call.state.mask.shape[1]:
                real = call.state.mask
            error = (fast - wanted)[:4].abs().amax((1, 3))[real[:4]].max()
            assert error < 1e-8 * max(1, float(wanted.abs().max())), f"{site}: {error}"
            seen.append(site)
            return fast

        return attention

    for site in sites or method.planned.sites:
        on.attention(site, compare(site))
    with torch.no_grad():
        logits = on.forward(given).logits
    assert set(seen) == set(sites or method.planned.sites)
    return logits
