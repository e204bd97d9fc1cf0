"""Sites and shapes: what a method may count with, written out by hand for every architecture."""

import gc
import time

import pytest
import torch

from models.backbone import Unsupported
from models.entries import model as model_entry
from models.entries import models
from models.load import load
from models.shape import BlockShape, LinearShape, SiteId
from tests.helpers import DECODERS, ENCODER_DECODERS, EVERY, TEXT, backbone

PLAIN = {"attn.q": (32, 32), "attn.k": (32, 32), "attn.v": (32, 32), "attn.o": (32, 32)}
GROUPED = PLAIN | {"attn.k": (16, 32), "attn.v": (16, 32)}
TWO = {"mlp.up": (64, 32), "mlp.down": (32, 64)}
GATED = TWO | {"mlp.gate": (64, 32)}
CROSS = {f"cross.{n}": (32, 32) for n in "qkvo"}
SWIN = {
    width: dict.fromkeys(PLAIN, (width, width)) | {"mlp.up": (4 * width, width), "mlp.down": (width, 4 * width)}
    for width in (16, 32)
}

LINEARS = {
    "tiny-bert": (True, [PLAIN | TWO] * 2),
    "tiny-roberta": (True, [PLAIN | TWO] * 2),
    "tiny-llama": (False, [GROUPED | GATED] * 2),
    "tiny-qwen3": (False, [GROUPED | GATED] * 2),
    "tiny-gemma3": (False, [GROUPED | GATED] * 2),
    "tiny-gpt2": (True, [PLAIN | TWO] * 2),
    "tiny-vit": (True, [PLAIN | TWO] * 2),
    "tiny-swin": (True, [SWIN[16]] * 2 + [SWIN[32]] * 2),
    "tiny-t5": (False, [PLAIN | TWO] * 2 + [PLAIN | CROSS | TWO] * 2),
    "tiny-t5-gated": (False, [PLAIN | GATED] * 2 + [PLAIN | CROSS | GATED] * 2),
    "tiny-deberta": (True, [PLAIN | TWO] * 2),
    "tiny-modernbert": (False, [PLAIN | GATED] * 3),
    "tiny-mistral": (False, [GROUPED | GATED] * 2),
    "tiny-qwen2": (("attn.q", "attn.k", "attn.v"), [GROUPED | GATED] * 2),
    "tiny-gemma": (False, [PLAIN | {"attn.k": (8, 32), "attn.v": (8, 32)} | GATED] * 2),
    "tiny-opt": (True, [PLAIN | TWO] * 2),
    "tiny-opt-post": (True, [PLAIN | TWO] * 2),
    "tiny-bloom": (True, [PLAIN | {"mlp.up": (128, 32), "mlp.down": (32, 128)}] * 2),
    "tiny-deit": (True, [PLAIN | TWO] * 2),
    "tiny-dinov2": (True, [PLAIN | TWO] * 2),
    "tiny-dinov2-gated": (True, [PLAIN | {"mlp.gate": (48, 32), "mlp.up": (48, 32), "mlp.down": (32, 48)}] * 2),
}
OUTSIDE = {  # linear maps outside the blocks
    "tiny-bert": {"pool": LinearShape(32, 32, True)},
    "tiny-swin": {"downsample": LinearShape(32, 64, False)},
    "tiny-opt-post": {"embed.project": LinearShape(32, 16, False), "head.project": LinearShape(16, 32, False)},
}
NORMS_A_BLOCK = {
    "tiny-bert": {"norm.attn": 32, "norm.mlp": 32},
    "tiny-llama": {"norm.attn": 32, "norm.mlp": 32},
    "tiny-qwen3": {"norm.attn": 32, "norm.mlp": 32, "norm.q": 8, "norm.k": 8},
    "tiny-gemma3": {"norm.attn": 32, "norm.attn.out": 32, "norm.mlp": 32, "norm.mlp.out": 32, "norm.q": 8, "norm.k": 8},
    "tiny-gpt2": {"norm.attn": 32, "norm.mlp": 32},
    "tiny-vit": {"norm.attn": 32, "norm.mlp": 32},
    "tiny-deberta": {"norm.attn": 32, "norm.mlp": 32},
    "tiny-modernbert": {"norm.attn": 32, "norm.mlp": 32},
    "tiny-opt": {"norm.attn": 32, "norm.mlp": 32},
    "tiny-bloom": {"norm.attn": 32, "norm.mlp": 32},
    "tiny-dinov2": {"norm.attn": 32, "norm.mlp": 32},
}
NORMS_OUTSIDE = {
    "tiny-bert": ["embed.norm"],
    "tiny-swin": ["embed.norm", "norm.downsample", "norm.final"],
    "tiny-deberta": ["embed.norm", "norm.relative"],
    "tiny-modernbert": ["embed.norm", "norm.final"],
    "tiny-opt": ["norm.final"],
    "tiny-opt-post": [],
    "tiny-bloom": ["embed.norm", "norm.final"],
    "tiny-deit": ["norm.final"],
    "tiny-dinov2": ["norm.final"],
}


