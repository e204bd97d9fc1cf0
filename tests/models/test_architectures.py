"""Every architecture: its sites do what their names say, and what surrounds them stays as transformers has it."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.base import LinearMap
from models.architectures import ARCHITECTURES
from models.backbone import Unsupported
from models.entries import model as model_entry
from models.load import configuration, load
from models.shape import BlockShape, SiteId
from tests.helpers import (
    DECODERS,
    ENCODER_DECODERS,
    ENCODERS,
    EVERY,
    OWN_ATTENTION,
    VISION,
    attach,
    backbone,
    batch,
    close,
    copies,
    differ,
    images,
    lively,
    run,
    same,
    text,
)
from workflow import registry

REPLACEABLE = [name for name in EVERY if name not in OWN_ATTENTION]
WITHOUT_BIASES = ("tiny-modernbert", "tiny-llama", "tiny-mistral", "tiny-qwen3", "tiny-gemma", "tiny-gemma3")
UNSUPPORTED = {"bitfit": (*WITHOUT_BIASES, *ENCODER_DECODERS), "head": ENCODER_DECODERS}
METHODS = ("lora", "ia3", "houlsby", "bitfit", "full", "head")
ATTACHED = [(method, name) for method in METHODS for name in EVERY if name not in UNSUPPORTED.get(method, ())]
EMBEDDING_WIDTH = dict.fromkeys(EVERY, 32) | {"tiny-opt-post": 16, "tiny-swin": 16}
TOKENS = dict.fromkeys(EVERY, 64) | dict.fromkeys(VISION, 16) | {"tiny-swin": 256}
TOKENS |= dict.fromkeys(("tiny-bloom", "tiny-t5", "tiny-t5-gated"), 0)  # no positions are learned: any length


class Itself(LinearMap):
    """y = W x + b, by way of a map."""

    def __init__(self):
        nn.Module.__init__(self)

    def forward(self, x, base):
        return base(x)


class Delta(LinearMap):
    """A fixed random change of W, a third as large as W."""

    def __init__(self, site):
        nn.Module.__init__(self)
        weight = site.weight()
        noise = torch.empty(weight.shape).normal_(generator=torch.Generator().manual_seed(len(str(site.id))))
        self.change = 0.3 * weight.std() * noise

    def delta(self):
        return self.change


def built(name, **config):
    """A tiny network with some sizes of its own, as a classifier."""
    entry = model_entry(name)
    made = load(replace(entry, config=entry.config | config), labels=3)
    for module in (made.model, made.head):
        lively(module)
    made.train(False)
    return made


def near(left, right):
    """Equal but for rounding, also where logits are large."""
    return close(left, right, 2e-5 * max(1, right.abs().max()))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_every_architecture_has_a_tiny_network(model_type):
    assert model_type in {model_entry(name).architecture for name in EVERY}


# ---- what transformers computes --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "none"])
@pytest.mark.parametrize("name", (*ENCODERS, *DECODERS))
def test_a_text_is_read_as_by_the_plain_network_of_transformers(name, side):
    """Its own attention, mask and positions, from the same weights; compared at real tokens."""
    import transformers

    on, given = backbone(name), text(name, side)
    plain = transformers.AutoModel.from_config(
        configuration(model_entry(name)), attn_implementation="eager", **on.architecture.options
    )
    plain.load_state_dict(on.model.state_dict())
    plain.train(False)
    with torch.no_grad():
        expected = plain(**given.inputs).last_hidden_state
        assert near(on.forward(given).hidden[given.mask], expected[given.mask])


@pytest.mark.parametrize("side", ["left", "none"])
@pytest.mark.parametrize("name", DECODERS)
def test_generation_is_that_of_transformers(name, side):
    on, given = backbone(name, "generation"), text(name, side)
    reference = on.model.generate(**given.inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(on.generate(given, 6), reference[:, given.inputs["input_ids"].shape[1] :])


def test_an_output_layer_of_its_own():
    """T5 v1.1 does not share its table with its output layer, nor scale what goes into it."""
    on = backbone("tiny-t5-gated")
    assert on.model.lm_head.weight is not on.model.shared.weight
    assert on.shape.parameters - backbone("tiny-t5").shape.parameters == 4 * 64 * 32 + 97 * 32


# ---- linear sites ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_replacing_every_site_by_itself_changes_nothing(name):
    on, given = backbone(name), batch(name)
    plain = run(on, given)
    for site in on.map_.linears.values():
        on.map(site, Itself())
    assert torch.equal(run(on, given), plain)


@pytest.mark.parametrize("name", EVERY)
def test_a_delta_at_a_site_equals_writing_it_into_the_weight(name):
    """Each site of the last blocks and outside them alone; a delta matters at every one."""
    on, given = backbone(name), batch(name)
    plain = run(on, given)
    last = {(part, count - 1) for part, count in on.shape.layers.items()}
    for site in on.map_.linears.values():
        if site.id[:2] in last or site.id.layer == -1:
            change = Delta(site)
            on.map(site, change)
            mapped = run(on, given)
            on.restore()
            on.write(site, site.weight() + change.delta(), site.bias())
            assert near(run(on, given), mapped), site.id
            on.restore()
            assert differ(mapped, plain), site.id
    assert torch.equal(run(on, given), plain)


@pytest.mark.parametrize("name", EVERY)
def test_deltas_at_all_sites_together_equal_writing_them(name):
    """Also the slices of one fused weight."""
    on, given = backbone(name), batch(name)
    sites = list(on.map_.linears.values())
    changes = [Delta(site) for site in sites]
    for site, change in zip(sites, changes, strict=True):
        on.map(site, change)
    mapped = run(on, given)
    on.restore()
    for site, change in zip(sites, changes, strict=True):
        on.write(site, site.weight() + change.delta(), site.bias())
    assert near(run(on, given), mapped)


@pytest.mark.parametrize("name", EVERY)
def test_the_activation_acts_on_the_gate_or_else_on_the_up_projection(name):
    on, seen = backbone(name), {}
    for block in (SiteId(part, 1, "block") for part in on.shape.parts):
        gate = block._replace(name="mlp.gate")
        site = on.site(gate if gate in on.map_.linears else block._replace(name="mlp.up"))
        site.module.register_forward_pre_hook(lambda m, a: seen.update(x=a[0]))
        on.map_.modules[block._replace(name="mlp.act")].register_forward_pre_hook(lambda m, a: seen.update(u=a[0]))
        run(on, batch(name))
        assert near(seen["u"], F.linear(seen["x"], site.weight(), site.bias()))


@pytest.mark.parametrize("name", REPLACEABLE)
def test_values_come_from_their_own_site(name):
    on, seen = backbone(name), {}
    core = SiteId(on.shape.parts[0], 1, "attn.core")
    site = on.site(core._replace(name="attn.v"))
    site.module.register_forward_pre_hook(lambda m, a: seen.update(x=a[0]))
    on.attention(core, lambda call, proceed: seen.update(v=call.v) or proceed())
    run(on, batch(name))
    values = F.linear(seen["x"], site.weight(), site.bias()).unflatten(-1, (-1, on.shape.block(core).head_dim))
    assert near(seen["v"], values.transpose(1, 2))


@pytest.mark.parametrize(("name", "index"), [("attn.q", 0), ("attn.k", 1), ("attn.v", 2)])
def test_bloom_lays_queries_keys_and_values_side_by_side_in_each_head(name, index):
    on, x = backbone("tiny-bloom"), torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    site = on.site(SiteId("", 1, name))
    core = on.map_.modules[SiteId("", 1, "attn.core")]
    with torch.no_grad():
        expected = core._reshape(core.query_key_value(x))[index]
    assert near(F.linear(x, site.weight(), site.bias()).unflatten(-1, (4, 8)).transpose(1, 2), expected)


# ---- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_embedding_width_and_longest_input(name):
    found = backbone(name).shape
    assert (found.embedding_width, found.tokens) == (EMBEDDING_WIDTH[name], TOKENS[name])
    assert found.vocab == (0 if name in VISION else 97)


def test_swin_at_its_real_size():
    found = load(model_entry("swin-b"), weights="meta").shape
    widths = [128] * 2 + [256] * 2 + [512] * 18 + [1024] * 2
    assert list(found.blocks.values()) == [BlockShape(w, w // 32, w // 32, 32, 4 * w) for w in widths]
    assert found.tokens == 56 * 56
    assert [s.layer for s in found.linears if s.name == "downsample"] == [0, 1, 2]


@pytest.mark.parametrize("pixels", [28, 32])
def test_windows_of_seven(pixels):
    """14 patches a side make shifted windows and then exactly one; 16 need padding. Real Swins have 7 by 7 windows."""
    on = built("tiny-swin", window_size=7, image_size=pixels)
    given, seen = images("tiny-swin"), {}
    given.inputs["pixel_values"] = given.inputs["pixel_values"][..., :pixels, :pixels]
    run(on, given)  # settles windows
    plain = run(on, given)
    for site in on.map_.linears.values():
        on.map(site, Itself())
    assert torch.equal(run(on, given), plain)
    for layer in (1, 3):
        on.restore()
        block = SiteId("", layer, "block")
        on.branch(block, "attn", lambda x, y, residual: 0 * y + residual)
        on.branch(block, "mlp", lambda x, y, residual: 0 * y)
        module = on.map_.modules[block]
        hooks = [
            module.register_forward_pre_hook(lambda m, a: seen.update(x=a[0])),
            module.register_forward_hook(lambda m, a, out: seen.update(y=out[0])),
        ]
        run(on, given)
        assert close(seen["y"], 2 * seen["x"])
        for hook in hooks:
            hook.remove()


def test_dinov2_reads_images_of_another_size_than_it_was_made_for():
    on, given = backbone("tiny-dinov2"), images("tiny-dinov2")
    given.inputs["pixel_values"] = F.interpolate(given.inputs["pixel_values"], size=24)
    with torch.no_grad():
        assert on.forward(given).hidden.shape == (3, 1 + 36, 32)


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-deit", "tiny-dinov2", "tiny-dinov2-gated"])
def test_a_classifier_of_images_reads_the_class_token(name):
    on = backbone(name)
    with torch.no_grad():
        out = on.forward(images(name))
        assert torch.equal(out.logits, on.head.out(out.hidden[:, 0]))


# ---- places ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REPLACEABLE)
def test_attention_that_only_proceeds_changes_nothing(name):
    on, given = backbone(name), batch(name)
    plain, calls = run(on, given), []
    for site in [s for s in on.map_.modules if s.name in ("attn.core", "cross.core")]:
        on.attention(site, lambda call, proceed: calls.append(call) or proceed())
    assert torch.equal(run(on, given), plain)
    assert len(calls) == len([s for s in on.map_.linears if s.name in ("attn.q", "cross.q")])


@pytest.mark.parametrize("name", OWN_ATTENTION)
def test_attention_of_its_own_cannot_be_replaced(name):
    with pytest.raises(Unsupported, match="computes its attention itself"):
        backbone(name).attention(SiteId("", 0, "attn.core"), lambda call, proceed: proceed())


@pytest.mark.parametrize(
    ("name", "config", "equal"),
    [
        ("tiny-qwen2", {"use_sliding_window": False, "layer_types": None}, True),
        ("tiny-qwen2", {"layer_types": ["sliding_attention"] * 2}, True),
        ("tiny-qwen2", {}, False),
        ("tiny-modernbert", {"global_attn_every_n_layers": 1}, True),
        ("tiny-deberta", {"conv_kernel_size": 3}, False),
    ],
)
def test_whether_the_first_block_can_run_the_stack_depends_on_the_configuration(name, config, equal):
    on, given = built(name, **config), text(name)
    assert on.architecture.equal_blocks == equal
    if equal:
        plain = run(on, given)
        on.around("stack", lambda call: call.proceed())
        assert near(run(on, given), plain)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_convolution_of_large_debertas_does_not_see_padding_and_has_its_biases_counted(side):
    on, given = built("tiny-deberta", conv_kernel_size=3), text("tiny-deberta", side)
    alone = text("tiny-deberta", lengths=(4, 4, 4))
    alone.inputs["input_ids"][:] = given.inputs["input_ids"][1, given.mask[1]]
    assert near(run(on, given)[1], run(on, alone)[1])
    vectors = {n: p for n, p in on.model.named_parameters() if n.endswith("bias")}
    assert sum(on.shape.biases.values()) == sum(p.numel() for p in vectors.values())
    assert on.shape.norms[SiteId("", -1, "norm.conv")] == (32, True)


# ---- calibration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "none"])
@pytest.mark.parametrize("name", (*ENCODERS, *DECODERS))
def test_calibration_sees_every_real_token_once_at_every_site(name, side):
    """Padding is left out where the feed-forward sees flat tokens too, and so are DeBERTa's relative positions."""
    on, given, rows = backbone(name), text(name, side), {}
    sites = [s for s in on.map_.linears.values() if s.id.layer >= 0]
    with on.inputs(sites, lambda site, seen: rows.setdefault(site, []).append(seen)), torch.no_grad():
        for _ in range(2):
            on.forward(given)
    for site in sites:
        assert [len(seen) for seen in rows[site.id]] == [given.tokens] * 2, site.id


