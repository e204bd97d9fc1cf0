"""Unusual ways of training, each as the small method that a plugin would be.

Zeroth order, wrappers, a changing trainable set, calibration, phases with rewind, bilevel data, penalties.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from methods.base import LinearMap, LinearMethod, LinearSettings, Method, Phase, StepResult, Wrapper, WrapperSettings
from methods.lowrank.lora import LoRA
from models.shape import SiteId
from tests.helpers import attach, backbone, close, differ, encoded, images, run, text, trained, training
from tests.places import LINEARS
from workflow.cell import _over_time
from workflow.train import task_loss


class MeZO(LoRA):
    """Zeroth order: g = (L(p + eps z) - L(p - eps z)) / (2 eps) along one random z a step; no graph is ever made.

    z is drawn again from its seed instead of being kept. Both passes run without dropout, the head moves along.
    """

    name, eps = "mezo", 1e-3

    def training_step(self, batch, ctx):
        ctx.backbone.train(False)
        seed = int(torch.randint(2**31, (), generator=ctx.rng("mezo")))
        groups = ctx.optimizer.param_groups
        with torch.no_grad(), ctx.autocast():
            self.move(groups, seed, lambda group: self.eps)
            above = ctx.loss(ctx.forward(batch), batch)
            self.move(groups, seed, lambda group: -2 * self.eps)
            below = ctx.loss(ctx.forward(batch), batch)
            slope = float(above - below) / (2 * self.eps)
            self.move(groups, seed, lambda group: self.eps)
            self.move(groups, seed, lambda group: -group["lr"] * slope)
        return StepResult((above + below) / 2, updated=True)

    def move(self, groups, seed, amount):
        rng = torch.Generator().manual_seed(seed)
        for group in groups:
            for parameter in group["params"]:
                parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=amount(group))


class TestZerothOrder:
    def test_the_loss_falls_without_a_graph(self):
        on, method = backbone("tiny-bert"), MeZO()
        context = training(on, method, max_steps=120, lr=5e-3, schedule="constant", batch_size=12)
        attach(method, on, context)
        start = {p: p.detach().clone() for p in method.parameters()}
        context.run()
        losses = [loss for _, loss in context.log.train_loss]
        assert sum(losses[-2:]) < 0.8 * sum(losses[:2])
        assert all(p.grad is None for p in [*method.parameters(), *on.head.parameters()])
        assert not context.optimizer.state, "the recipe's optimiser has not stepped"
        assert all(not torch.equal(p, before) for p, before in start.items())

    def test_the_slope_is_that_of_autograd(self):
        on, method, given = backbone("tiny-bert"), MeZO(), text("tiny-bert")
        context = training(on, method, lr=1.0)
        attach(method, on, context)
        parameters = [*method.parameters(), *on.head.parameters()]
        gradients = torch.autograd.grad(task_loss(on.forward(given), given), parameters)
        context.optimizer = torch.optim.SGD(parameters, lr=1.0)
        before = [p.detach().clone() for p in parameters]
        method.training_step(given, context)
        moved = [p.detach() - b for p, b in zip(parameters, before, strict=True)]
        rng = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=training(on, method).rng("mezo"))))
        z = [torch.randn(p.shape, generator=rng) for p in parameters]
        slope = sum((g * d).sum() for g, d in zip(gradients, z, strict=True))
        assert all(close(m, -slope * d, 2e-2 * abs(slope) * d.abs().max()) for m, d in zip(moved, z, strict=True))


class HalfOff(Wrapper):
    """Around any method: at each step one half of its modules is switched off through their gates, then all are on."""

    name, family = "half_off", "control"

    @dataclass(frozen=True)
    class Settings(WrapperSettings):
        base: str = "lora"

    def on_step_start(self, step, ctx):
        for i, module in enumerate(self.attached.values()):
            module.gate = float(i % 2 == step.index % 2)
        super().on_step_start(step, ctx)

    def on_step(self, step, ctx):
        super().on_step(step, ctx)
        self.open()

    def open(self):
        for module in self.attached.values():
            module.gate = 1.0


class TestWrapper:
    @pytest.mark.parametrize("base", ["lora", "ia3", "houlsby"])
    def test_a_gate_scales_the_contribution_of_whatever_is_inside(self, base):
        on, given, method = backbone("tiny-bert"), text("tiny-bert"), HalfOff(HalfOff.Settings(base))
        plain = run(on, given)
        attach(method, on)
        with torch.no_grad():
            for parameter in method.parts.parameters():
                parameter.add_(0.5)
        whole = run(on, given)
        for module in method.attached.values():
            module.gate = 0.0
        assert close(run(on, given), plain) and differ(whole, plain)

    def test_only_open_modules_are_trained_in_a_step(self):
        class Spy(HalfOff):
            def on_gradients(self, step, ctx):
                steps.append([m.B.grad.abs().max() > 0 for m in self.attached.values()])

        steps = []
        trained(Spy(Spy.Settings("lora")), max_steps=2)
        assert steps == [[True, False] * 2, [False, True] * 2]

    def test_merging_and_stored_state_are_those_of_the_method_inside(self):
        context = trained(HalfOff(HalfOff.Settings("lora")))
        method, on, given = context.method, context.backbone, text("tiny-bert")
        attached = run(on, given)
        method.merge()
        assert close(run(on, given), attached)
        method.unmerge()
        assert method.state_dict().keys() == method.child.state_dict().keys()
        assert method.trained() == method.child.trained()

    def test_the_method_inside_knows_the_plan_when_it_calibrates(self):
        method, seen = HalfOff(HalfOff.Settings("lora")), []
        method.child.calibrate = lambda on, ctx: seen.append(method.child.planned.sites)
        attach(method, backbone("tiny-bert"))
        assert len(seen[0]) == 4


class Moving(LoRA):
    """A changing set: at each step only the site with the largest gradient goes on, from the accumulated gradients."""

    name = "moving"

    def on_gradients(self, step, ctx):
        best = max(
            self.maps().values(), key=lambda m: sum(p.grad.abs().sum() for p in m.parameters() if p.grad is not None)
        )
        ctx.set_trainable(best.parameters())


class Alternating(LoRA):
    """B before the middle of the training, A from the middle on."""

    name = "alternating"

    def on_step_start(self, step, ctx):
        if step.index in (0, step.total // 2):
            letter = "B" if step.index == 0 else "A"
            ctx.set_trainable(p for n, p in self.parts.named_parameters() if n.endswith(letter))


class TestChangingSet:
    def test_only_the_chosen_parameters_move(self):
        """AdamW leaves a parameter without gradient where it is; a zero gradient would move it by momentum."""
        on, method = backbone("tiny-bert"), Alternating()
        context = training(on, method, max_steps=8, schedule="constant")
        attach(method, on, context)
        moved, before = [], {}

        def look(step, ctx):
            moved.append({n[-1] for n, p in method.parts.named_parameters() if not torch.equal(p, before.get(n, p))})
            before.update({n: p.detach().clone() for n, p in method.parts.named_parameters()})

        method.on_step = look
        context.run()
        assert moved[1:] == [{"B"}] * 3 + [{"A"}] * 4

    def test_a_zero_gradient_would_move_it(self):
        parameter = nn.Parameter(torch.ones(1))
        optimizer = torch.optim.AdamW([parameter], weight_decay=0.0)
        for gradient in (1.0, 0.0):
            before = parameter.detach().clone()
            parameter.grad = torch.full((1,), gradient)
            optimizer.step()
        assert not torch.equal(parameter, before)

    def test_counts_over_time_are_logged(self):
        """Both at once are attached but never trained, so the peak is the larger of the two."""
        context = trained(Alternating.create({"sites": ("attn.q", "attn.v", "mlp.up")}), max_steps=8)
        a, b = 6 * 8 * 32, 4 * 8 * 32 + 2 * 8 * 64
        assert context.log.after_optimizer == a + b
        assert _over_time(context.log.trainable, context.log.steps) == {"peak": b, "mean": (a + b) / 2, "final": a}

    def test_a_change_after_the_step_counts_from_the_next_one(self):
        class Late(LoRA):
            def on_step(self, step, ctx):
                if step.index == 0:
                    ctx.set_trainable(list(self.parameters())[:1])

        log = trained(Late(), max_steps=4).log
        first, rest = 4 * 2 * 8 * 32, 8 * 32
        assert _over_time(log.trainable, log.steps) == {"peak": first, "mean": (first + 3 * rest) / 4, "final": rest}

    def test_gradients_are_whole_when_the_method_reads_them(self):
        context = trained(Moving(), max_steps=3, micro_batch_size=2)
        assert [count for _, count in context.log.trainable[1:]] == [2 * 8 * 32] * 3

    def test_a_parameter_frozen_after_the_backward_pass_does_not_move_in_that_step(self):
        maps = trained(Moving(), max_steps=1).method.maps().values()
        assert [bool(m.B.any()) for m in maps].count(True) == 1

    def test_what_was_trained_and_then_frozen_is_stored(self):
        context = trained(Alternating())
        assert {name[-1] for name in context.method.state_dict()} == {"A", "B"}

    def test_dropping_the_state_forgets_the_momentum(self):
        on, method = backbone("tiny-bert"), LoRA()
        context = training(on, method)
        attach(method, on, context)
        context.run()
        gone, kept = method.trained()[:2]
        context.set_trainable([kept], keep_state=True)
        assert gone in context.optimizer.state
        context.set_trainable([kept], keep_state=False)
        assert gone not in context.optimizer.state and kept in context.optimizer.state

    def test_a_parameter_that_joins_is_trained_too(self):
        class Joining(LoRA):
            def attach(self, backbone, ctx):
                super().attach(backbone, ctx)
                for parameter in list(self.parameters())[1:]:
                    parameter.requires_grad_(False)

            def on_step_start(self, step, ctx):
                if step.index == 2:
                    ctx.set_trainable(self.parameters())

        context = trained(Joining(), max_steps=6)
        assert all(m.B.abs().max() > 0 for m in context.method.maps().values())


class GradientStart(LinearMethod):
    """Calibration: A and B start from the gradient of W, B carries nothing yet, and inputs give the scale."""

    name, family = "gradient_start", "lowrank"

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.A, self.B = nn.Parameter(torch.empty(1, shape.inp)), nn.Parameter(torch.zeros(shape.out, 1))

        def initialise(self, W, b, rng, found):
            self.A.copy_(torch.linalg.svd(found).Vh[:1])

        def delta(self):
            return self.B @ self.A

    def calibrate(self, backbone, ctx):
        places = [backbone.site(s) for s in self.planned.sites]
        self.found = backbone.weight_gradients(places, ctx.batches("train", 2), ctx.loss_of_task)


class TestCalibration:
    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2", "tiny-t5", "tiny-swin"])
    def test_gradients_of_the_weights_are_those_of_the_whole_network(self, name):
        on = backbone(name)
        batches = [images(name, seed=s) if name == "tiny-swin" else text(name, seed=s) for s in (0, 1)]
        found = on.weight_gradients(on.sites(LINEARS), batches, task_loss)
        assert not any(p.requires_grad or p.grad is not None for p in on.model.parameters())
        on.model.requires_grad_(True)
        loss = sum(task_loss(on.forward(b), b) for b in batches) / 2
        loss.backward()
        assert found.keys() == {s.id for s in on.sites(LINEARS)}
        for site in on.sites(LINEARS):
            whole = site._view(site.module.weight.grad, bias=False)
            assert close(found[site.id], whole), site.id

    def test_what_was_trainable_stays_trainable(self):
        on = backbone("tiny-bert")
        site = on.site(SiteId("", 0, "attn.q"))
        on.train_weights([site.module.weight])
        on.weight_gradients([site], [text("tiny-bert")], task_loss)
        assert site.module.weight.requires_grad

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_inputs_leave_padding_out(self, side):
        on, given, rows = backbone("tiny-bert"), text("tiny-bert", side), {}
        with on.inputs(on.sites(("attn.q",)), lambda site, x: rows.update({site.layer: x})):
            run(on, given)
        plain = text("tiny-bert", side)
        on.taps()
        run(on, plain)
        assert all(x.shape == (7 + 4 + 5, 32) for x in rows.values())
        assert torch.equal(rows[1], on.state.taps[SiteId("", 0, "block")][given.mask])
        run(on, given)
        assert len(rows) == 2, "nothing is seen after the context is closed"

    def test_inputs_of_a_decoder_are_masked_by_its_own_targets(self):
        """Its five positions are not the seven of the encoder; two of the first row's are not learned."""
        on, given, rows = backbone("tiny-t5"), text("tiny-t5"), {}
        with on.inputs(on.sites(("attn.q", "cross.k", "mlp.up")), lambda site, x: rows.update({site: len(x)})):
            run(on, given)
        for site, count in rows.items():
            of_encoder = site.part == "encoder" or site.name == "cross.k"
            assert count == (7 + 4 + 5 if of_encoder else 3 + 5 + 5), site

    def test_a_method_may_start_from_what_it_found(self):
        on, method = backbone("tiny-bert"), GradientStart(LinearSettings())
        context = training(on, method)
        context.loss_of_task = task_loss
        attach(method, on, context)
        site = SiteId("", 0, "attn.q")
        on.restore()
        on.site(site).module.weight.requires_grad_(True)
        batches = list(context.batches("train", 2))
        sum(task_loss(on.forward(b), b) for b in batches).backward()
        top = torch.linalg.svd(on.site(site).module.weight.grad).Vh[0]
        assert close((method.parts["0/attn/q"].A[0] @ top).abs(), torch.ones(()), 1e-4)


