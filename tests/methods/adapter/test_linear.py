"""Hydra and R-Adapter: linear adapters behind a linear map, each against its formula written another way."""

import pytest
import torch
import torch.nn.functional as F

from methods.adapter.hydra import Hydra
from methods.adapter.r_adapter import RAdapter
from methods.lowrank.lora import LoRA
from models.shape import LinearShape
from tests.helpers import attach, backbone, batch, close, copies, differ, lively, run, same, trained
from workflow.count import count

OUT, IN = 12, 20


def random(*size, seed=0):
    return torch.empty(size, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(seed))


W, b, x = random(OUT, IN, seed=1), random(OUT, seed=2), random(5, IN, seed=3)


def base(z):
    return F.linear(z, W, b)


def made(plugin, bias=True, **settings):
    """The plugin's map of one site in float64 with values in everything that is trained."""
    module = plugin.Map(LinearShape(OUT, IN, bias), plugin.create(settings).settings, None).double()
    with torch.no_grad():
        module.initialise(W, b, torch.Generator().manual_seed(0), None)
        for index, parameter in enumerate(module.parameters()):
            parameter.add_(random(*parameter.shape, seed=10 + index))
    return module.eval()


class TestHydra:
    def slow(self, module, s):
        """Output by output: sums over the entries of each vector, the branches one after the other."""
        rows = []
        for row in x:
            h = [sum(W[o, i] * row[i] for i in range(IN)) + b[o] for o in range(OUT)]
            y = list(h)
            for A, B, z in ((module.A_p, module.B_p, row), (module.A_s, module.B_s, h)):
                hidden = [
                    sum(w * v for w, v in zip(A.weight[k], z, strict=True)) + A.bias[k] for k in range(len(A.bias))
                ]
                for o in range(OUT):
                    y[o] = y[o] + s * (sum(w * v for w, v in zip(B.weight[o], hidden, strict=True)) + B.bias[o])
            rows.append(torch.stack(y))
        return torch.stack(rows)

    def test_the_formula(self):
        module = made(Hydra, parallel_rank=3, sequential_rank=2, scale=0.7)
        assert close(module(x, base), self.slow(module, 0.7), 1e-10)

    @pytest.mark.parametrize("bias", [True, False])
    def test_merging(self, bias):
        module = made(Hydra, bias=bias, scale=0.7)
        assert (module.B_s.bias is not None) == bias
        assert close(F.linear(x, *module.weight(W, b)), module(x, base), 1e-10)

    def test_without_the_sequential_branch_it_is_lora(self):
        module, lora = made(Hydra, bias=False, parallel_rank=3, scale=0.5), made(LoRA, rank=3, alpha=1.5)
        with torch.no_grad():
            module.B_s.weight.zero_()
            lora.A.copy_(module.A_p.weight)
            lora.B.copy_(module.B_p.weight)
        assert close(module(x, base), lora(x, base), 1e-12)

    def test_without_the_parallel_branch_it_multiplies_the_output(self):
        module = made(Hydra, bias=False, scale=0.5)
        with torch.no_grad():
            module.B_p.weight.zero_()
        factor = torch.eye(OUT, dtype=torch.float64) + 0.5 * module.B_s.weight @ module.A_s.weight
        assert close(module(x, base), base(x) @ factor.T, 1e-12)

    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama", "tiny-gpt2"])
    def test_merged_networks_compute_the_same(self, name):
        on, given, method = backbone(name), batch(name), Hydra.create({"scale": 0.5})
        before = copies(on.model)
        attach(method, on)
        lively(method.parts, std=0.2)
        expected = run(on, given)
        method.merge()
        assert close(run(on, given), expected, 1e-5 * max(1, expected.abs().max()))
        method.detach()
        assert same(copies(on.model), before)

    @pytest.mark.parametrize(
        ("model", "settings", "published"),
        [
            ("vit-b16", {}, 239_712),
            ("vit-b16", {"bias": False}, 202_752),
            ("roberta-base", {"sites": ["mlp.down"], "parallel_rank": 4, "sequential_rank": 8, "bias": False}, 331_776),
        ],
    )
    def test_counts(self, model, settings, published):
        """VTAB-1k: 239,712 and heads of 38,045 on average are the published 0.28M; RoBERTa: the published 0.3M."""
        counted = count("hydra", model, settings)
        assert counted["trained"] == published and counted["agrees"] and counted["added_at_inference"] == 0


