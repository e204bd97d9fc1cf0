"""LoRA-GA, LoRA-SB, CorDA and EVA: starts from data. tiny-llama has no dropout, so gradients can be had by hand."""

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from peft import EvaConfig, LoraConfig, LoraGAConfig, get_peft_model, initialize_lora_eva_weights
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from peft.utils.incremental_pca import IncrementalPCA
from torch import nn

from methods.base.calibration import (
    PrincipalComponents,
    examples,
    first_learning_rate,
    first_with_input,
    gradients,
    looking,
)
from methods.lowrank.corda import CorDA
from methods.lowrank.eva import EVA
from methods.lowrank.lora_ga import LoRAGA
from methods.lowrank.lora_sb import LoRASB
from models.shape import LinearShape, SiteId
from tests.helpers import attach, backbone, close, copies, differ, encoded, lively, run, same, text, trained, training
from workflow.count import count
from workflow.train import task_loss

Q = SiteId("", 1, "attn.q")
NAMES = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
GA = {"rank": 3, "samples": 5}
SB = {"rank": 8, "samples": 5}
CORDA = {"rank": 4, "alpha": 8.0, "samples": 5}
CASES = [(LoRAGA, GA), (LoRASB, SB), (CorDA, CORDA), (CorDA, CORDA | {"mode": "kpm"}), (EVA, EVA.tiny)]


def random(*size, seed=0, dtype=torch.float64):
    return torch.empty(size, dtype=dtype).normal_(generator=torch.Generator().manual_seed(seed))


def attached(plugin, settings, name="tiny-llama", data=None, **recipe):
    """Backbone and method, attached, after calibration on twelve texts."""
    on, method = backbone(name, "classification"), plugin.create(settings)
    context = attach(method, on, training(on, method, data, **recipe))
    return on, method, context


def loss_gradients(on, context, count):
    """The mean gradient over single examples, with the whole network trained."""
    found = dict.fromkeys(on.shape.find(NAMES), 0)
    for batch in islice((b.rows_slice(slice(i, i + 1)) for b in context.batches() for i in range(len(b))), count):
        on.model.requires_grad_(True)
        task_loss(on.forward(batch), batch).backward()
        for site in found:
            found[site] = found[site] + on.site(site).module.weight.grad / count
        on.model.zero_grad()
    on.model.requires_grad_(False)
    return found


class TestLooking:
    def test_examples_come_one_at_a_time_and_no_more_than_there_are(self):
        on = backbone("tiny-bert")
        context = training(on, LoRAGA())
        ids = [row for batch in context.batches() for row in batch.inputs["input_ids"].tolist()]
        for wanted, found in ((5, 5), (12, 12), (100, 12)):
            seen = [batch.inputs["input_ids"].tolist() for batch in examples(context, wanted)]
            assert seen == [[row] for row in ids[:found]]

    def test_dropout_is_drawn_from_a_named_generator_and_the_global_state_is_left_alone(self):
        found = []
        for noise in (1, 2):
            torch.manual_seed(noise)
            on, method = backbone("tiny-bert"), LoRAGA.create(GA)
            method.planned, state = method.plan(on.shape), torch.get_rng_state()
            found.append(gradients(method, on, training(on, method), 4))
            assert torch.equal(torch.get_rng_state(), state) and not on.model.training
        assert all(torch.equal(found[0][site], found[1][site]) for site in found[0])

    def test_gradients_are_taken_in_training_mode_and_inputs_in_evaluation_mode(self):
        on = backbone("tiny-bert")
        for mode in (True, False):
            with looking(on, training(on, LoRAGA()), mode):
                assert on.model.training is mode

    def test_gradients_are_those_of_single_examples(self):
        on, method = backbone("tiny-llama", "classification"), LoRAGA.create(GA)
        context = training(on, method)
        method.planned = method.plan(on.shape)
        by_hand = loss_gradients(on, context, 5)
        for site, G in gradients(method, on, context, 5).items():
            assert close(G, by_hand[site], 1e-5 * by_hand[site].abs().max())

    def test_sites_that_read_the_same_tensor(self):
        """Checked with the tensors themselves."""
        for name in ("tiny-bert", "tiny-llama", "tiny-t5-gated"):
            on, seen = backbone(name), {}
            sites = on.sites([*NAMES, "cross.q", "cross.k", "cross.v", "cross.o"])
            with on.inputs(sites, lambda site, rows, seen=seen: seen.update({site: rows})):
                run(on, text(name))
            owners = first_with_input(site.id for site in sites)
            for site, owner in owners.items():
                assert torch.equal(seen[site], seen[owner])
            for left in set(owners.values()):
                same_layer = [o for o in set(owners.values()) if o != left and o[:2] == left[:2]]
                assert not any(
                    seen[left].shape == seen[o].shape and torch.equal(seen[left], seen[o]) for o in same_layer
                )

    @pytest.mark.parametrize("recipe", [{"warmup": 0.5}, {"warmup": 0.0}, {"warmup": 2, "schedule": "cosine"}])
    def test_the_first_learning_rate_is_the_one_that_the_first_step_has(self, recipe):
        on, rates = backbone("tiny-bert"), []
        method = LoRAGA.create(GA)
        context = attach(method, on, training(on, method, **recipe))
        method.on_step = lambda step, ctx: rates.append(ctx.optimizer.param_groups[0]["lr"])
        context.run()
        assert rates[0] == first_learning_rate(context)