def shape(name):
    return backbone(name).shape


def counted(name, task="classification"):
    """The shape of an entry that has no weights."""
    return load(model_entry(name), task, weights="meta").shape


@pytest.mark.parametrize("name", EVERY)
def test_linear_sites_have_the_shapes_of_the_configuration(name):
    bias, blocks = LINEARS[name]
    found = shape(name)
    parts = [(part, layer) for part in found.parts for layer in range(found.layers[part])]
    expected = {
        SiteId(part, layer, site): LinearShape(out, inp, bias if isinstance(bias, bool) else site in bias)
        for (part, layer), sites in zip(parts, blocks, strict=True)
        for site, (out, inp) in sites.items()
    }
    inside = {k: v for k, v in found.linears.items() if k.name not in OUTSIDE.get(name, ())}
    assert inside == expected
    assert {k.name: v for k, v in found.linears.items() if k not in inside} == OUTSIDE.get(name, {})


def test_the_first_block_of_modernbert_has_no_norm_before_its_attention():
    found = shape("tiny-modernbert").norms
    assert SiteId("", 0, "norm.attn") not in found and SiteId("", 0, "norm.mlp") in found


@pytest.mark.parametrize("name", NORMS_A_BLOCK)
def test_norms_of_a_block(name):
    found = {site.name: size for site, (size, _) in shape(name).norms.items() if site.layer == 1}
    assert found == NORMS_A_BLOCK[name]


@pytest.mark.parametrize("name", NORMS_OUTSIDE)
def test_norms_outside_the_blocks(name):
    inside = {name for names in NORMS_A_BLOCK.values() for name in names}
    assert sorted({s.name for s in shape(name).norms} - inside) == NORMS_OUTSIDE[name]


@pytest.mark.parametrize("name", EVERY)
def test_every_norm_and_every_bias_is_a_site(name):
    """What methods count is what the network holds: nothing is left out, nothing counted twice."""
    on = backbone(name)
    names = dict(on.model.named_parameters())
    vectors = {n for n, p in names.items() if p.dim() == 1 and "layer_scale" not in n}
    biases = {n for n in vectors if n.endswith("bias")}
    assert sum(on.shape.biases.values()) == sum(names[n].numel() for n in biases)
    assert sum(size for size, _ in on.shape.norms.values()) == sum(names[n].numel() for n in vectors - biases)
    assert {id(p) for p in on.biases().values()} == {id(names[n]) for n in biases}


@pytest.mark.parametrize("name", EVERY)
def test_parameters_are_those_of_the_network_without_the_head(name):
    on = backbone(name)
    assert on.shape.parameters == sum(p.numel() for p in on.model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "biases"), [("bert-base", 109_482_240, 102_912), ("roberta-base", 124_055_040, 102_144)]
)
def test_published_sizes(name, parameters, biases):
    """BERT-base 109.5 M with pooler; BitFit's bias entries, RoBERTa's without the pooler."""
    found = counted(name)
    assert (found.parameters, sum(found.biases.values())) == (parameters, biases)
    assert (len(found.blocks), len(found.norms)) == (12, 25)


