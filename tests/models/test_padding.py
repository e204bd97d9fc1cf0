"""Padding on either side gives what no padding gives; our masks are those of transformers."""

import pytest
import torch

from models.shape import SiteId
from tests.helpers import DECODERS, ENCODER_DECODERS, ENCODERS, backbone, close, differ, run, single, text

POOLED = [("tiny-bert", "pooler"), ("tiny-bert", "cls"), ("tiny-bert", "mean"), ("tiny-bert", "last")]
POOLED += [(name, pooling) for name in ENCODERS[1:] for pooling in ("cls", "mean")]
POOLED += [(name, pooling) for name in DECODERS for pooling in ("last", "mean")]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("name", "pooling"), POOLED)
def test_a_classifier_does_not_see_padding(name, pooling, side):
    on, given = backbone(name, pooling=pooling), text(name, side)
    alone = torch.cat([run(on, single(given, row)) for row in range(len(given))])
    assert close(run(on, given), alone)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_generator_does_not_see_padding(name, side):
    on, given = backbone(name, "generation"), text(name, side)
    logits = run(on, given)
    for row in range(len(given)):
        assert close(logits[row, given.mask[row]], run(on, single(given, row))[0])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_decoder_does_not_see_padding(name, side):
    on, given = backbone(name), text(name, side)
    alone = torch.cat([run(on, single(given, row)) for row in range(len(given))])
    assert close(run(on, given), alone)


def test_learned_positions_need_to_be_told_about_padding_on_the_left():
    on, given = backbone("tiny-gpt2", "generation"), text("tiny-gpt2", "left")
    with torch.no_grad():
        naive = on.model(input_ids=given.inputs["input_ids"], attention_mask=given.inputs["attention_mask"]).logits
    assert differ(naive[1, given.mask[1]], run(on, given)[1, given.mask[1]], 0.1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["tiny-bert", "tiny-roberta", "tiny-llama", "tiny-gpt2", "tiny-opt"])
def test_our_mask_is_the_one_transformers_makes(name, side):
    """Compared where it counts: rows of real tokens."""
    on, given, masks = backbone(name), text(name, side), []

    def note(call, proceed):
        masks.append(call.mask)
        return proceed()

    on.attention(SiteId("", 0, "attn.core"), note)
    run(on, given)
    with torch.no_grad():
        on.model(**given.inputs)
    ours, theirs = (mask.expand(3, 1, 7, 7)[:, 0][given.mask] for mask in masks)
    assert torch.equal(ours, theirs)


def packed(on, **more):
    """Logits of two texts in one row with restarting positions, and of the second text alone."""
    ids = text("tiny-llama", lengths=(5, 5)).inputs["input_ids"]
    positions = torch.arange(5).repeat(2)[None]
    with torch.no_grad():
        together = on.model(input_ids=ids.reshape(1, -1), position_ids=positions, **more).logits
        return together[0, 5:], on.model(input_ids=ids[1:]).logits[0]


def test_packed_texts_leak_into_one_another_by_default_and_not_under_a_four_dimensional_mask():
    """Restarting positions isolate them only without mask and without cache, and the cache is on by default."""
    on = backbone("tiny-llama", "generation")
    blocks = torch.block_diag(*[torch.ones(5, 5)] * 2).bool().tril()[None, None]
    assert differ(*packed(on), 1e-2)
    assert close(*packed(on, use_cache=False))
    assert close(*packed(on, attention_mask=blocks))