class TestEach:
    @pytest.mark.parametrize(("plugin", "settings"), CASES)
    def test_the_start(self, plugin, settings):
        on, method, _ = attached(plugin, settings)
        plain, given = backbone("tiny-llama", "classification"), text("tiny-llama")
        tolerance = 1e-3 if plugin.edits_base == "offset" else 1e-5
        assert close(run(on, given), run(plain, given), tolerance) is plugin.identity_at_init

    @pytest.mark.parametrize(("plugin", "settings"), CASES)
    def test_what_is_stored_gives_the_same_output_on_a_start_from_other_data(self, plugin, settings):
        settings = settings | ({"rho": 1.0} if plugin is EVA else {})
        on, method, _ = attached(plugin, settings)
        lively(nn.ParameterList(method.trained()), std=0.1)
        other, fresh, _ = attached(plugin, settings, data=encoded(12, seed=9))
        fresh.load_state_dict(method.state_dict())
        given = text("tiny-llama")
        assert close(run(other, given), run(on, given), 1e-3)
        assert plugin is EVA or differ(run(other, given), run(backbone("tiny-llama", "classification"), given))
        fresh.detach()
        assert same(copies(other.model), copies(backbone("tiny-llama", "classification").model))

    @pytest.mark.parametrize(("plugin", "settings"), [case for case in CASES if case[0].edits_base == "offset"])
    def test_a_resumed_run_whose_start_came_out_otherwise_goes_on_from_the_old_one(self, plugin, settings):
        on, method, _ = attached(plugin, settings)
        other, fresh, context = attached(plugin, settings, data=encoded(12, seed=9))
        fresh.load_training_state(method.training_state())
        given = text("tiny-llama")
        assert close(run(other, given), run(on, given), 1e-3)
        assert torch.equal(fresh.maps()[Q].start(), method.maps()[Q].start())

    @pytest.mark.parametrize(("plugin", "settings"), [case for case in CASES if case[0].edits_base == "offset"])
    def test_what_is_learned_has_rank_2r_on_the_pretrained_weight(self, plugin, settings):
        on, method, _ = attached(plugin, settings)
        lively(nn.ParameterList(method.trained()), std=0.1)
        at_site, W = method.maps()[Q], backbone("tiny-llama", "classification").site(Q).weight()
        method.merge()
        up, down = torch.cat([at_site.B, -at_site.B0], 1), torch.cat([at_site.A, at_site.A0])
        assert close(on.site(Q).weight(), W + at_site.scale * up @ down, 1e-5)

    @pytest.mark.parametrize(("plugin", "settings"), CASES)
    def test_fused_weights_are_split_and_trained_as_others_are(self, plugin, settings):
        context = trained(plugin.create(settings), "tiny-gpt2")
        method, given = context.method, text("tiny-gpt2")
        learned, weights = run(context.backbone, given), copies(backbone("tiny-gpt2").model)
        assert not same(copies(context.backbone.model), weights) or plugin.edits_base == "no"
        method.merge()
        assert close(run(context.backbone, given), learned, 1e-4 * learned.abs().max())
        method.detach()
        assert same(copies(context.backbone.model), weights) and differ(run(context.backbone, given), learned)

    @pytest.mark.parametrize(
        ("plugin", "settings", "reason"),
        [
            (LoRAGA, {"rank": 17}, "needs 34 components of the gradient"),
            (LoRASB, {"rank": 33}, "rank 33 is more"),
            (CorDA, {"rank": 33}, "rank 33 is more"),
            (EVA, {"rank": 17}, "rank 34 is more than the 32 inputs"),
        ],
    )
    def test_a_rank_that_the_weights_do_not_have_is_refused(self, plugin, settings, reason):
        assert reason in plugin.create(settings | {"sites": ["attn.q"]}).supports(backbone("tiny-bert").shape, None)


