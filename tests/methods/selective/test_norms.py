"""LayerNorm tuning beside peft, DiffFit beside BitFit and its formula, and published counts."""

import copy

import peft
import pytest
import torch

from methods.selective.bitfit import BitFit
from methods.selective.diffit import DiffFit
from methods.selective.ln_tuning import LNTuning
from models.shape import SiteId
from tests.helpers import attach, backbone, batch, close, gradients, images, run, text
from workflow.count import count

pytestmark = pytest.mark.filterwarnings(
    "ignore:Unsupported layer type:UserWarning", "ignore:.*is_gradient:FutureWarning"
)
PEFT = {
    "tiny-bert": ["LayerNorm"],
    "tiny-llama": ["input_layernorm", "post_attention_layernorm", "norm"],
    "tiny-qwen3": ["input_layernorm", "post_attention_layernorm", "norm"],
    "tiny-vit": ["layernorm_before", "layernorm_after", "layernorm"],
}


class TestLNTuning:
    @pytest.mark.parametrize("name", PEFT)
    def test_three_steps_beside_peft(self, name):
        """The same start, count, and outputs after three steps of AdamW."""
        on = backbone(name, dtype=torch.float64)
        theirs = peft.get_peft_model(copy.deepcopy(on.model), peft.LNTuningConfig(target_modules=PEFT[name])).double()
        method = LNTuning()
        attach(method, on)
        for parameter in method.base_parameters.values():
            parameter.data = parameter.data.double()
        assert sum(p.numel() for p in method.trained()) == theirs.get_nb_trainable_parameters()[0]
        given = batch(name, "none") if name != "tiny-vit" else images(name)
        inputs = {k: v.double() if v.is_floating_point() else v for k, v in given.inputs.items()}
        ours = [on.model, torch.optim.AdamW(method.trained(), lr=1e-2, weight_decay=0.0)]
        trained = [p for p in theirs.parameters() if p.requires_grad]
        before = on.model(**inputs).last_hidden_state.detach()
        for model, stepper in (ours, (theirs, torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0))):
            for _ in range(3):
                stepper.zero_grad()
                model(**inputs).last_hidden_state.pow(3).mean().backward()
                stepper.step()
        found = on.model(**inputs).last_hidden_state
        assert close(found, theirs(**inputs).last_hidden_state, 1e-6) and not close(found, before, 1e-2)

    def test_norms_are_trained_in_fp32_and_peft_leaves_them_in_bf16(self):
        on, method = backbone("tiny-llama", dtype=torch.bfloat16), LNTuning()
        theirs = peft.get_peft_model(copy.deepcopy(on.model), peft.LNTuningConfig(target_modules=PEFT["tiny-llama"]))
        attach(method, on)
        assert {p.dtype for p in method.trained()} == {torch.float32}
        assert {p.dtype for p in theirs.parameters() if p.requires_grad} == {torch.bfloat16}

    @pytest.mark.parametrize(("name", "norms"), [("tiny-qwen3", 5), ("tiny-gemma3", 9)])
    def test_norms_of_queries_and_keys_stay_frozen(self, name, norms):
        method = LNTuning()
        attach(method, backbone(name))
        assert len(method.base_parameters) == norms
        assert not any(".norm.q" in n or ".norm.k" in n for n in method.base_parameters)

    def test_a_weight_of_a_norm_is_one_of_the_columns_that_read_it(self):
        """w and b times c, the weights of the maps behind by 1 / c: the same network."""
        on, given = backbone("tiny-vit"), images("tiny-vit")
        before = run(on, given)
        method = LNTuning()
        attach(method, on)
        with torch.no_grad():
            for name in ("weight", "bias"):
                method.base_parameters[f"1.norm.mlp.{name}"].mul_(2.0)
            on.site(SiteId("", 1, "mlp.up")).weight().div_(2.0)
        assert close(run(on, given), before)

    def test_a_choice_of_norms_that_are_not_there_is_refused(self):
        reason = LNTuning.create({"sites": ["norm.cross"]}).supports(backbone("tiny-bert").shape, None)
        assert "none of the norms norm.cross" in reason


