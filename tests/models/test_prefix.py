"""Key/value prefixes equal a slow loop over heads and queries, on every architecture and padding."""

import pytest
import torch
from torch import Tensor

from methods.base import KVPrefix
from models.shape import SiteId
from tests.helpers import (
    DECODERS,
    OWN_ATTENTION,
    TEXT,
    VISION,
    assert_cache_changes_nothing,
    backbone,
    batch,
    close,
    differ,
    run,
    text,
)
from tests.places import prefixes

REPLACEABLE = [name for name in TEXT if name not in OWN_ATTENTION]
CASES = [(name, side) for name in REPLACEABLE for side in ("right", "left", "none")]
CASES += [(name, "none") for name in VISION]


def visible(on, call, site: SiteId, row: int, query: int) -> Tensor:
    """(S,) which text keys a query sees, from the batch alone: real ones, no later ones, none beyond the window."""
    keys = torch.arange(call.k.shape[2])
    inner = site.part == "decoder" and site.name == "attn.core"
    real = torch.ones(len(keys), dtype=torch.bool) if inner or call.state.mask is None else call.state.mask[row]
    if on.kind == "decoder" or inner:
        real = real & (keys <= query)
    window = call.extra.get("sliding_window")
    if window is None:
        return real
    return real & ((keys - query).abs() < window if on.kind == "encoder" else keys > query - window)


def looped(on, site: SiteId, prefix: KVPrefix):
    """Attention over prefix and text, one batch row, head and query at a time."""

    def slow(call, proceed):
        rows, heads, length, _ = call.q.shape
        group = heads // call.k.shape[1]
        out = torch.zeros_like(call.q)
        for b in range(rows):
            for h in range(heads):
                keys = torch.cat([prefix.key[h // group], call.k[b, h // group]])
                values = torch.cat([prefix.value[h // group], call.v[b, h // group]])
                extra = torch.zeros(length, len(keys))
                if call.bias is not None:
                    extra[:, prefix.key.shape[1] :] += call.bias[0, h]
                if on.kind == "vision" and call.mask is not None:  # shifted windows of Swin
                    extra[:, prefix.key.shape[1] :] += call.mask.expand(rows, heads, -1, -1)[b, h]
                for i in range(length):
                    scores = keys @ call.q[b, h, i] * call.scale + extra[i]
                    if on.kind != "vision":
                        scores[prefix.key.shape[1] :][~visible(on, call, site, b, i)] = -torch.inf
                    out[b, h, i] = scores.softmax(0) @ values
        return out

    return slow


def with_loop(name: str, **more):
    on = backbone(name, **more)
    for site, prefix in prefixes(on, attached=False).items():
        on.attention(site, looped(on, site, prefix))
    return on


@pytest.mark.parametrize(("name", "side"), CASES)
def test_prefix_equals_a_loop(name, side):
    given = batch(name, side)
    fast, plain = backbone(name), run(backbone(name), given)
    prefixes(fast)
    assert close(run(fast, given), run(with_loop(name), given), 2e-5)
    assert differ(run(fast, given), plain), "the prefix must matter"


def test_longer_keys_without_a_mask_are_cut_and_ours_are_not():
    """Without padding there is no mask, and the fused kernel takes more keys than queries for a static cache."""
    given = text("tiny-llama", "none")
    right, naive = with_loop("tiny-llama"), backbone("tiny-llama")

    def cut(prefix):
        def attention(call, proceed):
            call.k = torch.cat([prefix.key[None].expand(len(call.k), -1, -1, -1), call.k], 2)
            call.v = torch.cat([prefix.value[None].expand(len(call.v), -1, -1, -1), call.v], 2)
            assert call.mask is None
            return proceed()

        return attention

    for site, prefix in prefixes(naive, attached=False).items():
        naive.attention(site, cut(prefix))
    assert differ(run(naive, given), run(right, given), 1e-2)


@pytest.mark.parametrize("side", ["left", "none"])
@pytest.mark.parametrize("name", [name for name in DECODERS if name in REPLACEABLE])
def test_generation_with_a_cache_equals_generation_without(name, side):
    on = backbone(name, "generation")
    prefixes(on)
    assert_cache_changes_nothing(on, text(name, side))


def test_a_prefix_reaches_the_gradient_of_its_keys_and_values():
    on = backbone("tiny-bert")
    found = list(prefixes(on).values())
    on.forward(text("tiny-bert", "none")).logits.sum().backward()
    assert all(p.grad.abs().max() > 0 for prefix in found for p in prefix.parameters())