@pytest.fixture(scope="module")
def light_heap():
    """What other tests have left is out of the collector's sight: one pass over it can take a second of its own."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("light_heap")
@pytest.mark.parametrize("name", sorted(models()))
def test_every_entry_builds_and_counts_without_weights(name):
    entry = model_entry(name)
    counted(name, "generation" if entry.kind == "encoder_decoder" else "classification")  # imports are not counted
    began = time.process_time()
    found = counted(name, "generation" if entry.kind == "encoder_decoder" else "classification")
    assert time.process_time() - began < 1.0
    assert found.parameters > 0 and found.linears


@pytest.mark.parametrize(("name", "longest"), [("bert-base", 512), ("roberta-base", 512), ("tiny-vit", 16)])
def test_longest_input(name, longest):
    """RoBERTa keeps two of its 514 positions for itself."""
    assert counted(name).tokens == longest


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("tiny-bert", BlockShape(width=32, heads=4, kv_heads=4, head_dim=8, units=64)),
        ("tiny-llama", BlockShape(width=32, heads=4, kv_heads=2, head_dim=8, units=64)),
        ("tiny-gemma", BlockShape(width=32, heads=4, kv_heads=1, head_dim=8, units=64)),
        ("tiny-mistral", BlockShape(width=32, heads=4, kv_heads=2, head_dim=8, units=64)),
        ("tiny-deberta", BlockShape(width=32, heads=4, kv_heads=4, head_dim=8, units=64)),
        ("tiny-modernbert", BlockShape(width=32, heads=4, kv_heads=4, head_dim=8, units=64)),
        ("tiny-opt-post", BlockShape(width=32, heads=4, kv_heads=4, head_dim=8, units=64)),
        ("tiny-bloom", BlockShape(width=32, heads=4, kv_heads=4, head_dim=8, units=128)),
        ("tiny-dinov2-gated", BlockShape(width=32, heads=4, kv_heads=4, head_dim=8, units=48)),
        ("tiny-gemma3", BlockShape(width=32, heads=4, kv_heads=2, head_dim=8, units=64)),
        ("tiny-vit", BlockShape(width=32, heads=4, kv_heads=4, head_dim=8, units=64)),
    ],
)
def test_block_sizes(name, block):
    assert set(shape(name).blocks.values()) == {block}


def test_swin_doubles_its_width_after_each_stage():
    blocks = shape("tiny-swin").blocks
    assert [blocks["", layer] for layer in range(4)] == [BlockShape(16, 2, 2, 8, 64)] * 2 + [
        BlockShape(32, 4, 4, 8, 128)
    ] * 2


def test_heads_are_rows_of_queries_keys_and_values_and_columns_of_the_output():
    found = shape("tiny-llama")
    rows = [slice(0, 8), slice(8, 16), slice(16, 24), slice(24, 32)]
    assert found.heads(SiteId("", 0, "attn.q")) == found.heads(SiteId("", 0, "attn.o")) == rows
    assert found.heads(SiteId("", 0, "attn.k")) == found.heads(SiteId("", 0, "attn.v")) == rows[:2]


def test_units_of_the_feed_forward():
    assert shape("tiny-swin").units(SiteId("", 3, "mlp.up")) == 128


@pytest.mark.parametrize(
    ("name", "site", "others"),
    [
        ("tiny-llama", "attn.q", ["attn.k"]),
        ("tiny-llama", "attn.o", ["attn.v"]),
        ("tiny-llama", "mlp.down", ["mlp.up", "mlp.gate"]),
        ("tiny-bert", "mlp.up", ["mlp.down"]),
    ],
)
def test_coupled_sites(name, site, others):
    assert [s.name for s in shape(name).coupled(SiteId("", 1, site))] == others


class TestFind:
    def test_gives_sites_in_the_order_of_the_network_whatever_the_order_asked_for(self):
        found = shape("tiny-bert").find(("mlp.down", "attn.q"))
        assert [(s.layer, s.name) for s in found] == [(0, "attn.q"), (0, "mlp.down"), (1, "attn.q"), (1, "mlp.down")]

    def test_skips_a_name_that_the_network_lacks(self):
        assert {s.name for s in shape("tiny-bert").find(("attn.q", "mlp.gate"))} == {"attn.q"}

    def test_keeps_to_the_layers_asked_for(self):
        assert [s.layer for s in shape("tiny-swin").find(("attn.q",), layers=(1, 3))] == [1, 3]

    def test_keeps_to_one_part(self):
        found = shape("tiny-t5").find(("attn.q", "cross.q"), part="decoder")
        assert [str(s) for s in found] == [
            "decoder.0.attn.q",
            "decoder.0.cross.q",
            "decoder.1.attn.q",
            "decoder.1.cross.q",
        ]

    def test_both_parts_without_one_encoder_first(self):
        assert [s.part for s in shape("tiny-t5").find(("attn.q",))] == ["encoder"] * 2 + ["decoder"] * 2


def test_a_module_that_the_architecture_lacks_is_unsupported():
    with pytest.raises(Unsupported, match="bert has no site 'mlp'"):
        backbone("tiny-bert").modules("mlp")


@pytest.mark.parametrize("name", EVERY)
def test_module_sites_are_modules_of_the_network(name):
    on = backbone(name)
    inside = {id(m) for m in on.model.modules()}
    assert all(id(m) in inside for m in on.map_.modules.values())
    activations = on.modules("mlp.act")
    assert len(activations) == len(on.shape.blocks) and all(callable(m) for m in activations.values())


TIED = (
    *("tiny-qwen2", "tiny-gemma", "tiny-gemma3"),
    *("tiny-gpt2", "tiny-opt", "tiny-opt-post", "tiny-bloom"),
    "tiny-t5",
)


@pytest.mark.parametrize("name", TEXT)
def test_tied_weights_are_known(name):
    """A generator that shares its table with its output layer says so; a classifier has no output layer to share."""
    task = "generation" if name in (*DECODERS, *ENCODER_DECODERS) else "classification"
    names = {n for pair in counted(name, task).tied for n in pair}
    assert ("lm_head.weight" in names) == (name in TIED)
    assert bool(names) == (name in (*TIED, *ENCODER_DECODERS)), "T5 shares one table between its parts"


@pytest.mark.parametrize("name", EVERY)
def test_writing_back_what_was_read_changes_no_bit(name):
    on = backbone(name)
    before = {k: v.clone() for k, v in on.model.state_dict().items()}
    for site in on.map_.linears.values():
        site.write(site.weight().clone(), None if site.bias() is None else site.bias().clone())
    assert all(torch.equal(v, before[k]) for k, v in on.model.state_dict().items())