def best(M, rank):
    """The best approximation of this rank."""
    U, S, V = torch.linalg.svd(M.double(), full_matrices=False)
    return U[:, :rank] * S[:rank] @ V[:rank]


class TestLoRAGA:
    def test_the_first_step_goes_along_the_best_approximation_of_the_gradient(self):
        """B0 B0' G + G A0' A0 = c^2 (G cut to rank 2r), and the start is s B0 A0 with c^2 = sqrt(out) / gamma."""
        on, method, context = attached(LoRAGA, GA)
        by_hand = loss_gradients(backbone("tiny-llama", "classification"), context, 5)
        for site, at_site in method.maps().items():
            G, A, B = by_hand[site].double(), at_site.A0.double(), at_site.B0.double()
            c2, eye = len(G) ** 0.5 / 16, torch.eye(3, dtype=torch.float64)
            assert close(A @ A.T, c2 * eye) and close(B.T @ B, c2 * eye), site
            target = best(G, 6)
            assert close((B @ (B.T @ G) + (G @ A.T) @ A) / c2, target, 2e-2 * target.abs().max()), site
            assert close(at_site.A, at_site.A0, 0) and at_site.scale == 16 / 3**0.5

    def test_a_factor_reads_the_first_components_and_the_other_writes_the_next(self):
        on, method, context = attached(LoRAGA, GA)
        U, S, V = torch.linalg.svd(loss_gradients(backbone("tiny-llama", "classification"), context, 5)[Q].double())
        A, B = method.maps()[Q].A0.double(), method.maps()[Q].B0.double()
        c = 32**0.25 / 4
        assert close((A @ V[:3].T).square().sum() / c**2, torch.tensor(3.0).double(), 1e-2)
        assert (B.T @ U[:, :3]).abs().max() < 0.05 * c

    def test_a_gradient_of_zero_is_no_fault(self):
        G = torch.zeros(8, 6)
        on, method = backbone("tiny-bert"), LoRAGA.create(GA)
        context = training(on, method)
        method.planned = method.plan(on.shape)
        on.weight_gradients = lambda *_: {Q: G}
        method.calibrate(on, context)
        A, B = method.found[Q]
        assert close(A @ A.T, 8**0.5 / 16 * torch.eye(3, dtype=A.dtype)) and torch.isfinite(B).all()

    def test_beside_peft(self):
        """The directions are the same; peft scales only B, by the gradient's singular values times c."""
        torch.manual_seed(0)
        net, U, V = nn.Sequential(nn.Linear(10, 12, bias=False)), *(torch.linalg.qr(random(n, 6))[0] for n in (12, 10))
        W, G = net[0].weight.detach().clone(), (U * torch.tensor([9.0, 7, 5, 4, 3, 2]) @ V.T).float()
        config = LoraConfig(
            r=3,
            lora_alpha=16,
            target_modules=["0"],
            use_rslora=True,
            init_lora_weights="lora_ga",
            lora_ga_config=LoraGAConfig(direction="ArB2r", scale="stable", stable_gamma=16),
        )
        preprocess_loraga(net, config, lambda: (net(torch.eye(10)) * G.T).sum().backward())
        tuned = get_peft_model(net, config)
        layer, at_site = tuned.base_model.model[0], self.from_gradient(W, G)
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        c = 12**0.25 / 4
        assert close(at_site.A.T @ at_site.A / c**2, A.T @ A, 1e-4)
        assert close(at_site.B.norm(dim=0), torch.full((3,), c), 1e-5)
        assert close(B.norm(dim=0), c * torch.tensor([4.0, 3, 2]), 1e-4)
        with torch.no_grad():
            at_site.A.copy_(A)
            at_site.B.copy_(B)
        x = random(4, 10).float()
        residual = W - at_site.delta()
        assert close(residual, layer.base_layer.weight, 1e-5)
        assert close(at_site(x, lambda z: F.linear(z, residual)), tuned(x), 1e-5)
        assert at_site.A.numel() + at_site.B.numel() == sum(p.numel() for p in tuned.parameters() if p.requires_grad)

    @staticmethod
    def from_gradient(W, G):
        on, method = backbone("tiny-bert"), LoRAGA.create(GA)
        method.planned, on.weight_gradients = method.plan(on.shape), lambda *_: {Q: G}
        method.calibrate(on, training(on, method))
        at_site = method.Map(LinearShape(*W.shape, False), method.settings, None)
        with torch.no_grad():
            at_site.initialise(W, None, None, method.found[Q])
        return at_site


