"""Bases in 8 and 4 bits: near the plain network, frozen to the last bit, and a floor that methods stand on."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.adapter.houlsby import Houlsby
from methods.control.full import Full
from methods.lowrank.lora import LoRA
from methods.prompt.ia3 import IA3
from methods.selective.bitfit import BitFit
from models import quantise
from models.backbone import Unsupported
from models.entries import model as model_entry
from models.load import load, pack
from models.quantise import BITSANDBYTES, SCHEMES, QuantisedLinear, base_bytes
from models.shape import SiteId
from tests.helpers import (
    assert_cache_changes_nothing,
    attach,
    backbone,
    batch,
    close,
    copies,
    differ,
    gradients,
    run,
    same,
    text,
    training,
)
from tests.places import lora
from tests.test_pins import DEV
from workflow.errors import AtlasError
from workflow.train import task_loss

NAMES = ("tiny-bert", "tiny-llama", "tiny-vit")
OTHERS = ("tiny-t5", "tiny-swin", "tiny-bloom", "tiny-modernbert", "tiny-opt")  # fused weights, types read in forward
STEP = {"int8": 0.51 / 127, "nf4": 0.18, "bnb-int8": 0.51 / 127}  # of the largest entry of a row, or of a block
Q = SiteId("", 1, "attn.q")

every_scheme = pytest.mark.parametrize("scheme", SCHEMES)


def quantised(name: str, scheme: str, **more):
    on = backbone(name, **more)
    pack(on, scheme, torch.device("cpu"))
    on.train(False)
    return on


def dequantised(name: str, scheme: str):
    """The plain network with the weights that the quantised one acts with."""
    plain, on = backbone(name), quantised(name, scheme)
    for site in plain.map_.linears.values():
        site.write(on.site(site.id).weight(), None)
    return plain


def linear(out: int = 24, inp: int = 40, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inp, out).to(dtype).requires_grad_(False)


@every_scheme
class TestOneMap:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_no_weight_is_off_by_more_than_half_a_step(self, scheme, dtype):
        plain = linear(dtype=dtype)
        W, found = plain.weight.float(), SCHEMES[scheme](plain).unpacked()
        assert found.dtype == dtype and found.shape == W.shape and not found.requires_grad
        rounding = 2**-7 if dtype == torch.bfloat16 else 1e-3
        assert bool(((W - found.float()).abs() <= (STEP[scheme] + rounding) * W.abs().amax()).all())

    def test_output_and_gradient_are_those_of_the_dequantised_weight(self, scheme):
        packed = SCHEMES[scheme](linear())
        x = torch.randn(2, 3, 40, requires_grad=True)
        expected = F.linear(x, packed.unpacked(), packed.bias)
        weighted = torch.randn(2, 3, 24)
        assert close(packed(x), expected)
        wanted = torch.autograd.grad((expected * weighted).sum(), x)[0]
        assert close(torch.autograd.grad((packed(x) * weighted).sum(), x)[0], wanted)

    def test_a_bias_trained_in_fp32_leaves_the_output_in_16_bits(self, scheme):
        packed = SCHEMES[scheme](linear(dtype=torch.bfloat16))
        packed.bias.data = packed.bias.data.float()
        assert packed(torch.randn(2, 40, dtype=torch.bfloat16)).dtype == torch.bfloat16

    def test_rows_of_zeros_stay_zeros(self, scheme):
        plain = linear()
        plain.weight[3] = 0
        assert bool((SCHEMES[scheme](plain).unpacked()[3] == 0).all())

    def test_the_graph_keeps_no_copy_of_the_weight(self, scheme):
        packed, kept = SCHEMES[scheme](linear(256, 256)), []

        def note(tensor):
            kept.append(tensor.numel() * tensor.element_size() if tensor.is_floating_point() else 0)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            packed(torch.randn(1, 256, requires_grad=True))
        assert sum(kept) < 256 * 256


@every_scheme
@pytest.mark.parametrize("name", [*NAMES, *OTHERS])
def test_a_network_computes_what_its_dequantised_weights_say(name, scheme):
    on, given = quantised(name, scheme), batch(name)
    for module in on.model.modules():  # in evaluation LLM.int8() rounds the activations too
        module.training = isinstance(module, QuantisedLinear)
    plain, wanted = run(backbone(name), given), run(dequantised(name, scheme), given)
    assert close(run(on, given), wanted, 1e-3 * float(wanted.abs().max()))
    on.train(False)
    assert (run(on, given) - plain).norm() / plain.norm() < {"int8": 0.1, "nf4": 0.8, "bnb-int8": 0.1}[scheme]


@every_scheme
def test_only_linear_maps_inside_blocks_are_packed(scheme):
    on = quantised("tiny-llama", scheme, task="generation")
    packed = {name for name, module in on.model.named_modules() if isinstance(module, QuantisedLinear)}
    assert len(packed) == 7 * 2 and all(".layers." in name for name in packed)
    assert type(on.model.lm_head) is nn.Linear


@every_scheme
def test_shapes_and_counts_stay_those_of_the_plain_network(scheme):
    for name in (*NAMES, "tiny-bloom"):
        plain, on = backbone(name), quantised(name, scheme)
        assert on.shape == plain.shape
        assert {k: s.shape for k, s in on.map_.linears.items()} == {k: s.shape for k, s in plain.map_.linears.items()}


def test_bytes_count_packed_weights_and_scales():
    """Two blocks of 3072 weights for attention and 6144 for the rest; a scale a row, or a block of 64."""
    weights = 2 * (3072 + 6144)
    rows = 2 * (32 + 16 + 16 + 32 + 64 + 64 + 32)
    plain = base_bytes(backbone("tiny-llama").model)
    assert base_bytes(quantised("tiny-llama", "int8").model) == plain - 4 * weights + weights + 4 * rows
    assert base_bytes(quantised("tiny-llama", "bnb-int8").model) == plain - 4 * weights + weights + 4 * rows
    nested = 14 * (4 + 4)  # of each map: one scale of scales and one offset
    assert (
        base_bytes(quantised("tiny-llama", "nf4").model) == plain - 4 * weights + weights // 2 + weights // 64 + nested
    )


def test_loading_packs_and_counting_does_not():
    entry = model_entry("tiny-llama")
    on, plain = load(entry, quantize="int8"), load(entry)
    assert on.site(Q).quantised and on.shape == plain.shape
    assert close(on.site(Q).weight(), plain.site(Q).weight(), 1e-3)
    assert not load(entry, weights="meta", quantize="int8").site(Q).quantised


@every_scheme
@pytest.mark.parametrize("name", NAMES)
class TestTraining:
    def test_the_loss_falls_and_the_base_stays_as_it_is(self, name, scheme):
        on, given = quantised(name, scheme), batch(name)
        method = LoRA.create({"rank": 4, "sites": ("attn.q", "attn.v")})
        attach(method, on)
        before, losses = copies(on.model), []
        parameters = [*method.trained(), *on.head.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=5e-3)
        for _ in range(8):
            loss = task_loss(on.forward(given), given)
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
            assert all(p.grad is None for p in on.model.parameters())
            assert all(p.grad is not None for p in parameters)
            optimizer.zero_grad()
        assert losses[-1] < 0.7 * losses[0]
        assert same(copies(on.model), before)

    def test_gradients_are_equal_with_checkpointing(self, name, scheme):
        on, given = quantised(name, scheme), batch(name)
        parameters = list(lora(on).parts.parameters())
        plain = gradients(on, given, parameters)
        on.gradient_checkpointing()
        assert all(close(a, b, 1e-6) for a, b in zip(plain, gradients(on, given, parameters), strict=True))

    def test_a_saved_state_gives_the_same_output(self, name, scheme):
        on, given = quantised(name, scheme), batch(name)
        method = lora(on)
        wanted, other = run(on, given), quantised(name, scheme)
        again = LoRA(method.settings)
        attach(again, other)
        assert differ(run(other, given), wanted)
        again.load_state_dict(method.state_dict())
        assert torch.equal(run(other, given), wanted)

    def test_merging_tells_its_error_and_is_undone_to_the_last_bit(self, name, scheme):
        on, given = quantised(name, scheme), batch(name)
        method = lora(on)
        exact, before = run(on, given), copies(on.model)
        site = on.sites(("attn.q",))[0]
        wanted = method.maps()[site.id].merged_weight(site.weight(), site.bias())[0]
        report = method.merge()
        error = (site.weight() - wanted).abs().max()
        assert 0 < error <= report.max_error
        assert not same(copies(on.model), before)
        assert (run(on, given) - exact).norm() / exact.norm() < {"int8": 0.1, "nf4": 1.0, "bnb-int8": 0.1}[scheme]
        method.unmerge()
        assert same(copies(on.model), before) and torch.equal(run(on, given), exact)

    @pytest.mark.parametrize("kind", [LoRA, IA3, BitFit, Houlsby])
    def test_methods_attach_train_and_leave(self, name, scheme, kind):
        on = quantised(name, scheme)
        if kind is BitFit and not on.biases():
            pytest.skip("this network has no bias")
        before, method = copies(on.model), kind()
        attach(method, on)
        given = batch(name)
        found = torch.autograd.grad(task_loss(on.forward(given), given), method.trained(), allow_unused=True)
        assert any(g is not None and bool(g.abs().sum() > 0) for g in found)
        method.detach()
        assert same(copies(on.model), before)


@every_scheme
def test_a_bf16_base_trains_biases_in_fp32(scheme):
    on, given = quantised("tiny-bert", scheme, dtype=torch.bfloat16), batch("tiny-bert")
    method = BitFit()
    attach(method, on)
    loss = task_loss(on.forward(given), given)
    loss.backward()
    assert bool(loss.isfinite()) and all(p.dtype == p.grad.dtype == torch.float32 for p in method.trained())
    assert all(p.dtype == torch.float32 for p in method.trained()), "a forward pass casts no trained bias"


@every_scheme
def test_a_written_weight_comes_back_with_restore(scheme):
    on = quantised("tiny-bloom", scheme)
    before, (q, k) = copies(on.model), on.sites(("attn.q", "attn.k"), (0,))
    others = k.weight()
    on.write(q, torch.ones(32, 32), None)
    assert close(q.weight(), torch.ones(32, 32), 0.01) and (k.weight() - others).abs().max() < 0.2
    on.restore()
    assert same(copies(on.model), before)


@pytest.mark.parametrize("scheme", ["int8", "nf4"])  # what LLM.int8() takes for an outlier depends on the whole batch
def test_generation_with_a_cache_equals_that_without(scheme):
    assert_cache_changes_nothing(quantised("tiny-llama", scheme, task="generation"), text("tiny-llama", "left"))


class TestRefused:
    @every_scheme
    def test_training_packed_weights_in_place(self, scheme):
        on = quantised("tiny-bert", scheme)
        with pytest.raises(Unsupported, match="quantised weights cannot be trained"):
            attach(Full(), on)

    def test_gradients_of_packed_weights(self):
        on = quantised("tiny-bert", "int8")
        with pytest.raises(Unsupported, match="no gradients"):
            on.weight_gradients(on.sites(("attn.q",)), [batch("tiny-bert")], task_loss)

    def test_transposed_weights(self):
        with pytest.raises(Unsupported, match="Conv1D"):
            load(model_entry("tiny-gpt2"), quantize="int8")

    def test_an_unknown_scheme(self):
        with pytest.raises(AtlasError, match="unknown quantize 'int3'"):
            load(model_entry("tiny-bert"), quantize="int3")

    def test_a_missing_package(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
        load(model_entry("tiny-bert"), quantize="int8")
        with pytest.raises(AtlasError) as problem:
            load(model_entry("tiny-bert"), quantize="nf4")
        assert f"pip install {BITSANDBYTES}" in str(problem.value)

    def test_a_device_that_cannot(self, monkeypatch):
        def packed(self, weight):
            raise NotImplementedError("no kernel")

        monkeypatch.setattr(quantise.NF4Linear, "packed", packed)
        with pytest.raises(AtlasError, match="nf4 does not work on cpu: no kernel"):
            load(model_entry("tiny-bert"), quantize="nf4")


def test_the_named_package_is_the_pinned_one():
    name, version = BITSANDBYTES.split("==")
    assert DEV[name] == version


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_steps_of_the_training_loop(scheme):
    on = quantised("tiny-bert", scheme)
    method = LoRA()
    context = training(on, method)
    attach(method, on, context)
    before = copies(on.model)
    context.run()
    assert same(copies(on.model), before)