class TestRAdapter:
    @pytest.mark.parametrize("rank", [None, 3])
    @pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
    def test_the_formula_in_rows_and_merged(self, rank, alpha):
        module = made(RAdapter, rank=rank, alpha=alpha)
        module.restart()
        adp = module.factors[0] if rank is None else module.factors[0] @ module.factors[1]
        scaled = torch.eye(OUT, dtype=torch.float64) + alpha * adp
        assert close(module(x, base), base(x) @ scaled, 1e-10)
        weight, bias = module.weight(W, b)
        assert close(weight, (W.T @ scaled).T, 1e-10) and close(bias, b @ scaled, 1e-10)

    def test_the_merged_weight_is_linear_in_alpha(self):
        at = [made(RAdapter, alpha=alpha) for alpha in (0.0, 0.5, 1.0)]
        for module in at:
            module.restart()
        none, half, whole = (module.weight(W, b)[0] for module in at)
        assert torch.equal(none, W) and close(half, (none + whole) / 2, 1e-12)

    @pytest.mark.parametrize("g", [0.0, 1.25])
    def test_training_sees_the_trained_weight_and_its_drop(self, g):
        module = made(RAdapter).train()
        module.g = g
        assert close(module(x, base), base(x) + g * base(x) @ module.factors[0], 1e-12)

    def test_the_average_after_equal_updates(self):
        """W~_n = m^n W~_0 + (1 - m^n) W."""
        module = made(RAdapter)
        start, m = module.average0.clone(), 0.9
        for _ in range(7):
            module.average(m)
        assert close(module.average0, m**7 * start + (1 - m**7) * module.factors[0], 1e-12)

    def test_on_average_a_drop_changes_nothing(self):
        method, on = RAdapter(), backbone("tiny-bert")
        context, drawn = attach(method, on), []
        for _ in range(2000):
            method.on_step_start(None, context)
            drawn += [module.g for module in method.maps().values()]
        assert set(drawn) == {0.0, 1.25} and abs(sum(drawn) / len(drawn) - 1) < 0.02

    @pytest.mark.parametrize("settings", [{"m": 0.5}, {"m": 0.5, "rank": 2}])
    def test_what_is_stored_is_the_average(self, settings):
        context = trained(RAdapter.create(settings), lr=0.05)
        method, given = context.method, batch("tiny-bert")
        state, expected = method.state_dict(), run(context.backbone, given)
        assert all(differ(state[name], p, 1e-4) for name, p in method.parts.named_parameters() if "factors" in name)
        fresh, on = RAdapter.create(settings), backbone("tiny-bert")
        attach(fresh, on)
        on.head.load_state_dict(context.backbone.head.state_dict())
        fresh.load_state_dict(state)
        fresh.parts.train(False)
        assert torch.equal(run(on, given), expected)
        assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in method.trained())

    def test_the_average_follows_a_checkpoint(self):
        """Weights that are put back bring their average with them."""
        context = trained(RAdapter.create({"m": 0.5}), lr=0.05)
        weights, expected = context.weights(), run(context.backbone, batch("tiny-bert"))
        with torch.no_grad():
            for module in context.method.maps().values():
                module.average0.zero_()
        context.load_weights(weights)
        assert torch.equal(run(context.backbone, batch("tiny-bert")), expected)

    @pytest.mark.parametrize(("settings", "published"), [({}, 14_155_776), ({"rank": 8}, 12 * 4 * 768 * 8)])
    def test_counts(self, settings, published):
        """The image encoder's part of the published 20.5M for CLIP ViT-B/16, 2 d^2 a block."""
        counted = count("r_adapter", "vit-b16", settings)
        assert counted["trained"] == counted["stored"] == published and counted["agrees"]
        assert counted["added_at_inference"] == 0