class TestLoRASB:
    def test_at_full_rank_the_start_is_the_first_update(self):
        """-eta sign(G) with the rate of the first step; SGD on the sign is what AdamW does first."""
        settings = {"rank": 32, "samples": 5, "sites": ("attn.q", "attn.o")}
        on, method, context = attached(LoRASB, settings, warmup=0.5)
        by_hand, eta = loss_gradients(backbone("tiny-llama", "classification"), context, 5), 1e-2 / 3
        for site, at_site in method.maps().items():
            assert close(at_site.delta(), -eta * by_hand[site].sign(), 1e-5 * eta * 100), site

    def test_below_it_the_start_is_a_truncation(self):
        on, method, context = attached(LoRASB, SB)
        by_hand = loss_gradients(backbone("tiny-llama", "classification"), context, 5)
        for site, at_site in method.maps().items():
            update, eye = -1e-2 * by_hand[site].sign().double(), torch.eye(8)
            assert close(at_site.B.T @ at_site.B, eye, 1e-5) and close(at_site.A @ at_site.A.T, eye, 1e-5)
            R = at_site.R.detach()
            assert torch.equal(R, R.diag().diag()) and (R.diag() >= 0).all() and (R.diag().diff() <= 0).all()
            least = (update - best(update, 8)).norm()
            assert (update - at_site.delta()).norm() <= 1.02 * least, site

    def test_the_gradient_of_r_gives_the_best_one_within_the_subspace(self):
        at_site = LoRASB.Map(LinearShape(12, 10, False), LoRASB.create({"rank": 4}).settings, None).double()
        W, x = random(12, 10), random(7, 10, seed=1)
        with torch.no_grad():
            at_site.initialise(W, None, None, (torch.linalg.qr(random(12, 4))[0], random(4).abs(), torch.eye(4, 10)))
            at_site.R.add_(random(4, 4, seed=2))
        at_site(x, lambda z: F.linear(z, W)).square().sum().backward()
        moved = (W + at_site.delta()).detach().requires_grad_()
        F.linear(x, moved).square().sum().backward()
        A, B = at_site.A, at_site.B
        assert close(B @ at_site.R.grad @ A, B @ B.T @ moved.grad @ A.T @ A, 1e-10)
        assert A.grad is None and B.grad is None
        assert close(at_site(x, lambda z: F.linear(z, W)), F.linear(x, W + B @ at_site.R @ A), 1e-10)


