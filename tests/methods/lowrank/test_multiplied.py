"""LoRMA, BoRA, MAP and DeLoRA: maps that multiply or normalise, each against its formula written another way."""

import pytest
import torch
import torch.nn.functional as F
from peft import DeloraConfig, LoraConfig, get_peft_model
from torch import nn

from methods.lowrank.bora import BoRA
from methods.lowrank.delora import DeLoRA
from methods.lowrank.lora import LoRA
from methods.lowrank.lorma import LoRMA
from methods.lowrank.map import MAP
from models.shape import LinearShape
from tests.helpers import attach, backbone, batch, close, copies, lively, run, same, trained
from workflow.count import count

OUT, IN, RANK = 12, 20, 3
SETTINGS = {"rank": RANK, "dropout": 0.0}


def random(*size, seed=0):
    return torch.empty(size, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(seed))


W, b, x = random(OUT, IN, seed=1), random(OUT, seed=2), random(5, IN, seed=3)


def base(z):
    return F.linear(z, W, b)


def made(plugin, fill=True, **settings):
    """The plugin's map of one site in float64, at its start, or with other values in everything that is trained."""
    method = plugin.create(SETTINGS | settings)
    kind = plugin.PiMap if settings.get("variant") == "pi" else plugin.Map
    shape = LinearShape(OUT, IN, True)
    at_site = kind(shape, method.settings, None).double()
    at_site.W = lambda: W
    with torch.no_grad():
        at_site.initialise(W, b, torch.Generator().manual_seed(0), None)
        for index, parameter in enumerate(p for p in at_site.parameters() if p.requires_grad and fill):
            parameter.add_(random(*parameter.shape, seed=10 + index))
    assert sum(p.numel() for p in at_site.parameters() if p.requires_grad) == expected(method)
    return at_site


def expected(method):
    """The closed form of one site."""

    class Shape:
        def at(self, *_):
            return iter([LinearShape(OUT, IN, True)])

    return method.expected_parameters(Shape()).trained


def agrees(at_site, dense):
    """Output and merged weight are those of the dense W'."""
    weight, bias = at_site.weight(W, b)
    assert close(weight, dense, 1e-10) and torch.equal(bias, b)
    assert close(at_site(x, base), F.linear(x, dense, b), 1e-10)


ALL = [(LoRMA, {}), (LoRMA, {"variant": "pi", "alpha": 6.0}), (BoRA, {}), (MAP, {}), (DeLoRA, {})]


class TestEach:
    @pytest.mark.parametrize(("plugin", "settings"), ALL)
    def test_at_the_start_the_weight_is_the_pretrained_one(self, plugin, settings):
        agrees(made(plugin, fill=False, **settings), W)

    @pytest.mark.parametrize(("plugin", "settings"), ALL)
    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2", "tiny-swin"])
    def test_merged_weights_compute_the_same(self, plugin, settings, name):
        on, given, method = backbone(name), batch(name), plugin.create(SETTINGS | settings)
        before, plain = copies(on.model), run(on, given)
        attach(method, on)
        assert close(run(on, given), plain, 1e-4 * plain.abs().max())
        lively(method.parts, std=0.2)
        learned = run(on, given)
        method.merge()
        assert close(run(on, given), learned, 1e-4 * learned.abs().max())
        method.detach()
        assert same(copies(on.model), before)

    @pytest.mark.parametrize("plugin", [LoRMA, BoRA, MAP, DeLoRA])
    def test_only_what_is_trained_is_stored(self, plugin):
        context = trained(plugin.create(SETTINGS))
        method = context.method
        assert sum(t.numel() for t in method.state_dict().values()) == sum(p.numel() for p in method.trained())


def turned(M):
    """Row i of a square matrix moved i places to the right, one entry after another."""
    out = torch.empty_like(M)
    for i in range(len(M)):
        for j in range(len(M)):
            out[i, (j + i) % len(M)] = M[i, j]
    return out


