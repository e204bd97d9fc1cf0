"""LoRA-FA: the corrected gradient beside peft's optimiser and beside the projection that it stands for."""

import copy

import peft
import pytest
import torch
from peft.optimizers import lorafa
from torch import nn

from methods.lowrank.ffa_lora import FFALoRA
from methods.lowrank.lora_fa import LoRAFA
from models.shape import LinearShape, SiteId
from tests.helpers import attach, backbone, trained, training
from workflow.count import count


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def single(plugin=LoRAFA, orthonormal=False, **settings):
    """A method with one map (7, 5) on a linear layer, in float64."""
    method, layer, site = plugin.create(settings), nn.Linear(5, 7).double().requires_grad_(False), SiteId("", 0, "x")
    layer.weight.copy_(normal(7, 5, seed=1))
    layer.bias.copy_(normal(7, seed=2))
    module = plugin.Map(LinearShape(7, 5, True), method.settings, None).double()
    module.initialise(layer.weight, layer.bias, torch.Generator().manual_seed(3), None)
    if orthonormal:
        module.A.copy_(torch.linalg.qr(module.A.T)[0].T)
        module.correction.copy_(torch.eye(len(module.A)) / module.scale**2)
    method.maps = lambda: {site: module}
    return method, layer, module


def descend(method, layer, module, optimizer, steps=3):
    """W's change after each step towards a target."""
    x, target, path = normal(4, 5, seed=5), normal(4, 7, seed=6), []
    for _ in range(steps):
        optimizer.zero_grad()
        (module(x, layer) - target).pow(2).sum().backward()
        method.on_gradients(None, None)
        optimizer.step()
        path.append(module.delta().detach().clone())
    return torch.stack(path)


class TestCorrection:
    def test_it_projects_the_gradient_of_w_on_the_rows_of_a(self):
        """s g A = G A^T (A A^T)^-1 A, with the projector from the singular vectors of A."""
        method, layer, module = single(rank=3, alpha=6.0)
        x, g = normal(4, 5, seed=5), normal(4, 7, seed=6)
        module(x, layer).backward(g)
        method.on_gradients(None, None)
        Vh = torch.linalg.svd(module.A.double(), full_matrices=False)[2]
        torch.testing.assert_close(2.0 * module.B.grad @ module.A, g.T @ x @ Vh.T @ Vh)

    def test_for_an_orthonormal_a_it_is_a_number(self):
        """Then the paper's two versions agree under Adam."""
        paths = []
        for plugin in (LoRAFA, FFALoRA):
            method, layer, module = single(LoRAFA, orthonormal=True, rank=3, alpha=6.0)
            if plugin is FFALoRA:
                method.on_gradients = lambda step, ctx: None
            paths.append(descend(method, layer, module, torch.optim.AdamW([module.B], 0.01, eps=1e-200)))
        torch.testing.assert_close(*paths)

    @pytest.mark.parametrize("alpha", [3.0, 12.0])
    def test_against_the_optimiser_of_peft(self, alpha, monkeypatch):
        """peft multiplies in bfloat16 where it can; made to use full precision, it takes the same steps."""
        monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)
        method, layer, module = single(rank=3, alpha=alpha)
        config = peft.LoraConfig(r=3, lora_alpha=alpha, target_modules=["0"])
        model = peft.get_peft_model(nn.Sequential(copy.deepcopy(layer)), config).double()
        tuner = model.base_model.model[0]
        with torch.no_grad():
            tuner.lora_A["default"].weight.copy_(module.A)
        stepper = lorafa.create_lorafa_optimizer(model, 3, alpha, lr=0.01)
        stepper.param_groups[0]["eps"] = 1e-200
        mine = descend(method, layer, module, torch.optim.AdamW([module.B], 0.01, eps=1e-200, weight_decay=0.0))
        x, target, theirs = normal(4, 5, seed=5), normal(4, 7, seed=6), []
        for _ in range(3):
            tuner.zero_grad()
            (tuner(x) - target).pow(2).sum().backward()
            stepper.step()
            theirs.append(tuner.get_delta_weight("default").detach())
        torch.testing.assert_close(mine, torch.stack(theirs), rtol=0, atol=1e-6)
        assert sum(p.numel() for p in tuner.parameters() if p.requires_grad) == module.B.numel()

    def test_without_it_the_method_is_ffa_lora(self):
        class First(LoRAFA):
            def on_gradients(self, step, ctx):
                pass

        plain, ffa = trained(First()), trained(FFALoRA())
        for name, value in ffa.method.state_dict().items():
            assert torch.equal(plain.method.state_dict()[name], value)
        assert not torch.equal(trained(LoRAFA()).method.state_dict()[name], value)


def test_a_is_neither_trained_nor_stored():
    on, method = backbone("tiny-bert"), LoRAFA()
    context = training(on, method, weight_decay=0.1)
    attach(method, on, context)
    start = [site.A.detach().clone() for site in method.maps().values()]
    context.run()
    assert all(torch.equal(site.A, A) for site, A in zip(method.maps().values(), start, strict=True))
    assert {name[-2:] for name in method.state_dict()} == {".B"}


def test_a_rank_above_the_inputs_is_refused():
    assert "rank 33" in LoRAFA.create({"rank": 33}).supports(backbone("tiny-bert").shape, None)


@pytest.mark.parametrize(
    ("model", "settings", "published", "source"),
    [
        ("llama-3.2-3b", {"rank": 32}, 3_670_016, "huggingface/peft method comparison, A at rest"),
        ("roberta-base", {}, 147_456, "by its formula"),
        ("roberta-large", {}, 393_216, "by its formula"),
    ],
)
def test_published_counts(model, settings, published, source):
    counted = count("lora_fa", model, settings)
    assert counted["trained"] == counted["stored"] == published and counted["agrees"], source