def corda_map(W, C, **settings):
    method = CorDA.create({"rank": 3, "alpha": 6.0} | settings)
    at_site = method.Map(LinearShape(*W.shape, False), method.settings, None).double()
    with torch.no_grad():
        at_site.initialise(W, None, None, C)
    return at_site


def covariance(n, seed=5):
    X = random(4 * n, n, seed=seed) * torch.linspace(0.2, 2, n, dtype=torch.float64)
    return X.T @ X / len(X)


def damped(C):
    return C + 0.01 * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)


class TestCorDA:
    W = random(12, 10, seed=4)

    @pytest.mark.parametrize(("mode", "part"), [("ipm", slice(3)), ("kpm", slice(7, 10))])
    def test_without_a_context_it_takes_singular_components_of_the_weight(self, mode, part):
        U, S, V = torch.linalg.svd(self.W, full_matrices=False)
        at_site = corda_map(self.W, 2.5 * torch.eye(10, dtype=torch.float64), mode=mode)
        assert close(at_site.delta(), U[:, part] * S[part] @ V[part], 1e-10)

    def test_the_decomposition_is_one_of_the_weight(self):
        U, S, V = CorDA.Map.decompose(self.W, covariance(10))
        assert close(U * S @ V, self.W, 1e-10)

    @pytest.mark.parametrize("mode", ["ipm", "kpm"])
    def test_the_scale_of_the_context_moves_only_the_balance_of_the_factors(self, mode):
        one, seven = (corda_map(self.W, scale * covariance(10), mode=mode) for scale in (1, 7))
        assert close(one.delta(), seven.delta(), 1e-9)
        assert close(seven.B, 7**0.5 * one.B, 1e-9) and close(seven.A, one.A / 7**0.5, 1e-9)

    def test_the_first_components_leave_the_least_in_the_context(self):
        C = covariance(10)
        rest = (self.W - corda_map(self.W, C).delta()) @ damped(C)
        S = torch.linalg.svdvals(self.W @ damped(C))
        assert close(rest.norm() ** 2, S[3:].square().sum(), 1e-9)

    def test_damping_grows_until_the_inverse_holds(self):
        C = torch.diag(torch.tensor([1e9, 1.0, 0.0, 0.0]))
        U, S, V = CorDA.Map.decompose(random(5, 4), C)
        assert torch.isfinite(V).all()

    def test_the_context_is_the_mean_over_examples_of_normed_inputs(self):
        on, method = backbone("tiny-bert"), CorDA.create(CORDA)
        context = training(on, method)
        method.planned = method.plan(on.shape)
        method.calibrate(on, context)
        totals = dict.fromkeys(method.planned.sites, 0)
        for batch in islice(examples(context, 100), 5):
            seen = {}
            with on.inputs(on.sites(NAMES), lambda site, rows, seen=seen: seen.update({site: rows})):
                run(on, batch)
            for site, rows in seen.items():
                X = rows.double() / rows.max().abs()
                totals[site] = totals[site] + sum(torch.outer(row, row) for row in X) / 5
        assert all(close(method.found[site].double(), totals[site], 1e-4) for site in totals)

    @pytest.mark.parametrize("mode", ["ipm", "kpm"])
    def test_beside_peft(self, mode):
        """Five examples through one layer: the same factors, the same rest, the same output and the same count."""
        torch.manual_seed(0)
        net, inputs = nn.Sequential(nn.Linear(10, 12)), [random(1, 9, 10, seed=s).float() for s in range(5)]
        W, b = (p.detach().clone() for p in (net[0].weight, net[0].bias))
        settings = {"r": 3, "lora_alpha": 6, "target_modules": ["0"], "init_lora_weights": "corda"}
        config = LoraConfig(**settings, corda_config=CordaConfig(corda_method=mode))
        preprocess_corda(net, config, lambda: [net(x) for x in inputs])
        tuned = get_peft_model(net, config)
        layer = tuned.base_model.model[0]
        C = sum((x[0] / x.max().abs()).T @ (x[0] / x.max().abs()) for x in inputs) / 5
        at_site = corda_map(W.double(), C.double(), mode=mode)
        A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert close(at_site.delta().float(), layer.get_delta_weight("default"), 1e-5)
        assert close(at_site.A.norm(dim=1).float(), A.norm(dim=1), 1e-4)
        assert close(at_site.B.norm(dim=0).float(), B.norm(dim=0), 1e-4)
        with torch.no_grad():
            at_site.A.copy_(A)
            at_site.B.copy_(B)
        residual = W.double() - at_site.delta()
        assert close(residual.float(), layer.base_layer.weight, 1e-6)
        found = at_site(inputs[0].double(), lambda z: F.linear(z, residual, b.double()))
        assert close(found.float(), tuned(inputs[0]), 1e-5)
        assert A.numel() + B.numel() == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        assert at_site.A.shape == A.shape and at_site.B.shape == B.shape

    def test_another_mode_is_an_error(self):
        with pytest.raises(ValueError, match="'ipm' or 'kpm'"):
            CorDA.create({"mode": "both"})