def alive(method):
    """Every factor away from one."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in method.parts.named_parameters():
            assert name.endswith("gamma")
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=rng))
    return {name.replace("/", "."): part.gamma for name, part in method.parts.items()}


class TestDiffFit:
    BRANCHES = {
        "tiny-vit": ("layers.{}.attention", "layers.{}.mlp"),
        "tiny-llama": ("layers.{}.self_attn", "layers.{}.mlp"),
        "tiny-dinov2": ("encoder.layer.{}.layer_scale1", "encoder.layer.{}.layer_scale2"),
        "tiny-bert": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
    }

    @pytest.mark.parametrize("name", BRANCHES)
    def test_as_hooks_on_the_branches(self, name):
        """In DINOv2 behind its layer scale, just before the residual."""
        on = backbone(name)
        plain, method = copy.deepcopy(on), DiffFit()
        attach(method, on)
        gammas = alive(method)
        for layer in range(2):
            for site, path in zip(("attn.o", "mlp.down"), self.BRANCHES[name], strict=True):
                gamma = gammas[f"{layer}.{site}"]

                def scaled(module, args, out, gamma=gamma):
                    return (out[0] * gamma, *out[1:]) if isinstance(out, tuple) else out * gamma

                plain.base.get_submodule(path.format(layer)).register_forward_hook(scaled)
        given = batch(name)
        assert close(run(on, given), run(plain, given), 1e-4)

    @pytest.mark.parametrize("other", [BitFit, LNTuning])
    def test_gradients_at_the_start_are_those_of_bitfit_and_of_norm_tuning(self, other):
        given, found = text("tiny-bert"), []
        for plugin in (DiffFit, other):
            on, method = backbone("tiny-bert"), plugin()
            attach(method, on)
            names = list(method.base_parameters)
            found.append(dict(zip(names, gradients(on, given, list(method.base_parameters.values())), strict=True)))
        assert found[1].keys() < found[0].keys()
        for name, gradient in found[1].items():
            assert close(found[0][name], gradient, 1e-6), name

    def test_a_factor_of_zero_turns_a_branch_off(self):
        on, method, given = backbone("tiny-vit"), DiffFit(), images("tiny-vit")
        attach(method, on)
        with torch.no_grad():
            method.parts["1/attn/o"].gamma.zero_()
            method.parts["1/mlp/down"].gamma.zero_()
        on.taps()
        run(on, given)
        first, second = (on.state.taps[SiteId("", layer, "block")] for layer in range(2))
        assert torch.equal(first, second)

    def test_what_is_trained(self):
        on, method = backbone("tiny-llama"), DiffFit()
        attach(method, on)
        assert set(method.base_parameters) == {f"{site}.weight" for site in on.shape.norms}
        assert len(method.parts) == 4


EXACT = [
    ("ln_tuning", "llama-3.2-3b", {}, 175_104, "huggingface/peft method comparison"),
    ("ln_tuning", "llama-7b", {}, 266_240, "the paper's 0.004 %"),
    ("ln_tuning", "bert-base", {}, 38_400, "25 layer norms"),
    ("ln_tuning", "vit-b16", {}, 38_400, "25 layer norms"),
    ("diffit", "vit-b16", {}, 140_544, "biases 102,912, norms 19,200, factors 18,432"),
    ("diffit", "vit-b16", {"layers": [0, 1, 2, 3, 4, 5]}, 131_328, "factors in the first half"),
]


class TestCounts:
    @pytest.mark.parametrize(("method", "model", "settings", "published", "source"), EXACT)
    def test_attached_and_closed_form_meet_the_count(self, method, model, settings, published, source):
        counted = count(method, model, settings)
        assert counted["trained"] == counted["expected"]["trained"] == published, source
        assert counted["agrees"] and counted["added_at_inference"] == 0

    def test_norms_of_llama_as_they_are_printed(self):
        counted = count("ln_tuning", "llama-7b", {})
        assert f"{100 * counted['trained'] / counted['backbone']:.3f}" == "0.004"
