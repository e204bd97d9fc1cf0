"""The map of a model: facts, sites by block with how many blocks have them, and sites outside of the blocks."""

import time

import pytest

from models.entries import model, models
from workflow.__main__ import main
from workflow.model_map import describe


def table(text, title):
    """Rows below the line that begins with `title`, split at the columns of its heading: site -> values."""
    paragraph = next(p for p in text.split("\n\n") if p.startswith(title))
    head, *lines = paragraph.splitlines()[1:]
    names = head.split()
    starts = [head.index(f"{name} " if name != names[-1] else name) for name in names]
    cut = [[line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)] for line in lines]
    return {row[0]: dict(zip(names, row, strict=True)) for row in cut}


def test_the_facts_of_a_model_come_first():
    head, *facts = describe(model("roberta-base")).split("\n\n")[0].splitlines()
    found = dict(line.strip().split("  ", 1) for line in facts)
    found = {name: value.strip() for name, value in found.items()}
    assert head == "roberta-base"
    assert found["title"].startswith("RoBERTa base")
    assert found["parameters"] == "124,055,040"
    assert (found["depth"], found["width"], found["heads"]) == ("12 blocks", "768", "12 of width 64")
    assert (found["longest input"], found["licence"]) == ("512 tokens", "mit")
    assert found["source"].startswith("hub FacebookAI/roberta-base at ")


def test_a_block_is_shown_once_with_the_number_of_blocks_like_it():
    sites = table(describe(model("roberta-base")), "12 blocks, encoder.layer.0 to encoder.layer.11: width 768")
    assert sites["mlp.up"] == {
        "site": "mlp.up",
        "class": "Linear",
        "shape": "3,072 x 768",
        "bias": "yes",
        "module": "intermediate.dense",
        "blocks": "12",
    }
    assert sites["norm.mlp"]["shape"] == "768" and sites["mlp.act"]["class"] == "GELUActivation"


def test_what_lies_outside_the_blocks():
    found = table(describe(model("tiny-opt-post")), "outside the blocks")
    assert (found["embed.project"]["shape"], found["head.project"]["shape"]) == ("32 x 16", "16 x 32")
    assert found["embed.token"]["module"] == "decoder.embed_tokens"


def test_a_norm_that_one_block_lacks_is_counted():
    sites = table(describe(model("tiny-modernbert")), "3 blocks")
    assert (sites["norm.attn"]["blocks"], sites["norm.mlp"]["blocks"]) == ("2", "3")


@pytest.mark.parametrize(
    ("name", "site", "module"),
    [
        ("tiny-modernbert", "mlp.gate", "mlp.Wi, part 1 of 2 of its rows"),
        ("tiny-gpt2", "attn.k", "attn.c_attn, part 2 of 3 of its columns"),
        ("tiny-bloom", "attn.v", "self_attention.query_key_value, part 3 of 3 of each head"),
    ],
)
def test_a_fused_projection_shows_its_parts(name, site, module):
    blocks = model(name).config.get("num_hidden_layers", 2)
    assert table(describe(model(name)), f"{blocks} blocks")[site]["module"] == module


def test_swin_is_shown_by_stage():
    text = describe(model("tiny-swin"))
    first, second = (table(text, f"2 blocks, encoder.layers.{stage}.blocks.0 to ") for stage in (0, 1))
    assert (first["attn.q"]["shape"], second["attn.q"]["shape"]) == ("16 x 16", "32 x 32")
    assert table(text, "outside the blocks")["0.downsample"]["shape"] == "32 x 64"


def test_an_encoder_decoder_is_shown_by_part():
    text = describe(model("tiny-t5"))
    assert "2 in the encoder and 2 in the decoder" in text
    encoder, decoder = table(text, "2 blocks, encoder.block.0"), table(text, "2 blocks, decoder.block.0")
    assert "cross.q" not in encoder and decoder["cross.q"]["module"] == "layer.1.EncDecAttention.q"


def test_grouped_heads_are_told():
    assert "heads          4 of width 8, 2 for keys and values\n" in describe(model("tiny-llama"))


def test_the_largest_model_takes_no_time():
    describe(model("tiny-llama"))  # imports are not counted
    largest = max(models().values(), key=lambda entry: entry.parameters or 0)
    began = time.process_time()
    assert f"{largest.parameters:,}" in describe(largest)
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    ("arguments", "mend"),
    [(["describe"], "give a method, or --model"), (["describe", "--model", "tiny-brt"], "did you mean 'tiny-bert'?")],
)
def test_an_error_says_what_to_give(capsys, arguments, mend):
    assert main(arguments) == 2
    assert mend in capsys.readouterr().err


def test_with_a_method_it_shows_what_that_trains(capsys):
    assert main(["describe", "lora", "--model", "tiny-bert"]) == 0
    out = capsys.readouterr().out
    assert "arXiv:2106.09685" in out and "on tiny-bert" in out and "outside the blocks" not in out
