"""Methods made of factors of the pretrained weight: each formula once more, in another way, in float64."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import nn

from methods.base import Plan, Step
from methods.base.contract import Phase
from methods.base.factors import fast_svd, ldu, minor, pivoted_qr, qr, svd
from methods.lowrank.edora import EDoRA
from methods.lowrank.loldu import LoLDU
from methods.lowrank.lora import LoRA
from methods.lowrank.lora_xs import LoRAXS
from methods.lowrank.nlora import NLoRA
from methods.lowrank.null_lora import NullLoRA
from methods.lowrank.pissa import PiSSA
from methods.lowrank.pmss import PMSS
from methods.lowrank.qr_lora_delta_r import QRLoRADeltaR
from methods.lowrank.qr_lora_scalar import QRLoRAScalar, steps
from methods.lowrank.soma import SoMA
from methods.lowrank.urae import URAE
from models.backbone import Unsupported
from models.shape import LinearShape, SiteId
from tests.helpers import attach, backbone, close, copies, run, same, text
from workflow.count import count

SITE = SiteId("", 0, "attn.q")
SHAPES = [(8, 8), (10, 7), (6, 9)]


def random(*size, seed=0):
    return torch.empty(*size, dtype=torch.float64).normal_(generator=torch.Generator().manual_seed(seed))


def made(plugin, W, b=None, found=None, seed=3, **settings):
    """The map of one site with weight W, in float64."""
    method = plugin.create(settings)
    if found is not None:
        method.planned = Plan(ranks={SITE: len(found[1])})
    module = method.make_map(SITE, LinearShape(*W.shape, b is not None)).double()
    module.site = SITE
    with torch.no_grad():
        module.initialise(W, b, torch.Generator().manual_seed(seed), found)
    return module


def truncated(W, pick):
    """The sum of sigma u v^T over some components, by numpy."""
    U, S, V = np.linalg.svd(W.numpy(), full_matrices=False)
    total = np.zeros(W.shape)
    for i in range(len(S))[pick]:
        total += S[i] * np.outer(U[:, i], V[i])
    return torch.from_numpy(total)


def stir(module, seed=5):
    """Every trained parameter somewhere else, as training would leave it."""
    with torch.no_grad():
        for i, parameter in enumerate(p for p in module.parameters() if p.requires_grad):
            parameter.add_(0.3 * random(*parameter.shape, seed=seed + i))
    return module


def trained(module):
    return {name for name, p in module.named_parameters() if p.requires_grad}


def output_agrees(module, W, b, expected, bias=None):
    """forward and weight both compute (expected) x + bias."""
    x = random(5, W.shape[1], seed=9)
    zero = torch.zeros(len(W), dtype=torch.float64) if b is None else b
    y = module(x, lambda z: F.linear(z, W, b))
    weight, new = module.weight(W, b)
    assert close(weight, expected, 1e-10)
    assert close(y, x @ expected.T + (zero if bias is None else bias), 1e-10)
    assert new is b or close(new, zero if bias is None else bias, 1e-12)


class TestFactors:
    @pytest.mark.parametrize("size", SHAPES)
    def test_svd_is_that_of_numpy_with_its_signs_fixed(self, size):
        W = random(*size)
        U, S, V = svd(W)
        assert close(U * S @ V, W, 1e-12) and close(S, torch.from_numpy(np.linalg.svd(W, compute_uv=False)), 1e-12)
        assert all(U[:, i][U[:, i].abs().argmax()] > 0 for i in range(len(S)))

    def test_svd_comes_out_the_same_whatever_the_signs_inside(self, monkeypatch):
        W, plain = random(8, 8), torch.linalg.svd
        before = svd(W)
        flip = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)

        def flipped(*args, **kwargs):
            U, S, V = plain(*args, **kwargs)
            return U * flip, S, flip[:, None] * V

        monkeypatch.setattr(torch.linalg, "svd", flipped)
        assert all(torch.equal(a, b) for a, b in zip(before, svd(W), strict=True))

    def test_fast_svd_finds_the_principal_part(self):
        W = truncated(random(40, 30), slice(0, 6)) + 1e-3 * random(40, 30, seed=1)
        U, S, V = fast_svd(W, 6, 8, torch.Generator().manual_seed(0))
        assert close(U * S @ V, truncated(W, slice(0, 6)), 1e-9)

    @pytest.mark.parametrize("size", SHAPES)
    def test_qr_is_gram_schmidt(self, size):
        W = random(*size)
        Q, R = qr(W)
        for i in range(min(size)):
            q = W[:, i].clone()
            for j in range(i):
                q -= (Q[:, j] @ W[:, i]) * Q[:, j]
            assert close(Q[:, i], q / q.norm(), 1e-10)
        assert close(Q @ R, W, 1e-12) and torch.equal(R, R.triu())

    @pytest.mark.parametrize("size", SHAPES)
    def test_pivoted_qr_is_that_of_scipy(self, size):
        W = random(*size)
        Q, R, chosen = pivoted_qr(W, min(size))
        q, r, order = scipy.linalg.qr(W.numpy(), mode="economic", pivoting=True)
        sign = torch.from_numpy(np.sign(np.diag(r)))
        assert chosen.tolist() == order[: min(size)].tolist()
        assert close(Q, torch.from_numpy(q) * sign, 1e-10) and close(Q @ R, W, 1e-12)
        assert close(R[:, order], sign[:, None] * torch.from_numpy(r), 1e-10)
        diagonal = R[range(len(chosen)), chosen]
        assert (diagonal.diff() <= 0).all() and (diagonal > 0).all()

    def test_pivoted_qr_ends_at_the_rank(self):
        Q, R, chosen = pivoted_qr(truncated(random(9, 7), slice(0, 4)), 7)
        assert len(chosen) == Q.shape[1] == len(R) == 4 and close(Q.T @ Q, torch.eye(4, dtype=torch.float64), 1e-12)

    @pytest.mark.parametrize("size", SHAPES)
    def test_ldu(self, size):
        W = random(*size)
        PL, D, U = ldu(W)
        k = min(size)
        assert close(PL * D @ U, W, 1e-12) and PL.abs().max() <= 1
        assert torch.equal(U.diagonal(), torch.ones(k, dtype=torch.float64)) and torch.equal(U, U.triu())
        order = (PL == 0).sum(1).argsort(descending=True, stable=True)[: k - 1]  # rows of L: k - 1, k - 2, ... zeros
        assert torch.equal(PL[order], PL[order].tril()) and (PL[order].diagonal() == 1).all()

    def test_a_singular_matrix_has_no_ldu(self):
        with pytest.raises(Unsupported, match="singular"):
            ldu(torch.ones(4, 4))

    def test_minor_components_of_size_zero_are_warned_of(self):
        with pytest.warns(UserWarning, match="attn.q has fewer than 8 singular values"):
            minor(truncated(random(8, 8), slice(0, 6)), 3, SITE)

    def test_more_factors_than_there_are_is_no_support(self):
        shape = backbone("tiny-llama").shape
        reason = PiSSA.create({"rank": 17}).supports(shape, None)
        assert reason == "rank 17 is more than 0.attn.k has: its weight is 16 x 32"
        assert PiSSA.create({"rank": 16}).supports(shape, None) is None


class TestPiSSA:
    @pytest.mark.parametrize("alpha", [4.0, 16.0])
    @pytest.mark.parametrize("size", SHAPES)
    def test_takes_the_best_approximation_out_of_the_weight(self, size, alpha):
        W, S = random(*size), torch.linalg.svdvals(random(*size))
        module = made(PiSSA, W, rank=4, alpha=alpha)
        rest = W - module.delta().detach()
        assert close(module.delta(), truncated(W, slice(0, 4)), 1e-10)
        assert math.isclose(rest.norm() ** 2, S[4:].square().sum(), rel_tol=1e-10)
        assert math.isclose(torch.linalg.matrix_norm(rest, 2), S[4], rel_tol=1e-10)
        balanced = torch.diag(S[:4]) / (alpha / 4)
        assert close(module.B.T @ module.B, balanced, 1e-10) and close(module.A @ module.A.T, balanced, 1e-10)

    def test_of_full_rank_nothing_is_left(self):
        W = random(6, 9)
        assert close(made(PiSSA, W, rank=6, alpha=6.0).delta(), W, 1e-10)

    @pytest.mark.parametrize("alpha", [4.0, 16.0])
    @pytest.mark.parametrize("start", ["pissa", "pissa_niter_4"])
    def test_is_that_of_peft(self, start, alpha):
        W, x = random(12, 10).float(), random(5, 10).float()
        linear = nn.Sequential(nn.Linear(10, 12))
        linear[0].weight.data.copy_(W)
        bias = linear[0].bias.detach()
        config = peft.LoraConfig(r=4, lora_alpha=alpha, target_modules=["0"], init_lora_weights=start)
        theirs = peft.get_peft_model(linear, config).base_model.model[0]
        ours = made(PiSSA, W.double(), bias, rank=4, alpha=alpha, niter=4 if "niter" in start else 0)
        assert sum(p.numel() for p in ours.parameters()) == sum(
            p.numel() for p in theirs.parameters() if p.requires_grad
        )
        if start == "pissa":
            assert close(ours.delta().float(), theirs.get_delta_weight("default"), 2e-6)
        rest = theirs.base_layer.weight.detach().double()
        theirs.double()
        with torch.no_grad():
            theirs.lora_B["default"].weight.add_(0.1)
            ours.A.copy_(theirs.lora_A["default"].weight)
            ours.B.copy_(theirs.lora_B["default"].weight)
        y = ours(x.double(), lambda z: F.linear(z, rest, bias.double()))
        assert close(y, theirs(x.double()), 1e-6)
        assert close(ours.delta(), theirs.get_delta_weight("default"), 1e-6)

    def test_a_network_is_split_and_put_together_and_comes_back(self):
        on, given, method = backbone("tiny-bert"), text("tiny-bert"), PiSSA.create({"rank": 4, "alpha": 8.0})
        before, plain = copies(on.model), run(on, given)
        weights = {s: on.site(s).weight().clone() for s in method.plan(on.shape).sites}
        attach(method, on)
        assert close(run(on, given), plain, 1e-4)
        for site, module in method.maps().items():
            rest = on.site(site).weight()
            assert close(rest + module.delta(), weights[site], 1e-5)
            assert torch.linalg.matrix_rank(rest, rtol=1e-5) == min(rest.shape) - 4
        method.detach()
        assert same(copies(on.model), before)

    def test_leaves_as_a_plain_lora_of_twice_the_rank(self):
        W = random(10, 7)
        module = made(PiSSA, W, rank=3, alpha=6.0)
        A, B, rest = module.A.detach().clone(), module.B.detach().clone(), W - module.delta()
        stir(module)
        lora = torch.cat([module.B, -B], 1) @ torch.cat([module.A, A])
        assert close(module.weight(rest, None)[0], W + 2 * lora, 1e-10)
        output_agrees(module, rest, None, W + 2 * lora)


class TestMinorComponents:
    @pytest.mark.parametrize("size", SHAPES)
    def test_urae_takes_the_smallest_part_out(self, size):
        W, module = random(*size), made(URAE, random(*size), rank=3)
        U, S, V = svd(W)
        assert close(module.delta(), truncated(W, slice(-3, None)), 1e-10)
        assert close((W - module.delta()) @ V[-3:].T, torch.zeros(size[0], 3, dtype=torch.float64), 1e-10)
        balanced = torch.diag(S[-3:])
        assert close(module.B.T @ module.B, balanced, 1e-10) and close(module.A @ module.A.T, balanced, 1e-10)
        output_agrees(stir(module), W, None, W + module.B @ module.A)

    def test_soma_with_alpha_equal_to_rank_starts_like_urae(self):
        W = random(6, 9)
        urae, soma = made(URAE, W, rank=3), made(SoMA, W, rank=3, alpha=3.0)
        assert torch.equal(urae.A, soma.A) and torch.equal(urae.B, soma.B)

    @pytest.mark.parametrize("alpha", [3.0, 12.0])
    def test_soma(self, alpha):
        W, b, S = random(6, 9), random(6, seed=2), torch.linalg.svdvals(random(6, 9))
        module = made(SoMA, W, b, rank=3, alpha=alpha)
        assert close(module.delta(), truncated(W, slice(-3, None)), 1e-10)
        assert math.isclose(torch.linalg.matrix_norm(module.delta().detach(), 2), S[-3], rel_tol=1e-9)
        assert torch.equal(module.weight(W, b)[1], b) and trained(module) == {"A", "B", "db"}
        stir(module)
        output_agrees(module, W, b, W + alpha / 3 * module.B @ module.A, b + module.db)

    def test_soma_of_full_rank_is_pissa_of_full_rank(self):
        W = random(6, 9)
        soma, pissa = made(SoMA, W, rank=6, alpha=12.0), made(PiSSA, W, rank=6, alpha=12.0)
        assert close(soma.delta(), W, 1e-10) and close(soma.delta(), pissa.delta(), 1e-10)

    def test_soma_leaves_the_first_blocks_alone(self):
        on, method = backbone("tiny-bert"), SoMA.create({"rank": 4, "start_lora_idx": 1})
        attach(method, on)
        assert {site.layer for site in method.maps()} == {1}
        assert SoMA.create({"rank": 4, "start_lora_idx": 2}).supports(on.shape, None)

    def test_soma_trains_no_bias_where_there_is_none(self):
        assert trained(made(SoMA, random(6, 6), rank=3)) == {"A", "B"}

    def test_weight_decay_of_soma_falls_along_half_a_cosine(self):
        method, parameter = SoMA.create({"rank": 4}), nn.Parameter(torch.zeros(1))
        groups = [{"params": [parameter], "weight_decay": 0.05}]
        groups.append({"params": [nn.Parameter(torch.zeros(1))], "weight_decay": 0.0})
        context = SimpleNamespace(optimizer=torch.optim.AdamW(groups, lr=0.0))
        seen = []
        for index in (0, 5, 10):
            method.on_step_start(Step(index, 10, Phase()), context)
            seen.append([group["weight_decay"] for group in context.optimizer.param_groups])
        assert seen == [[0.05, 0.0], [pytest.approx((0.05 + 1e-5) / 2), 0.0], [pytest.approx(1e-5), 0.0]]


class TestLoRAXS:
    @pytest.mark.parametrize("size", SHAPES)
    def test_singular_values_are_on_the_side_of_the_input(self, size):
        W, module = random(*size), made(LoRAXS, random(*size), rank=4, alpha=4.0)
        S = torch.linalg.svdvals(W)[:4]
        assert close(module.B.T @ module.B, torch.eye(4, dtype=torch.float64), 1e-10)
        assert close(module.A @ module.A.T, torch.diag(S**2), 1e-10)
        assert trained(module) == {"R"} and 0 < module.R.abs().max() < 1e-4

    def test_with_the_identity_inside_it_is_the_best_approximation(self):
        W, module = random(10, 7), made(LoRAXS, random(10, 7), rank=4, alpha=4.0)
        with torch.no_grad():
            module.R.copy_(torch.eye(4))
        error = (W - module.delta().detach()).norm() ** 2
        assert math.isclose(error, torch.linalg.svdvals(W)[4:].square().sum(), rel_tol=1e-10)

    def test_entry_by_entry(self):
        W, module = random(6, 9), stir(made(LoRAXS, random(6, 9), rank=4, alpha=8.0))
        U, S, V = svd(W)
        expected = W.clone()
        for i in range(4):
            for j in range(4):
                expected += 2.0 * module.R[i, j].item() * S[j] * torch.outer(U[:, i], V[j])
        output_agrees(module, W, None, expected)


class TestEDoRA:
    @pytest.mark.parametrize("size", SHAPES)
    def test_with_no_core_it_is_the_pretrained_map(self, size):
        W, b = random(*size), random(size[0], seed=2)
        module = made(EDoRA, W, b, rank=4)
        with torch.no_grad():
            module.R.zero_()
        assert close(module.m, W.norm(dim=1), 1e-12) and trained(module) == {"R", "m"}
        output_agrees(module, W, b, W)

    @pytest.mark.parametrize("size", SHAPES)
    def test_against_the_dense_formula(self, size):
        W, b = random(*size), random(size[0], seed=2)
        module = stir(made(EDoRA, W, b, rank=4, alpha=8.0))
        whole = W + 2.0 * module.B @ module.R @ module.A
        assert close(module.norm(), whole.norm(dim=1), 1e-10)
        assert close(module.weight(W, b)[0].norm(dim=1), module.m.abs(), 1e-10)
        output_agrees(module, W, b, module.m[:, None] * whole / whole.norm(dim=1, keepdim=True))

    def test_gradients_do_not_pass_the_norm(self):
        W, b, x = random(10, 7), random(10, seed=2), random(5, 7, seed=9)
        module = stir(made(EDoRA, W, b, rank=4, alpha=8.0))
        module(x, lambda z: F.linear(z, W, b)).square().sum().backward()
        R, m = (p.detach().clone().requires_grad_(True) for p in (module.R, module.m))
        whole = W + 2.0 * module.B @ R @ module.A
        weight = m[:, None] * whole / whole.detach().norm(dim=1, keepdim=True)
        F.linear(x, weight, b).square().sum().backward()
        assert close(module.R.grad, R.grad, 1e-9) and close(module.m.grad, m.grad, 1e-9)

    def test_with_magnitudes_of_its_own_rows_it_is_lora_xs(self):
        W = random(10, 7)
        module, plain = stir(made(EDoRA, W, rank=4)), made(LoRAXS, W, rank=4)
        with torch.no_grad():
            plain.R.copy_(module.R)
            module.m.copy_(module.norm())
        assert torch.equal(module.A, plain.A) and torch.equal(module.B, plain.B)
        output_agrees(module, W, None, plain.weight(W, None)[0])

    def test_is_dora_of_peft_with_frozen_factors(self):
        """huggingface/peft has no EDoRA; its DoRA with B R in the place of B computes the same."""
        W, b, x = random(10, 7), random(10, seed=2), random(5, 7, seed=9)
        module = stir(made(EDoRA, W, b, rank=4, alpha=8.0))
        linear = nn.Sequential(nn.Linear(7, 10, dtype=torch.float64))
        linear.load_state_dict({"0.weight": W, "0.bias": b})
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0"], use_dora=True)
        theirs = peft.get_peft_model(linear, config).base_model.model[0].double()
        with torch.no_grad():
            theirs.lora_A["default"].weight.copy_(module.A)
            theirs.lora_B["default"].weight.copy_(module.B @ module.R)
            theirs.lora_magnitude_vector["default"].weight.copy_(module.m)
        assert close(module(x, lambda z: F.linear(z, W, b)), theirs(x), 1e-10)


class TestPMSS:
    @pytest.mark.parametrize("size", SHAPES)
    def test_the_skeleton_is_columns_and_rows_of_the_weight(self, size):
        W, module = random(*size), made(PMSS, random(*size), rank=4)
        columns = scipy.linalg.qr(W.numpy(), mode="r", pivoting=True)[1][:4]
        rows = scipy.linalg.qr(W.T.numpy(), mode="r", pivoting=True)[1][:4]
        assert torch.equal(module.C, W[:, columns]) and torch.equal(module.R, W[rows])
        assert len(set(columns)) == len(set(rows)) == 4 and trained(module) == {"U"}

    def test_starts_unchanged_and_learns_at_once(self):
        W, module, x = random(10, 7), made(PMSS, random(10, 7), rank=4), random(5, 7, seed=9)
        output_agrees(module, W, None, W)
        module(x, lambda z: F.linear(z, W)).sum().backward()
        assert close(module.U.grad, module.C.T @ torch.ones(10, 5, dtype=torch.float64) @ (module.R @ x.T).T, 1e-10)

    def test_the_inverse_of_the_crossing_gives_the_weight_back(self):
        W = truncated(random(10, 7), slice(0, 4))
        module = made(PMSS, W, rank=4)
        rows = [(row == W).all(1).nonzero().item() for row in module.R]
        columns = [(column == W.T).all(1).nonzero().item() for column in module.C.T]
        with torch.no_grad():
            module.U.copy_(torch.linalg.pinv(W[rows][:, columns]))
        assert close(module.delta(), W, 1e-9)

    def test_entry_by_entry(self):
        W, module = random(6, 9), stir(made(PMSS, random(6, 9), rank=4, scale=0.5))
        expected = W.clone()
        for i in range(4):
            for j in range(4):
                expected += 0.5 * module.U[i, j].item() * torch.outer(module.C[:, i], module.R[j])
        output_agrees(module, W, None, expected)
        assert torch.linalg.matrix_rank(module.delta()) == 4


class TestNLoRA:
    @pytest.mark.parametrize("size", SHAPES)
    def test_starts_from_blocks_of_the_weight(self, size):
        W, module = random(*size), made(NLoRA, random(*size), rank=4, alpha=8.0)
        expected = W.clone()
        for i in range(4):
            for j in range(4):
                expected += 2.0 * W[i, j] * torch.outer(W[:, i], W[j])
        output_agrees(module, W, None, expected)
        assert trained(module) == {"A", "N", "B"}

    def test_slora_starts_unchanged_and_only_the_upper_factor_learns_at_once(self):
        W, module, x = random(10, 7), made(NLoRA, random(10, 7), rank=4, nystrom=False), random(5, 7, seed=9)
        output_agrees(module, W, None, W)
        assert module.A.abs().max() <= 7**-0.5 and module.N.abs().max() <= 4**-0.5
        module(x, lambda z: F.linear(z, W)).square().sum().backward()
        assert module.A.grad.abs().max() == 0 == module.N.grad.abs().max() and module.B.grad.abs().max() > 0

    def test_slora_with_the_identity_inside_is_lora(self):
        W, module = random(10, 7), stir(made(NLoRA, random(10, 7), rank=4, alpha=8.0, nystrom=False))
        lora = made(LoRA, W, rank=4, alpha=8.0)
        with torch.no_grad():
            module.N.copy_(torch.eye(4))
            lora.A.copy_(module.A)
            lora.B.copy_(module.B)
        output_agrees(module, W, None, lora.weight(W, None)[0])

    def test_inttune_trains_the_inner_matrix_alone(self):
        module = made(NLoRA, random(10, 7), rank=4, train_n_only=True)
        assert trained(module) == {"N"} and module.N.numel() == 16

    def test_the_inner_matrix_of_slora_alone_would_never_learn(self):
        shape = backbone("tiny-bert").shape
        assert "needs nystrom" in NLoRA.create({"nystrom": False, "train_n_only": True}).supports(shape, None)


def scalar(W, tau):
    Q, R, chosen = pivoted_qr(W, min(W.shape))
    r = steps(R, chosen, tau)
    return made(QRLoRAScalar, W, found=(Q[:, :r], R[:r]), tau=tau)


class TestQRLoRAScalar:
    @pytest.mark.parametrize("size", SHAPES)
    def test_by_the_paper_with_the_permutation_undone(self, size):
        W, module = random(*size), scalar(random(*size), 0.8)
        output_agrees(module, W, None, W)
        stir(module)
        Q, R, order = scipy.linalg.qr(W.numpy(), mode="economic", pivoting=True)
        P = np.eye(size[1])[:, order]
        expected = W.clone()
        for i, value in enumerate(module.lambda_.tolist()):
            expected += value * torch.from_numpy(np.outer(Q[:, i], R[i] @ P.T))
        output_agrees(module, W, None, expected)
        assert trained(module) == {"lambda_"}

    def test_all_directions_make_the_weight(self):
        W, module = random(6, 9), scalar(random(6, 9), 1.0)
        with torch.no_grad():
            module.lambda_.fill_(-1.0)
        assert len(module.lambda_) == 6 and close(module.weight(W, None)[0], torch.zeros_like(W), 1e-10)

    def test_more_energy_takes_more_directions(self):
        W = random(30, 20)
        _, R, chosen = pivoted_qr(W, 20)
        squares = np.diag(scipy.linalg.qr(W.numpy(), mode="r", pivoting=True)[0]) ** 2
        found = [steps(R, chosen, tau) for tau in (0.0, 0.3, 0.5, 0.9, 0.95, 1.0)]
        assert found == sorted(found) and found[0] == 1 and found[-1] == 20
        for tau, r in zip((0.3, 0.5, 0.9, 0.95), found[1:], strict=False):
            assert squares[:r].sum() >= tau * squares.sum() > squares[: r - 1].sum()

    def test_gradient_of_a_coefficient_is_a_product_with_the_gradient_of_the_weight(self):
        W, module, x = random(10, 7), scalar(random(10, 7), 0.8), random(5, 7, seed=9)
        module(x, lambda z: F.linear(z, W)).square().sum().backward()
        gradient = 2 * (x @ W.T).T @ x
        expected = [(gradient * torch.outer(module.Q[:, i], module.R[i])).sum() for i in range(len(module.R))]
        assert close(module.lambda_.grad, torch.stack(expected).detach(), 1e-9)

    def test_ranks_follow_the_weights_of_a_network(self):
        on, method = backbone("tiny-bert"), QRLoRAScalar.create({"tau": 0.8})
        attach(method, on)
        ranks = {site: len(module.lambda_) for site, module in method.maps().items()}
        assert ranks == method.planned.ranks and all(8 < r < 32 for r in ranks.values()) and not method.found
        low, high = method.expected_parameters(on.shape).trained
        assert (low, high) == (4, 4 * 32) and low < sum(ranks.values()) < high


class TestQRLoRADeltaR:
    @pytest.mark.parametrize("triu", [True, False])
    @pytest.mark.parametrize("size", SHAPES)
    def test_by_the_residual_form_of_the_authors(self, size, triu):
        W = random(*size)
        core = truncated(W, slice(0, 4))
        Q, R = (t.numpy() for t in torch.linalg.qr(core))
        sign = np.sign(np.diag(R)[:4])
        Q, R = Q[:, :4] * sign, sign[:, None] * R[:4]
        module = made(QRLoRADeltaR, W, rank=4, triu=triu)
        assert np.allclose(Q @ R, core, atol=1e-10) and close(module.Q, torch.from_numpy(Q), 1e-8)
        output_agrees(module, W, None, W)
        stir(module)
        change = np.triu(module.dR.detach().numpy()) if triu else module.dR.detach().numpy()
        expected = torch.from_numpy(W.numpy() - Q @ R + Q @ (R + change))
        x = random(5, size[1], seed=9)
        assert close(module(x, lambda z: F.linear(z, W)), x @ expected.T, 1e-7)
        assert close(module.weight(W, None)[0], expected, 1e-7) and trained(module) == {"dR"}

    def test_updates_stay_in_the_span_of_the_principal_vectors(self):
        W, module = random(10, 7), stir(made(QRLoRADeltaR, random(10, 7), rank=3))
        U = svd(W)[0][:, :3]
        assert close(module.Q.T @ module.Q, torch.eye(3, dtype=torch.float64), 1e-10)
        assert close(U @ (U.T @ module.delta()), module.delta(), 1e-9)

    def test_entries_below_the_diagonal_stay_zero(self):
        W, module, x = random(10, 7), made(QRLoRADeltaR, random(10, 7), rank=3), random(5, 7, seed=9)
        optimizer = torch.optim.AdamW([module.dR], lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            module(x, lambda z: F.linear(z, W)).square().sum().backward()
            optimizer.step()
        assert torch.equal(module.dR, module.dR.triu()) and int((module.dR != 0).sum()) == 3 * 7 - 3


class TestLoLDU:
    @pytest.mark.parametrize("size", SHAPES)
    def test_by_the_residual_form_of_the_authors(self, size):
        W = random(*size)
        P, L, U = (torch.from_numpy(t) for t in scipy.linalg.lu(W.numpy()))
        D = U.diagonal()[:4].clone()
        L, U = L[:, :4], (U / U.diagonal()[:, None])[:4]
        module = made(LoLDU, W, rank=4, alpha=2.0, train_scale=True)
        assert close(module.z, D, 1e-10) and module.sigma.item() == 0.5
        output_agrees(module, W, None, W)
        stir(module)
        rest = W - 0.5 * P @ L @ torch.diag(D) @ U
        output_agrees(module, W, None, rest + module.sigma.item() * P @ L @ torch.diag(module.z) @ U)

    def test_the_scale_is_trained_only_if_asked(self):
        assert trained(made(LoLDU, random(6, 9), rank=4)) == {"z"}
        assert trained(made(LoLDU, random(6, 9), rank=4, train_scale=True)) == {"z", "sigma"}

    def test_a_rank_beyond_the_weight_is_all_of_it_and_twice_the_pivots_double_it(self):
        W = random(6, 9)
        module = made(LoLDU, W, rank=768, alpha=768.0)
        assert len(module.z) == 6
        with torch.no_grad():
            module.z.mul_(2)
        output_agrees(module, W, None, 2 * W)


class TestNullLoRA:
    @pytest.mark.parametrize("size", [(12, 12), (10, 16), (16, 10)])
    def test_frozen_halves_see_the_smallest_directions_only(self, size):
        W, module = random(*size), made(NullLoRA, random(*size), rank=6)
        S, eye = torch.linalg.svdvals(W), torch.eye(3, dtype=torch.float64)
        assert close(module.A_f @ module.A_f.T, eye, 1e-10) and close(module.B_f.T @ module.B_f, eye, 1e-10)
        right, left = (torch.linalg.matrix_norm(t, 2) for t in (W @ module.A_f.T, module.B_f.T @ W))
        assert right <= (1e-10 if size[1] > size[0] else S[-3] + 1e-10)
        assert left <= (1e-10 if size[0] > size[1] else S[-3] + 1e-10)

    def test_of_a_square_matrix_they_span_the_last_singular_vectors(self):
        U, _, V = svd(random(12, 12))
        module = made(NullLoRA, random(12, 12), rank=6)
        assert close(module.A_f.T @ module.A_f, V[-3:].T @ V[-3:], 1e-10)
        assert close(module.B_f @ module.B_f.T, U[:, -3:] @ U[:, -3:].T, 1e-10)

    def test_is_half_trained_and_of_full_rank(self):
        W = random(10, 16)
        module, lora = stir(made(NullLoRA, W, rank=6)), made(LoRA, W, rank=3)
        assert torch.linalg.matrix_rank(module.delta()) == 6 and trained(module) == {"A", "B", "s"}
        own = sum(p.numel() for p in module.parameters() if p.requires_grad)
        assert own == sum(p.numel() for p in lora.parameters()) + 6
        expected = W.clone()
        for i in range(3):
            expected += module.s[i].item() * torch.outer(module.B[:, i], module.A_f[i]).detach()
            expected += module.s[3 + i].item() * torch.outer(module.B_f[:, i], module.A[i]).detach()
        output_agrees(module, W, None, expected)

    def test_starts_unchanged_and_both_halves_learn_at_once(self):
        W, module, x = random(10, 16), made(NullLoRA, random(10, 16), rank=6), random(5, 16, seed=9)
        output_agrees(module, W, None, W)
        module(x, lambda z: F.linear(z, W)).square().sum().backward()
        gradient = 2 * (x @ W.T).T @ x
        assert close(module.B.grad, gradient @ module.A_f.T, 1e-9)
        assert close(module.A.grad, module.B_f.T @ gradient, 1e-9)

    def test_an_odd_rank_has_no_half(self):
        assert "has no half" in NullLoRA.create({"rank": 5}).supports(backbone("tiny-bert").shape, None)


ALL_LINEAR = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down"]
LLM_ADAPTERS = ["attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down"]
COUNTS = [
    ("pissa", "llama-2-7b", {"rank": 36}, 89_948_160, "MiSS (89.9M)"),
    ("pissa", "llama-2-13b", {"rank": 64}, 250_347_520, "MiSS (250M)"),
    ("pissa", "llama-2-7b", {}, 319_815_680, "CorDA's table (320M)"),
    ("pissa", "deberta-v3-base", {"rank": 8}, 1_327_104, "PiSSA (1.33M)"),
    ("urae", "roberta-base", {"rank": 8, "sites": ["attn.q", "attn.v"]}, 294_912, "by the formula"),
    ("soma", "vit-l16", {}, 4_718_592 + 147_456, "the authors' code on DINOv2-L, less its mask token of 1,024"),
    ("lora_xs", "roberta-large", {}, 24_576, "LoRA-XS (24.6K)"),
    ("lora_xs", "roberta-large", {"rank": 25}, 60_000, "LoRA-XS (60K)"),
    ("lora_xs", "llama-3-8b", {"rank": 128, "sites": ALL_LINEAR}, 3_670_016, "LoRA-XS (3.67M)"),
    ("lora_xs", "mistral-7b", {"rank": 64, "sites": ALL_LINEAR}, 917_504, "LoRA-XS, quoted by VB-LoRA (0.92M)"),
    ("lora_xs", "gemma-7b", {"rank": 64, "sites": ALL_LINEAR}, 802_816, "LoRA-XS, quoted by VB-LoRA (0.80M)"),
    ("lora_xs", "vit-b16", {"rank": 136, "sites": ALL_LINEAR}, 1_331_712, "PSOFT (1.33M)"),
    ("lora_xs", "llama-3.2-3b", {"rank": 248, "sites": ALL_LINEAR}, 12_054_784, "PSOFT (12.1M)"),
    ("lora_xs", "llama-3-8b", {"rank": 298, "sites": LLM_ADAPTERS}, 14_208_640, "PSOFT (14.2M)"),
    ("edora", "roberta-base", {}, 49_152, "EDoRA (49.2K)"),
    ("pmss", "llama-2-7b", {"rank": 128}, 3_670_016, "by the formula"),
    ("nlora", "llama-2-7b", {}, 319_815_680 + 3_670_016, "NLoRA (3.67M more than LoRA)"),
    ("nlora", "llama-2-7b", {"train_n_only": True}, 3_670_016, "IntTune (1.25 % of LoRA's, by its abstract)"),
    ("qr_lora_delta_r", "llama-2-7b", {"sites": ["attn.o"]}, 32 * 262_144, "half of LoRA's"),
    ("loldu", "roberta-base", {}, 18_432, "by the formula"),
    ("null_lora", "roberta-base", {}, 24 * (12_288 + 16), "half of LoRA's, and the scaling"),
]


@pytest.mark.parametrize(("method", "model", "settings", "expected", "source"), COUNTS)
def test_published_count(method, model, settings, expected, source):
    """IntTune's 3,670,016 are 1.15 % of LoRA's 319,815,680: its abstract says 1.25 %."""
    found = count(method, model, settings)
    assert found["agrees"] and found["trained"] == found["stored"] == expected, source
    assert found["added_at_inference"] == 0


def test_qr_lora_counts_by_data():
    """Its 601 parameters on RoBERTa-base cannot be met: which sites and share of the energy they mean is not known."""
    found = count("qr_lora_scalar", "roberta-base", {})
    assert found["agrees"] and found["expected"]["trained"] == [24, 24 * 768]


def test_the_rows_of_the_published_table_are_met():
    """Every row of the table of published counts that names one of these methods is a count above, rounded."""
    table = Path(__file__).parents[3].parent / "shared/published/param_counts.tsv"
    if not table.exists():
        pytest.skip("the table of published counts is not beside the repository")
    rows = [row for row in csv.DictReader(table.open(), delimiter="\t") if row["method"].startswith("LoRA")]
    mine = [row["published"] for row in rows if "LoRA-XS" in row["method"] or "PiSSA" in row["method"]]
    assert len(mine) == 7
    ours = {method: [c for m, _, _, c, _ in COUNTS if m == method] for method in ("lora_xs", "pissa")}
    for row in mine:
        digits = len(row.rstrip("M").partition(".")[2])
        assert any(f"{c / 1e6:.{digits}f}M" == row for c in sum(ours.values(), [])), row