class TestPrincipalComponents:
    rows = random(60, 10, seed=7) * torch.linspace(3, 0.1, 10, dtype=torch.float64) + 5

    def found(self, sizes):
        pca = PrincipalComponents(4, torch.Generator().manual_seed(0))
        for part in self.rows[: sum(sizes)].split(sizes):
            pca.add(part)
        return pca

    @pytest.mark.parametrize("sizes", [[60], [30, 30], [12, 20, 28], [1, 2, 1, 26, 30]])
    def test_batches_give_the_components_of_all_rows(self, sizes):
        """Nearly: each batch keeps only the largest. Batches of fewer rows than components wait for the next."""
        pca, centred = self.found(sizes), self.rows - self.rows.mean(0)
        _, S, V = torch.linalg.svd(centred, full_matrices=False)
        assert ((pca.components * V[:4]).sum(1).abs() > 0.99).all()
        assert close(pca.components @ pca.components.T, torch.eye(4, dtype=torch.float64), 1e-10)
        assert close(pca.ratio, S[:4].square() / S.square().sum(), 1e-2)
        assert close(pca.mean, self.rows.mean(0), 1e-10)
        assert close(pca.variation, centred.square().sum(), 1e-8)

    def test_beside_the_one_of_peft(self):
        theirs = IncrementalPCA(n_components=4, copy=True)
        for part in self.rows.split([12, 20, 28]):
            theirs.partial_fit(part)
        ours = self.found([12, 20, 28])
        assert close(ours.components.abs(), theirs.components_.abs(), 1e-3)
        assert close(ours.singular, theirs.singular_values_, 1e-3)
        assert close(ours.ratio, theirs.explained_variance_ratio_, 1e-4)

    def test_change_is_the_cosine_to_the_components_before(self):
        before, after = self.found([30]), self.found([30, 30])
        assert close(after.change, (before.components * after.components).sum(1), 1e-10)
        assert before.change.isinf().all()