class PruneAndRewind(LoRA):
    """Two phases: train, keep the half of the sites with the largest B, go back to the start, train the rest again."""

    name = "prune_and_rewind"

    def phases(self, recipe):
        return (Phase("search", 0.25), Phase("train", 0.75, rewind=True))

    def between(self, done, ctx):
        if done.name == "search":
            size = {site: float(m.B.detach().norm()) for site, m in self.maps().items()}
            self.kept = sorted(size, key=size.get)[len(size) // 2 :]
            ctx.set_trainable([p for s in self.kept for p in self.maps()[s].parameters()])


class TestPhases:
    def test_steps_are_shared_out_and_all_are_counted(self):
        context = trained(PruneAndRewind(), max_steps=8)
        assert context.log.steps == 8 and context.log.examples == 32

    def test_rewinding_goes_back_to_the_start_and_what_is_pruned_stays_there(self):
        method = PruneAndRewind()
        maps = trained(method, max_steps=8).method.maps()
        assert len(method.kept) == 2
        assert all((maps[s].B.abs().max() > 0) == (s in method.kept) for s in maps)

    def test_the_optimiser_starts_afresh_unless_told_otherwise(self):
        ages = {}
        for reset in (True, False):

            class Two(LoRA):
                def phases(self, recipe, reset=reset):
                    return (Phase("one", 0.5), Phase("two", 0.5, reset_optimizer=reset))

            context = trained(Two(), max_steps=8)
            ages[reset] = int(next(iter(context.optimizer.state.values()))["step"])
        assert ages == {True: 4, False: 8}

    def test_counts_of_both_phases_are_logged(self):
        log = trained(PruneAndRewind(), max_steps=8).log
        whole = 4 * 2 * 8 * 32
        assert _over_time(log.trainable, log.steps) == {"peak": whole, "mean": 0.625 * whole, "final": whole // 2}

    def test_a_search_inside_a_phase_is_charged_to_the_cell(self):
        class Search(LoRA):
            def on_step_start(self, step, ctx):
                if step.phase.name == "train" and step.index == 1:
                    ctx.train(Phase("inner", 0.5))

        context = trained(Search(), max_steps=4)
        assert context.log.steps == 4 + 2
        assert int(next(iter(context.optimizer.state.values()))["step"]) == 4, "the outer optimiser went on"


class Bilevel(LoRA):
    """Weights on one half of the training data, a scale of the update on the other half, at every step."""

    name = "bilevel"

    def calibrate(self, backbone, ctx):
        ctx.split({"lower": 0.5, "upper": 0.5})

    def phases(self, recipe):
        return (Phase(data="lower"),)

    def on_step_start(self, step, ctx):
        upper = next(ctx.batches("upper", 1, start=step.index))
        self.seen = [*getattr(self, "seen", []), upper.rows.tolist()]
        with torch.no_grad():
            self.outer = ctx.loss(ctx.forward(upper), upper)


class TestSplits:
    def data(self, **shares):
        context = training(backbone("tiny-bert"), LoRA(), encoded(20))
        context.split(shares)
        return context.splits

    def test_parts_are_disjoint_slices_of_the_training_data(self):
        splits = self.data(lower=0.7, upper=0.3)
        parts = [{tuple(row) for row in splits[name].ids} for name in ("lower", "upper")]
        assert [len(p) for p in parts] == [14, 6] and not parts[0] & parts[1]
        assert parts[0] | parts[1] == {tuple(row) for row in splits["train"].ids}

    def test_shares_below_one_leave_the_rest_out(self):
        splits = self.data(a=0.2, b=0.3)
        assert (len(splits["a"]), len(splits["b"]), len(splits["train"])) == (4, 6, 20)

    def test_shares_above_one_are_an_error(self):
        with pytest.raises(ValueError, match="add up to 1.5"):
            self.data(a=1.0, b=0.5)

    def test_each_level_draws_its_own_batches(self):
        context = trained(Bilevel(), data=encoded(16), max_steps=4)
        seen = context.method.seen
        assert sorted(seen[0] + seen[1]) == list(range(8)), "two steps are an epoch of the upper half"
        assert context.log.examples == 16

    def test_the_pool_has_no_labels(self):
        context = training(backbone("tiny-bert"), LoRA())
        assert [b.labels for b in context.pool()] == [None] * 3

    def test_evaluating_in_the_middle_leaves_training_mode_on(self):
        on, method = backbone("tiny-bert"), LoRA()
        context = training(on, method, score=lambda data: on.train(False) or len(data) / 100)
        on.train(True)
        assert context.evaluate("validation", n=5) == 0.05
        assert on.model.training and method.parts.training


class Penalised(LoRA):
    """Every site leaves the size of its contribution as a penalty."""

    name = "penalised"

    class Map(LoRA.Map):
        def forward(self, x, base):
            self.state().penalties[self.site] = 10 * self.delta().square().sum()
            return super().forward(x, base)

    def attach(self, backbone, ctx):
        super().attach(backbone, ctx)
        for module in self.maps().values():
            module.state = lambda: backbone.state


class TestPenalties:
    def test_are_added_to_the_loss_of_the_task_once_each(self):
        on, method, given = backbone("tiny-bert"), Penalised(), text("tiny-bert")
        context = attach(method, on)
        with torch.no_grad():
            for module in method.maps().values():
                module.B.add_(0.1)
        out = context.forward(given)
        extra = sum(10 * m.delta().square().sum() for m in method.maps().values())
        assert close(context.loss(out, given), task_loss(out, given) + extra, 1e-4) and extra > 0.1

    def test_hold_the_method_back(self):
        free, held = trained(LoRA(), max_steps=12), trained(Penalised(), max_steps=12)
        norms = [sum(float(m.delta().norm()) for m in c.method.maps().values()) for c in (free, held)]
        assert norms[1] < 0.8 * norms[0]

    def test_are_fresh_in_every_pass(self):
        on, method = backbone("tiny-bert"), Penalised()
        attach(method, on)
        for _ in range(3):
            on.forward(text("tiny-bert"))
        assert len(on.state.penalties) == 4


class Teacher(Method):
    """A loss against the pretrained function itself, in the same step."""

    name, family = "teacher", "selective"

    def attach(self, backbone, ctx):
        self.backbone = backbone
        self.parts["bias"] = bias = nn.Linear(32, 32)
        backbone.branch(SiteId("", 1, "block"), "mlp", lambda x, y, residual: y + bias(x))

    def loss(self, outputs, batch, task_loss):
        with torch.no_grad(), self.backbone.disabled():
            reference = self.backbone.forward(batch).hidden
        return super().loss(outputs, batch, task_loss) + (outputs.hidden - reference).square().mean()


def test_a_reference_pass_sees_the_pretrained_function_and_keeps_penalties():
    on, method, given = backbone("tiny-bert"), Teacher(), text("tiny-bert")
    context, plain = attach(method, on), None
    out = context.forward(given)
    with on.disabled(), torch.no_grad():
        plain = on.forward(given).hidden
    on.state.penalties["own"] = torch.tensor(3.0)
    expected = task_loss(out, given) + 3.0 + (out.hidden - plain).square().mean()
    assert close(context.loss(out, given), expected)