def test_calibration_of_deberta_knows_a_text_as_long_as_its_relative_positions():
    on, given, seen = backbone("tiny-deberta"), text("tiny-deberta", lengths=(16,)), []
    assert on.map_.modules[SiteId("", -1, "embed.relative")].weight.shape[0] == 16
    with on.inputs(on.sites(("attn.q",), layers=(0,)), lambda site, rows: seen.append(rows)), torch.no_grad():
        on.map_.modules[SiteId("", 0, "block")].register_forward_pre_hook(lambda m, a: seen.append(a[0][0]))
        on.forward(given)
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])


# ---- methods -------------------------------------------------------------------------------------------------------


def method(name):
    return registry.load_method(registry.methods()[name]).create({})


@pytest.mark.parametrize(("name", "model"), [(name, model) for name, models in UNSUPPORTED.items() for model in models])
def test_a_method_with_nothing_to_train_says_so(name, model):
    assert method(name).supports(backbone(model).shape, None)


@pytest.mark.parametrize(("name", "model"), ATTACHED)
def test_a_method_attaches_counts_and_detaches(name, model):
    on, given, made = backbone(model), batch(model), method(name)
    assert made.supports(on.shape, None) is None
    before, plain = copies(on.model), run(on, given)
    classes = [type(module) for module in on.model.modules()]
    attach(made, on)
    expected = made.expected_parameters(on.shape).resolved(made.mergeable)
    assert sum(p.numel() for p in made.trained()) == expected.trained
    assert sum(t.numel() for t in made.state_dict().values()) == expected.stored
    if made.identity_at_init:
        assert near(run(on, given), plain)
    made.detach()
    assert same(copies(on.model), before) and torch.equal(run(on, given), plain)
    assert [type(module) for module in on.model.modules()] == classes

    task = "generation" if on.head is None else "classification"
    empty, again = load(model_entry(model), task, 3, weights="meta"), method(name)
    with torch.device("meta"):
        again.planned = again.plan(empty.shape)
        again.attach(empty, None)
    assert sum(p.numel() for p in again.trained()) == expected.trained
    assert empty.shape == on.shape


@pytest.mark.parametrize("name", EVERY)
def test_half_precision_is_near_full_precision(name):
    half, full, given = backbone(name, dtype=torch.bfloat16), backbone(name), batch(name, "left")
    lively(half.model, std=0.15)
    full.model.load_state_dict({key: value.float() for key, value in half.model.state_dict().items()})
    expected = run(full, given)
    assert (run(half, given).float() - expected).norm() < 0.05 * expected.norm()
