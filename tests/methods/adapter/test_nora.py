"""NoRA: its rational functions against polynomials written out, the fit to activations, and its start."""

import pytest
import torch
import torch.nn.functional as F

from methods.adapter.nora import Activation, Change, NoRA, fit, rational
from tests.helpers import attach, backbone, batch, close, differ, lively, run
from workflow.count import count

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "relu": F.relu,
}


def random(*size, seed=0):
    return torch.empty(size, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(seed))


def made(act=F.gelu, **settings):
    """An activation in float64 at its start."""
    module = Activation(NoRA.create(settings).settings).double()
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.copy_(random(*parameter.shape, seed=k))
        for B in (module.B_a, module.B_b):
            B.zero_()
        for coefficients, found in zip((module.a_0, module.b_0), fit(act), strict=True):
            coefficients.copy_(found)
    return module


class TestRational:
    def test_written_out(self):
        """One number at a time, powers summed up; the absolute value is around the whole sum."""
        x, a, b = 2 * random(3, 2, 4), random(2, 6, seed=1), random(2, 4, seed=2)
        found = rational(x, a, b)
        for place in torch.cartesian_prod(torch.arange(3), torch.arange(2), torch.arange(4)):
            n, g, c = place.tolist()
            z = x[n, g, c].item()
            above = sum(a[g, i].item() * z**i for i in range(6))
            below = 1 + abs(sum(b[g, j].item() * z ** (j + 1) for j in range(4)))
            assert found[n, g, c].item() == pytest.approx(above / below, rel=1e-10)

    def test_the_identity(self):
        x, a = random(5, 1, 3), torch.tensor([[0.0, 1, 0, 0, 0, 0]], dtype=torch.float64)
        assert torch.equal(rational(x, a, torch.zeros(1, 4, dtype=torch.float64)), x)

    def test_gradients_of_the_change(self):
        """Against finite differences, and what autograd keeps: x and the coefficients."""
        x, a, b = (t.requires_grad_(True) for t in (random(3, 2, 4), random(2, 6, seed=1), random(2, 4, seed=2)))
        a_0, b_0 = random(1, 6, seed=3), random(1, 4, seed=4)
        assert torch.autograd.gradcheck(lambda *t: Change.apply(*t, a_0, b_0), (x, a, b))
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()), lambda t: t):
            change = Change.apply(x, a, b, a_0, b_0)
        assert close(change, rational(x, a, b) - rational(x, a_0, b_0)) and sum(kept) == 24 + 12 + 8 + 6 + 4

    def test_no_poles_and_finite_gradients_far_out(self):
        x = torch.linspace(-50, 50, 2001)[:, None, None].requires_grad_(True)
        a, b = (random(1, n, seed=n).float().requires_grad_(True) for n in (6, 4))
        for y in (rational(x, a, b), Change.apply(x, a, b, a.detach() / 2, b.detach() / 2)):
            found = torch.autograd.grad(y.sum(), (x, a, b))
            assert y.isfinite().all() and all(g.isfinite().all() for g in found)


class TestFit:
    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_it_is_close_where_it_is_fitted(self, name):
        a, b = fit(ACTIVATIONS[name])
        x = torch.linspace(-3, 3, 777, dtype=torch.float64)
        found = rational(x[:, None, None], a[None], b[None]).flatten()
        assert close(found, ACTIVATIONS[name](x), 5e-2 if name == "relu" else 2e-3)
        assert a[1] == pytest.approx(0.5, abs=1e-6), "the odd part is x / 2"

    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_the_denominator_needs_no_absolute_value_there(self, name):
        b, x = fit(ACTIVATIONS[name])[1], torch.linspace(-3, 3, 777, dtype=torch.float64)
        assert b[0] == b[2] == 0 and b[1] > 0 and (b[1] * x**2 + b[3] * x**4).min() >= 0


class TestActivation:
    @pytest.mark.parametrize("name", ACTIVATIONS)
    def test_at_the_start_it_is_the_activation_bit_for_bit(self, name):
        act, x = ACTIVATIONS[name], 10 * random(4, 7, 64)
        assert torch.equal(made(act)(x, act), act(x))

    def test_the_formula_channel_by_channel(self):
        module, x = made(groups=4, rank=2, alpha=3.0), random(5, 12)
        lively(module)
        a = module.a_0 + 1.5 * torch.einsum("gr,ri->gi", module.B_a, module.A_a)
        b = module.b_0 + 1.5 * torch.einsum("gr,rj->gj", module.B_b, module.A_b)
        columns = []
        for channel in range(12):
            z, g = x[:, channel, None, None], channel // 3
            change = rational(z, a[None, g], b[None, g]) - rational(z, module.a_0[None], module.b_0[None])
            columns.append(F.gelu(x[:, channel]) + change.flatten())
        assert close(module(x, F.gelu), torch.stack(columns, 1), 1e-12)

    def test_one_group_reaches_any_coefficients(self):
        module, x = made(groups=1, rank=6), random(5, 8)
        a, b = random(1, 6, seed=3), random(1, 4, seed=4)
        with torch.no_grad():
            module.A_a.copy_(torch.eye(6))
            module.A_b.copy_(torch.eye(6, 4))
            module.B_a.copy_((a - module.a_0) / module.scale)
            module.B_b[:, :4] = (b - module.b_0) / module.scale
        expected = (
            F.gelu(x) + (rational(x[:, None], a, b) - rational(x[:, None], module.a_0[None], module.b_0[None]))[:, 0]
        )
        assert close(module(x, F.gelu), expected, 1e-10)


@pytest.mark.parametrize(
    "name", ["tiny-bert", "tiny-gemma3", "tiny-opt", "tiny-t5-gated", "tiny-modernbert", "tiny-swin"]
)
def test_every_block_has_its_own(name):
    on, given, method = backbone(name), batch(name), NoRA()
    plain = run(on, given)
    attach(method, on)
    assert torch.equal(run(on, given), plain) and len(method.parts) == on.shape.depth
    for module in method.parts.values():
        before = run(on, given)
        lively(module)
        assert differ(run(on, given), before, 1e-5)
    method.detach()
    assert torch.equal(run(on, given), plain)


def test_units_that_make_no_groups_are_refused():
    assert "cannot be cut into 7 groups" in NoRA.create({"groups": 7}).supports(backbone("tiny-bert").shape, None)


def test_counts():
    """r (2 G + 10) a block: 936 in twelve blocks of any width, and 20,236 with ViT-Tiny's head for 100 classes, which
    is published as 0.02M."""
    counted = count("nora", "vit-b16", {})
    assert counted["trained"] == counted["stored"] == counted["added_at_inference"] == 12 * 78 == 936
    assert counted["agrees"] and round(936 + 100 * (192 + 1), -4) == 20_000
