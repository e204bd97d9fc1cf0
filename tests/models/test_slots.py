"""Prompt slots equal embeddings handed in by hand; positions, labels, pooling and the cache follow."""

import pytest
import torch
from torch import Tensor

from methods.base import InputPrompt
from models.backbone import Backbone, Unsupported
from models.batch import Batch, ForwardState
from models.shape import SiteId
from tests.helpers import (
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    assert_cache_changes_nothing,
    backbone,
    batch,
    bound,
    close,
    differ,
    images,
    run,
    single,
    text,
)
from tests.places import PROMPT, prompt

POOLED = [(name, None) for name in (*ENCODERS, *DECODERS)] + [
    ("tiny-bert", "cls"),
    ("tiny-bert", "mean"),
    ("tiny-roberta", "mean"),
    ("tiny-llama", "mean"),
]
SIDES = ("right", "left", "none")


def embedded(plain: Backbone, rows: InputPrompt, of: Batch) -> tuple[Tensor, int]:
    """Embeddings of one unpadded text with the prompt inside, and where the prompt begins."""
    part = "encoder" if plain.kind == "encoder_decoder" else ""
    words = plain.map_.modules[SiteId(part, -1, "embed.token")](of.inputs["input_ids"])
    first = plain.architecture.first_slot
    return torch.cat([words[:, :first], rows.rows.expand(len(words), -1, -1), words[:, first:]], 1), first


@torch.no_grad()
def by_embeddings(plain: Backbone, rows: InputPrompt, of: Batch) -> Tensor:
    """Logits of one unpadded text by `inputs_embeds`, without any slots."""
    joined, first = embedded(plain, rows, of)
    slots = torch.zeros(1, joined.shape[1], dtype=torch.bool)
    slots[:, first : first + PROMPT] = True
    if plain.kind == "encoder_decoder":
        return plain.model(inputs_embeds=joined, labels=of.labels).logits
    out = plain.model(inputs_embeds=joined)
    if plain.head is None:
        return out.logits
    if plain.head.pooling == "pooler":
        return plain.head(out.pooler_output, ForwardState())
    state = ForwardState(Batch({}, unpadded=True), torch.ones_like(slots), slots)
    return plain.head(out.last_hidden_state, state)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("name", "pooling"), POOLED)
def test_a_classifier_with_slots_equals_embeddings(name, pooling, side):
    on, plain, given = backbone(name, pooling=pooling), backbone(name, pooling=pooling), text(name, side)
    rows = prompt(on)
    expected = torch.cat([by_embeddings(plain, rows, single(given, row)) for row in range(len(given))])
    assert close(run(on, given), expected)
    assert differ(run(plain, given), expected), "the prompt must matter"


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_decoder_with_slots_equals_embeddings(name, side):
    on, plain, given = backbone(name), backbone(name), text(name, side)
    rows = prompt(on)
    expected = torch.cat([by_embeddings(plain, rows, single(given, row)) for row in range(len(given))])
    assert close(run(on, given), expected, bound(name, 1e-5))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", DECODERS)
def test_a_generator_with_slots_keeps_every_label_with_its_token(name, side):
    on, plain, given = backbone(name, "generation"), backbone(name, "generation"), text(name, side)
    given.labels = given.inputs["input_ids"].masked_fill(~given.mask, -100)
    rows = prompt(on)
    out = on.forward(given)
    for row in range(len(given)):
        alone = single(given, row)
        learned = out.labels[row] != -100
        assert out.labels[row, learned].tolist() == alone.inputs["input_ids"][0].tolist()
        assert close(out.logits[row, learned], by_embeddings(plain, rows, alone)[0, PROMPT:])


@pytest.mark.parametrize("side", ["left", "none"])
@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_a_cache_equals_generation_without(name, side):
    on = backbone(name, "generation")
    prompt(on)
    assert_cache_changes_nothing(on, text(name, side))