class TestEVA:
    @pytest.mark.parametrize(("size", "batches", "least"), [(12, 1, 0.99), (4, 3, 0.85)])
    def test_each_first_factor_keeps_as_much_of_the_inputs_as_any_could(self, size, batches, least):
        """But for what is lost from batch to batch; the inputs are those of the backbone without the method."""
        settings = {"rank": 4, "rho": 1.0, "max_batches": batches, "tau": 1.1}
        on, method, context = attached(EVA, settings, batch_size=size)
        plain, seen = backbone("tiny-llama", "classification"), {}
        with plain.inputs(plain.sites(NAMES), lambda site, rows: seen.setdefault(site, []).append(rows)):
            for batch in context.batches("train", batches):
                run(plain, batch)
        for site, at_site in method.maps().items():
            rows = torch.cat(seen[site])
            centred = rows - rows.mean(0)
            most = torch.linalg.svdvals(centred)[:4].square().sum()
            assert least * most < (centred @ at_site.A.T).square().sum() < 1.001 * most, site
            assert close(at_site.A @ at_site.A.T, torch.eye(4), 1e-5) and not at_site.B.any()

    def test_ranks_keep_to_the_budget_and_follow_the_explained_variance(self):
        settings = {"rank": 2, "rho": 4.0, "max_batches": 4}
        on, method, _ = attached(EVA, settings)
        ranks, sites = method.planned.ranks, on.shape.find(NAMES)
        assert sum(ranks.values()) == 2 * len(sites) and max(ranks.values()) <= 8 and set(ranks) == set(sites)
        assert len(set(ranks.values())) > 1
        for site, at_site in method.maps().items():
            assert len(at_site.A) == at_site.B.shape[1] == ranks[site] > 0
            assert at_site.scale == 1 / ranks[site]

    def test_the_budget_is_shared_out_as_by_a_greedy_hand(self):
        class Found:
            def __init__(self, *shares):
                self.ratio = torch.tensor(shares)

        method = EVA.create({"rank": 2, "rho": 2.0})
        q, k, v, o = (SiteId("", 0, f"attn.{n}") for n in "qkvo")
        first = {q: q, k: q, v: q, o: o}
        ranks = method.share_out({q: Found(0.5, 0.1, 0.05, 0.01), o: Found(0.3, 0.2, 0.15, 0.12)}, first)
        assert ranks == {q: 2, k: 1, v: 1, o: 4}  # 0.5 three times, 0.3, 0.2, 0.15, 0.12 and then one 0.1

    def test_a_site_that_wins_nothing_is_left_alone(self):
        on, method, _ = attached(EVA, {"rank": 1, "rho": 6.0, "max_batches": 4})
        without = [site for site, rank in method.planned.ranks.items() if not rank]
        assert without and not set(without) & set(method.maps())
        lively(method.parts, std=0.1)
        learned = run(on, text("tiny-llama"))
        assert not set(without) & set(method.merge().sites)
        assert close(run(on, text("tiny-llama")), learned, 1e-4)

    def test_without_redistribution_all_ranks_are_the_same(self):
        _, method, _ = attached(EVA, {"rank": 3, "rho": 1.0, "max_batches": 2})
        assert set(method.planned.ranks.values()) == {3}
        assert all(rank == 3 for rank in method.planned.ranks.values())

    def test_queries_keys_and_values_share_their_leading_rows(self):
        _, method, _ = attached(EVA, {"rank": 3, "rho": 1.0, "max_batches": 2})
        q, k, v = (method.maps()[Q._replace(name=f"attn.{n}")].A for n in "qkv")
        assert torch.equal(q, k) and torch.equal(q, v)

    def test_whitening_divides_by_the_root_of_the_singular_value(self):
        settings = {"rank": 3, "rho": 1.0, "max_batches": 2}
        plain, white = (attached(EVA, settings | {"whiten": w})[1].maps()[Q].A for w in (False, True))
        norms = white.norm(dim=1)
        assert close(white / norms[:, None], plain, 1e-5) and (norms.diff() > 0).all() and (norms < 1).all()

    def test_it_stops_looking_when_nothing_turns_any_more(self):
        on, method = backbone("tiny-llama", "classification"), EVA.create({"rank": 2, "tau": -1.0, "max_batches": 50})
        passes, forward = [], on.forward
        on.forward = lambda *args: passes.append(1) or forward(*args)
        attach(method, on, training(on, method))
        assert len(passes) == 2, "the first gives components, the second tells how they turn"

    def test_beside_peft(self):
        """One batch again and again: the same ranks and the same rows. peft keeps alpha / r of the uniform rank."""
        names = {"attn.q": "query", "attn.k": "key", "attn.o": "attention.output.dense", "mlp.up": "intermediate.dense"}
        on, method, data = backbone("tiny-bert"), EVA.create({"rank": 3, "sites": tuple(names)}), encoded(40, seed=3)
        context = attach(method, on, training(on, method, data, batch_size=40))
        settings = {"r": 3, "lora_alpha": 1, "target_modules": list(names.values()), "init_lora_weights": "eva"}
        tuned = get_peft_model(backbone("tiny-bert").model, LoraConfig(**settings, eva_config=EvaConfig(rho=2.0)))
        (batch,) = context.batches()
        initialize_lora_eva_weights(tuned, [batch.inputs], show_progress_bar=False)
        layers = {}
        for name, layer in tuned.named_modules():
            if hasattr(layer, "lora_A"):
                site = next(site for site, end in names.items() if name.endswith(end))
                layers[SiteId("", int(name.split("layer.")[1][0]), site)] = layer
        assert layers.keys() == method.maps().keys() and len({len(m.A) for m in method.maps().values()}) > 1
        for site, layer in layers.items():
            ours, theirs = method.maps()[site], layer.lora_A["default"].weight
            assert ours.A.shape == theirs.shape and ours.scale == 1 / len(theirs), site
            assert layer.scaling["default"] == pytest.approx(1 / 3)
            assert (torch.cosine_similarity(ours.A, theirs).abs() > 0.99).all(), site

    def test_too_few_tokens_are_an_error(self):
        on, method = backbone("tiny-bert"), EVA.create({"rank": 16, "max_batches": 1, "sites": ["attn.q"]})
        data = encoded(4, lengths=[4] * 4)
        with pytest.raises(ValueError, match="fewer than 32 tokens in 1 batches"):
            attach(method, on, training(on, method, data))