class TestLoRMA:
    def test_plus_by_a_dense_multiplier(self):
        at_site = made(LoRMA, alpha=6.0)
        agrees(at_site, (torch.eye(OUT) + 2 * at_site.B @ at_site.A) @ W)

    def test_plus_is_lora_with_a_projected_weight_as_its_first_factor(self):
        at_site = made(LoRMA, alpha=6.0)
        lora = LoRA.Map(LinearShape(OUT, IN, True), LoRA.create({"rank": RANK, "alpha": 6.0}).settings, None).double()
        with torch.no_grad():
            lora.A.copy_(at_site.A @ W)
            lora.B.copy_(at_site.B)
        assert close(at_site(x, base), lora(x, base), 1e-10)

    @pytest.mark.parametrize("alpha", [3.0, 6.0])
    def test_pi_by_a_dense_multiplier(self, alpha):
        at_site = made(LoRMA, variant="pi", alpha=alpha)
        agrees(at_site, alpha / RANK * turned(at_site.B @ at_site.A) @ W)

    def test_pi_lifts_the_rank(self):
        at_site = made(LoRMA, variant="pi", alpha=3.0)
        assert torch.linalg.matrix_rank(at_site.B @ at_site.A) == RANK
        assert torch.linalg.matrix_rank(at_site.multiplier()) == OUT

    def test_pi_of_ones_is_ones(self):
        at_site = made(LoRMA, variant="pi", alpha=3.0)
        with torch.no_grad():
            at_site.A.fill_(1 / RANK)
            at_site.B.fill_(1.0)
        assert close(at_site.multiplier(), torch.ones(OUT, OUT, dtype=torch.float64), 1e-12)

    def test_pi_starts_with_ones_in_the_first_column_and_random_numbers_behind(self):
        at_site = made(LoRMA, fill=False, variant="pi", alpha=3.0)
        assert (at_site.B[:, 0] == 1).all() and (at_site.B[:, 1:].abs() < RANK**-0.5).all()
        assert (at_site.B[:, 1:] != 0).all() and at_site.A.sum() == 1

    def test_the_dropout_hits_the_pretrained_path_too(self):
        at_site = made(LoRMA, dropout=0.5)
        ones = torch.ones(1, IN, dtype=torch.float64)
        torch.manual_seed(0)
        dropped = at_site(ones, base)
        torch.manual_seed(0)
        assert close(dropped, at_site.eval()(F.dropout(ones, 0.5), base), 1e-10)

    def test_another_variant_is_an_error(self):
        with pytest.raises(ValueError, match="'plus' or 'pi'"):
            LoRMA.create({"variant": "post"})


def by_rows_then_columns(V, m_r, m_c):
    """BoRA's two steps with loops."""
    H = torch.stack([m * row / row.square().sum().sqrt() for m, row in zip(m_r, V, strict=True)])
    columns = [m * column / column.square().sum().sqrt() for m, column in zip(m_c, H.T, strict=True)]
    return torch.stack(columns).T


class TestBoRA:
    def test_by_loops_over_rows_and_columns(self):
        at_site = made(BoRA, alpha=6.0)
        agrees(at_site, by_rows_then_columns(W + 2 * at_site.B @ at_site.A, at_site.m_r, at_site.m_c))

    def test_the_columns_have_their_magnitude(self):
        at_site = made(BoRA)
        weight, _ = at_site.weight(W, b)
        assert close(weight.norm(dim=0), at_site.m_c.abs(), 1e-10)

    def test_a_common_factor_of_the_rows_is_taken_out_again(self):
        at_site = made(BoRA)
        before, _ = at_site.weight(W, b)
        with torch.no_grad():
            at_site.m_r.mul_(7)
        assert close(at_site.weight(W, b)[0], before, 1e-10)

    def test_without_the_columns_it_is_the_dora_of_peft(self):
        at_site = made(BoRA, alpha=6.0)
        net = nn.Sequential(nn.Linear(IN, OUT).double())
        net[0].load_state_dict({"weight": W, "bias": b})
        tuned = get_peft_model(net, LoraConfig(r=RANK, lora_alpha=6.0, target_modules=["0"], use_dora=True))
        layer = tuned.base_model.model[0]
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(at_site.A)
            layer.lora_B["default"].weight.copy_(at_site.B)
            layer.lora_magnitude_vector["default"].weight.copy_(at_site.m_r)
            V = W + 2 * at_site.B @ at_site.A
            at_site.m_c.copy_((at_site.m_r / V.norm(dim=1))[:, None].mul(V).norm(dim=0))
        assert close(at_site(x, base), tuned(x), 1e-6)
        layer.merge()
        assert close(at_site.weight(W, b)[0], layer.base_layer.weight, 1e-6)

    def test_no_gradient_flows_through_the_norms(self):
        at_site = made(BoRA, alpha=6.0)
        at_site(x, base).sum().backward()
        f, g = (factor.detach() for factor in at_site.factors(W))
        B = at_site.B.detach().requires_grad_()
        (f * F.linear(g * x, W + 2 * B @ at_site.A)).sum().backward()
        assert close(at_site.B.grad, B.grad, 1e-10)

    def test_rows_and_columns_of_zeros_stay_zero(self):
        at_site, sparse = made(BoRA, fill=False), W.clone()
        sparse[2], sparse[:, 4] = 0, 0
        with torch.no_grad():
            at_site.initialise(sparse, b, torch.Generator().manual_seed(0), None)
        assert close(at_site.weight(sparse, b)[0], sparse, 1e-12)