@pytest.mark.parametrize("side", ["left", "none"])
@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_slots_equals_a_loop_over_embeddings(name, side):
    on, plain, given = backbone(name, "generation"), backbone(name, "generation"), text(name, side)
    rows, tokens = prompt(on), []
    for row in range(len(given)):
        grown, new = single(given, row), []
        for _ in range(5):
            new.append(by_embeddings(plain, rows, grown)[0, -1].argmax())
            grown = Batch({"input_ids": torch.cat([grown.inputs["input_ids"], new[-1][None, None]], 1)})
        tokens.append(torch.stack(new))
    assert torch.equal(on.generate(given, 5), torch.stack(tokens))


def test_generation_of_an_encoder_decoder_equals_a_cached_one_over_embeddings():
    on, plain, given = backbone("tiny-t5"), backbone("tiny-t5"), text("tiny-t5", "none")
    rows = prompt(on)
    joined, _ = embedded(plain, rows, given)
    reference = plain.model.generate(inputs_embeds=joined, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert torch.equal(on.generate(given, 6), reference[:, 1:])


def test_the_state_tells_which_tokens_are_slots():
    on, given = backbone("tiny-bert"), text("tiny-bert", "left")
    prompt(on)
    run(on, given)
    lengths = given.mask.sum(1).tolist()
    longest = max(lengths)
    for row, length in enumerate(lengths):
        first = longest - length + 1  # behind the leading special token
        assert on.state.slots[row].nonzero()[:, 0].tolist() == [first, first + 1]
        assert on.state.mask[row].sum() == length + PROMPT
        assert on.state.positions[row, -1] == length + PROMPT - 1


def test_several_prompts_lie_behind_one_another():
    on, one = backbone("tiny-bert"), backbone("tiny-bert")
    first, second = prompt(on), prompt(on)
    with torch.no_grad():
        second.rows.mul_(-1)
    both = InputPrompt(2 * PROMPT, 32)
    both.rows.data = torch.cat([first.rows.data, second.rows.data])
    both.attach(one)
    assert close(run(on, text("tiny-bert")), run(one, text("tiny-bert")), 1e-6)


@pytest.mark.parametrize(("name", "special"), [("tiny-vit", 1), ("tiny-dinov2", 1), ("tiny-deit", 2)])
def test_prompt_tokens_of_an_image_lie_behind_the_special_tokens(name, special):
    """DeiT has one for distillation too."""
    on, plain, given = backbone(name), backbone(name), images(name)
    rows = prompt(on)
    patches = plain.map_.modules[SiteId("", -1, "embed")]
    patches.register_forward_hook(
        lambda m, a, out: torch.cat([out[:, :special], rows.rows.expand(len(out), -1, -1), out[:, special:]], 1)
    )
    assert close(run(on, given), run(plain, given), 1e-6)
    assert on.state.slots[0].nonzero()[:, 0].tolist() == [special, special + 1]


def test_prompt_tokens_do_not_enter_a_mean_over_patches():
    """What the prompt's own rows end as must not be pooled: hidden states there are replaced and nothing changes."""
    on, given = backbone("tiny-vit", pooling="mean"), images("tiny-vit")
    prompt(on)
    with torch.no_grad():
        out = on.forward(given)
        hidden = torch.where(on.state.slots[..., None], 100.0, out.hidden)
        assert close(on.head(hidden, on.state), out.logits, 1e-6)
        keep = [0, *range(1 + PROMPT, out.hidden.shape[1])]
        assert close(on.head.out(out.hidden[:, keep].mean(1)), out.logits)


def test_windows_of_swin_have_no_place_for_prompt_tokens():
    with pytest.raises(Unsupported, match="windows of swin"):
        prompt(backbone("tiny-swin"))


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-deberta", "tiny-llama", "tiny-opt-post", "tiny-t5", "tiny-vit"])
def test_gradients_reach_every_row_of_the_prompt(name):
    on = backbone(name)
    rows = prompt(on)
    on.forward(batch(name)).logits.square().sum().backward()
    assert (rows.rows.grad.abs().sum(1) > 0).all()