ROBERTA = {"sites": ["attn.q", "attn.v", "attn.o", "mlp.down"]}


@pytest.mark.parametrize(
    ("method", "model", "settings", "published", "source"),
    [
        ("lora_ga", "llama-2-7b", {}, 19_988_480, "LoRA of rank 8 at all linear maps"),
        ("lora_sb", "mistral-7b", {"rank": 32}, 229_376, "LoRA-SB, arithmetic (0.23M)"),
        ("lora_sb", "mistral-7b", {"rank": 64}, 917_504, "LoRA-SB, arithmetic (0.92M)"),
        ("lora_sb", "mistral-7b", {}, 2_064_384, "LoRA-SB, arithmetic (2.06M)"),
        ("lora_sb", "roberta-large", ROBERTA | {"rank": 24}, 55_296, "LoRA-SB, GLUE"),
        ("corda", "llama-2-7b", {}, 319_815_680, "CorDA (320M)"),
        ("eva", "llama-2-7b", {"rho": 1.0}, 39_976_960, "LoRA of rank 16 at all linear maps"),
    ],
)
def test_published_counts(method, model, settings, published, source):
    counted = count(method, model, settings)
    assert counted["trained"] == published, source
    assert counted["agrees"]


def test_factors_from_data_count_as_stored():
    assert count("lora_ga", "llama-2-7b", {})["stored"] == 2 * 19_988_480
    lora = 32 * 96 * (2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336))
    assert count("lora_sb", "mistral-7b", {})["stored"] == 2_064_384 + lora


def test_the_count_of_eva_lies_between_all_rank_at_the_narrow_and_at_the_wide_sites():
    counted = count("eva", "llama-2-7b", {})
    low, high = counted["expected"]["trained"]
    assert low < counted["trained"] == 39_976_960 < high and counted["agrees"]
    assert low == 16 * 32 * 7 * 8192 and high > low