class TestMAP:
    def test_by_dense_vectors(self):
        at_site = made(MAP)
        w, update = W.flatten(), (at_site.B @ at_site.A).flatten()
        combined = at_site.alpha * w / w.square().sum().sqrt() + at_site.beta * update / update.square().sum().sqrt()
        agrees(at_site, combined.view(OUT, IN))

    def test_the_update_is_as_long_as_beta_says(self):
        at_site = made(MAP)
        rest = at_site.weight(W, b)[0] - at_site.alpha * W / W.norm()
        assert close(rest.norm()[None], at_site.beta.abs(), 1e-10)

    def test_the_size_of_a_factor_does_not_matter(self):
        at_site = made(MAP)
        before = at_site(x, base)
        with torch.no_grad():
            at_site.B.mul_(5)
        assert close(at_site(x, base), before, 1e-10)

    def test_the_norm_by_small_products_is_the_dense_one_and_has_its_gradient(self):
        at_site = made(MAP)
        found = torch.autograd.grad(at_site.update_norm(), [at_site.A, at_site.B])
        norm = (at_site.B @ at_site.A).norm()
        assert close(at_site.update_norm(), norm, 1e-10)
        for left, right in zip(found, torch.autograd.grad(norm, [at_site.A, at_site.B]), strict=True):
            assert close(left, right, 1e-10)

    def test_lora_is_a_special_case(self):
        at_site = made(MAP)
        lora = LoRA.Map(LinearShape(OUT, IN, True), LoRA.create({"rank": RANK, "alpha": 6.0}).settings, None).double()
        with torch.no_grad():
            lora.A.copy_(at_site.A)
            lora.B.copy_(at_site.B)
            at_site.alpha.copy_(W.norm())
            at_site.beta.copy_(2 * (at_site.B @ at_site.A).norm())
        assert close(at_site(x, base), lora(x, base), 1e-10)

    def test_at_the_start_only_the_lengths_get_a_gradient_and_then_all(self):
        at_site = made(MAP, fill=False)
        at_site(x, base).square().sum().backward()
        assert at_site.alpha.grad != 0 and at_site.beta.grad != 0
        assert not at_site.A.grad.any() and not at_site.B.grad.any()
        with torch.no_grad():
            at_site.beta.fill_(0.1)
        at_site(x, base).square().sum().backward()
        assert at_site.A.grad.any() and at_site.B.grad.any()


def rank_one_sum(A, B):
    return sum(torch.outer(c, a) / (c.norm() * a.norm()) for a, c in zip(A, B.T, strict=True))


class TestDeLoRA:
    def test_by_a_sum_of_normalised_outer_products(self):
        at_site = made(DeLoRA)
        change = rank_one_sum(at_site.A, at_site.B) - rank_one_sum(at_site.A0, at_site.B0)
        agrees(at_site, W + at_site.strength / RANK * change @ W.norm(dim=0).diag())

    def test_without_the_subtracted_start_it_is_that_of_peft(self):
        """peft has B = 0 at the start and takes nothing away: with B0 = 0 both are one."""
        at_site = made(DeLoRA)
        net = nn.Sequential(nn.Linear(IN, OUT).double())
        net[0].load_state_dict({"weight": W, "bias": b})
        tuned = get_peft_model(net, DeloraConfig(r=RANK, target_modules=["0"]))
        layer = tuned.base_model.model[0]
        with torch.no_grad():
            at_site.B0.zero_()
            layer.delora_A["default"].copy_(at_site.A)
            layer.delora_B["default"].copy_(at_site.B)
            layer.delora_lambda["default"].copy_(at_site.strength)
        assert close(at_site(x, base), tuned(x), 1e-6)
        assert close(at_site.delta(), layer.get_delta_weight("default"), 1e-6)
        mine = [p.numel() for p in at_site.parameters() if p.requires_grad]
        assert sum(mine) == sum(p.numel() for p in tuned.parameters() if p.requires_grad)

    def test_the_first_step_of_adam_is_small_here_and_of_full_size_in_peft(self):
        def first_step(zero):
            at_site = made(DeLoRA, fill=False)
            with torch.no_grad():
                for factor in (at_site.B, at_site.B0) if zero else ():
                    factor.zero_()
            optimizer = torch.optim.Adam([at_site.A, at_site.B], lr=1e-3)
            at_site(x, base).square().sum().backward()
            optimizer.step()
            return at_site.delta().norm() / W.norm()

        assert first_step(zero=False) < 0.1 and first_step(zero=True) > 1

    def test_the_norm_of_the_normalised_sum_is_bounded(self):
        at_site = made(DeLoRA)
        A, B = at_site.directions(at_site.A, at_site.B)
        assert (B @ A).norm() <= RANK
        A, B = torch.linalg.qr(at_site.A.T)[0].T, torch.linalg.qr(at_site.B)[0]
        assert close((B @ A).norm(), torch.tensor(RANK**0.5, dtype=torch.float64), 1e-10)

    def test_the_size_of_a_factor_does_not_matter(self):
        at_site = made(DeLoRA)
        before = at_site(x, base)
        with torch.no_grad():
            at_site.B[:, 1] *= 5
        assert close(at_site(x, base), before, 1e-10)

    def test_no_strength_no_update(self):
        at_site = made(DeLoRA)
        with torch.no_grad():
            at_site.strength.zero_()
        assert not at_site.delta().any()

    def test_the_start_has_memory_of_its_own(self):
        at_site = made(DeLoRA, fill=False)
        with torch.no_grad():
            at_site.A.add_(1)
        assert not torch.equal(at_site.A, at_site.A0) and at_site.delta().any()

    def test_the_strength_has_its_own_learning_rate_and_no_decay(self):
        context = trained(DeLoRA.create(SETTINGS), weight_decay=0.1, lr=1e-2)
        rates = {g["params"][0].dim(): (g["initial_lr"], g["weight_decay"]) for g in context.optimizer.param_groups[:2]}
        assert rates == {2: (1e-2, 0.1), 1: (3e-3, 0.0)}


@pytest.mark.parametrize(
    ("method", "model", "settings", "published", "source"),
    [
        ("lorma", "roberta-base", {}, 294_912, "2 r out at q and v, as LoRA"),
        ("bora", "roberta-base", {"rank": 8, "sites": ["attn.q", "attn.v"]}, 331_776, "LoRA and two vectors a site"),
        ("map", "roberta-base", {}, 294_960, "LoRA and two scalars a site"),
        ("delora", "roberta-base", {}, 294_936, "DeLoRA, Table 9 (0.3M)"),
        ("delora", "llama-3.2-3b", {"rank": 32}, 9_175_096, "huggingface/peft method comparison"),
    ],
)
def test_published_counts(method, model, settings, published, source):
    """DeLoRA's are printed. Of the others none was found: theirs are LoRA's printed count and what they add."""
    counted = count(method, model, settings)
    assert counted["trained"] == published, source
    assert counted["agrees"]
