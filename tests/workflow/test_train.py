"""The training loop: schedules, micro-batches, resumption bit for bit, failures and signals."""

import copy
import math
import os
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

from methods.base import Phase
from methods.lowrank.lora import LoRA
from models.batch import Outputs
from tests.helpers import attach, backbone, close, encoded, run, same, text, token_ids, trained, training
from workflow.data import Encoded
from workflow.train import CHECK_EVERY, Diverged, Interrupted, TimeLimit, learning_rate_factor, task_loss


class TestLearningRate:
    @pytest.mark.parametrize(
        ("schedule", "step", "warmup", "expected"),
        [
            ("constant", 0, 0.0, 1.0),
            ("constant", 9, 0.0, 1.0),
            ("constant", 0, 4, 0.2),
            ("constant", 3, 4, 0.8),
            ("constant", 4, 4, 1.0),
            ("linear", 0, 0.0, 1.0),
            ("linear", 5, 0.0, 0.5),
            ("linear", 9, 0.0, 0.1),
            ("linear", 0, 0.2, 1 / 3),
            ("linear", 1, 0.2, 2 / 3),
            ("linear", 2, 0.2, 1.0),
            ("linear", 6, 0.2, 0.5),
            ("cosine", 0, 0.0, 1.0),
            ("cosine", 5, 0.0, 0.5),
            ("cosine", 2, 0.0, 0.5 * (1 + math.cos(math.pi / 5))),
        ],
    )
    def test_by_hand_over_ten_steps(self, schedule, step, warmup, expected):
        assert learning_rate_factor(schedule, step, 10, warmup) == pytest.approx(expected)

    @pytest.mark.parametrize("schedule", ["linear", "cosine"])
    def test_ends_at_zero_after_the_last_step(self, schedule):
        assert learning_rate_factor(schedule, 10, 10, 0.1) == pytest.approx(0.0)

    def test_every_group_follows_it_from_its_own_rate(self):
        seen = []

        class Watch(LoRA):
            def on_step(self, step, ctx):
                seen.append({round(g["lr"], 8) for g in ctx.optimizer.param_groups})

        trained(Watch(), lr=0.1, head_lr=0.4, schedule="linear", max_steps=2)
        assert seen == [{0.1, 0.4}, {0.05, 0.2}]


class TestLoss:
    def test_is_cross_entropy_over_classes(self):
        logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(1))) / 2
        batch = encoded(2).batch([0, 1])
        batch.labels = torch.tensor([0, 0])
        assert float(task_loss(Outputs(logits), batch)) == pytest.approx(expected)

    def test_is_the_squared_error_of_a_score(self):
        batch = encoded(2).batch([0, 1])
        batch.labels = torch.tensor([1.0, 3.0])
        assert float(task_loss(Outputs(torch.tensor([[2.0], [5.0]])), batch)) == pytest.approx((1 + 4) / 2)

    def test_is_over_learned_tokens_only(self):
        batch = encoded(1).batch([0])
        batch.labels = torch.tensor([[1, -100]])
        logits = torch.tensor([[[0.0, 0.0], [9.0, -9.0]]])
        assert float(task_loss(Outputs(logits), batch)) == pytest.approx(math.log(2))


def language(count=8):
    """Texts whose learned parts differ in length, so that a mean of means is not the mean."""
    ids = token_ids([6] * count)
    labels = [np.where(np.arange(6) < 6 - i % 5, row, -100) for i, row in enumerate(ids)]
    return Encoded(labels, ids)


class TestMicroBatches:
    def weights(self, name, data, task, **recipe):
        on, method = backbone(name, task), LoRA()
        for module in on.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if on.head is not None:
            on.head.dropout.p = 0.0
        on.model.config.attention_probs_dropout_prob = 0.0
        for module in on.modules("attn.core").values():
            if isinstance(getattr(module, "dropout", None), nn.Dropout):
                module.dropout.p = 0.0
        context = training(on, method, data, batch_size=8, max_steps=3, **recipe)
        attach(method, on, context)
        context.run()
        return context.weights(), context.log

    @pytest.mark.parametrize("micro", [1, 3, 4])
    def test_give_the_weights_of_the_full_batch(self, micro):
        whole, log = self.weights("tiny-bert", encoded(16), None)
        parts, split = self.weights("tiny-bert", encoded(16), None, micro_batch_size=micro)
        assert all(close(whole[k], parts[k], 2e-4) for k in whole)
        assert split.train_loss[0][1] == pytest.approx(log.train_loss[0][1], abs=1e-4)
        assert (split.examples, split.steps) == (log.examples, log.steps) == (24, 3)

    def test_weigh_texts_by_their_learned_tokens(self):
        whole, _ = self.weights("tiny-llama", language(), "generation", optimizer="sgd")
        parts, _ = self.weights("tiny-llama", language(), "generation", optimizer="sgd", micro_batch_size=3)
        assert all(close(whole[k], parts[k], 1e-5) for k in whole)
        start, _ = self.weights("tiny-llama", language(), "generation", optimizer="sgd", lr=0.0)
        assert any(not close(whole[k], start[k], 1e-3) for k in whole), "something was learned"


class TestOptimiser:
    def test_vectors_do_not_decay(self):
        on, method = backbone("tiny-bert"), LoRA()
        context = training(on, method, weight_decay=0.1)
        attach(method, on, context)
        method.train_base(on, on.biases())
        context.optimizer = context._build_optimizer()
        decays = {p.dim(): g["weight_decay"] for g in context.optimizer.param_groups for p in g["params"]}
        assert decays == {1: 0.0, 2: 0.1}

    def test_every_trained_parameter_is_in_one_group(self):
        context = trained(LoRA())
        held = [id(p) for g in context.optimizer.param_groups for p in g["params"]]
        expected = [id(p) for p in [*context.method.trained(), *context.backbone.head.parameters()]]
        assert sorted(held) == sorted(expected)

    def test_gradients_are_clipped_after_the_method_has_read_them(self):
        norms = {}

        class Watch(LoRA):
            def on_gradients(self, step, ctx):
                norms["read"] = self.norm(ctx)
                step_ = ctx.optimizer.step
                ctx.optimizer.step = lambda: (norms.update(used=self.norm(ctx)), step_())

            def norm(self, ctx):
                grads = [p.grad for g in ctx.optimizer.param_groups for p in g["params"]]
                return float(torch.stack([g.norm() for g in grads]).norm())

        trained(Watch(), clip=0.01, max_steps=1)
        assert norms["read"] > 0.1 and norms["used"] == pytest.approx(0.01, rel=1e-3)


class Killed(Exception):
    """Stands for the machine that went away."""


class Drawing(LoRA):
    """Draws at every step from generators of its own, and dies at the steps of `killed` (counted over all phases)."""

    def __init__(self, settings=None, killed=None):
        super().__init__(settings)
        self.killed, self.total = killed, 0

    def on_step_start(self, step, ctx):
        if ctx.log.steps == self.killed:
            raise Killed
        for name, module in self.parts.items():
            module.gate = 0.5 + float(torch.rand((), generator=ctx.rng(f"init/{name}")))
        self.total += float(torch.rand((), generator=ctx.rng("drawn")))

    def training_state(self):
        return {"total": self.total, "gates": [m.gate for m in self.parts.values()]}

    def load_training_state(self, state):
        self.total = state["total"]
        for module, gate in zip(self.parts.values(), state["gates"], strict=True):
            module.gate = gate


class Growing(Drawing):
    """Parameters join and leave during training."""

    def attach(self, backbone, ctx):
        super().attach(backbone, ctx)
        for parameter in list(self.parameters())[2:]:
            parameter.requires_grad_(False)

    def on_step_start(self, step, ctx):
        super().on_step_start(step, ctx)
        parameters = list(self.parameters())
        ctx.set_trainable(parameters[: 2 + step.index % 5])


class Pruning(Drawing):
    """Two phases; which half goes on depends on weights, draws and a score that the first phase ended with."""

    def phases(self, recipe):
        return (Phase("search", 0.5), Phase("train", 0.5, rewind=True))

    def on_step_start(self, step, ctx):
        super().on_step_start(step, ctx)
        if step.phase.name == "train":
            for name in self.parts.keys() - self.kept:
                self.parts[name].gate = 0.0

    def between(self, done, ctx):
        if done.name == "search":
            draws = torch.rand(len(self.parts), generator=ctx.rng("between")).tolist()
            size = {n: float(m.B.detach().norm()) * d for (n, m), d in zip(self.parts.items(), draws, strict=True)}
            self.kept = set(sorted(size, key=size.get, reverse=True)[:2])
            ctx.set_trainable([p for n in self.parts if n in self.kept for p in self.parts[n].parameters()])
            self.total += ctx.evaluate("validation", 5)


def test_a_checkpoint_from_before_a_rewind_is_never_chosen():
    """The scores fall all the time, so that the first of all would be the best."""
    on, method, scores = backbone("tiny-bert"), Pruning(), iter(range(100, 0, -1))
    context = training(on, method, encoded(14), lambda data: float(next(scores)), max_steps=8, evaluations=2)
    attach(method, on, context)
    context.run()
    assert [step for step, _ in context.log.validation] == [2, 4, 6, 8]
    assert context.log.best_step == 6 and context.best is not None


class TestResuming:
    STEPS = 10

    def start(self, plugin, path, killed=None):
        on, method = backbone("tiny-bert"), plugin(killed=killed)

        def score(data):
            on.train(False)
            return np.float64(
                -float(task_loss(Outputs(run(on, data.batch(range(len(data))))), data.batch(range(len(data)))))
            )

        context = training(
            on, method, encoded(14), score, max_steps=self.STEPS, evaluations=3, checkpoint=path, checkpoint_seconds=0.0
        )
        attach(method, on, context)
        return context

    def result(self, context):
        log = copy.deepcopy(vars(context.log))
        for name in ("step_seconds", "seconds", "resumed"):
            log.pop(name)
        return context.weights(), context.best, log, context.method.total, context.method.state_dict()

    def agree(self, one, two):
        return (
            same(one[0], two[0])
            and same(one[1], two[1])
            and one[2] == two[2]
            and one[3] == two[3]
            and same(one[4], two[4])
        )

    @pytest.mark.parametrize("plugin", [Drawing, Growing, Pruning])
    def test_a_run_that_died_gives_what_an_uninterrupted_one_gives(self, plugin, tmp_path):
        """It dies before its first checkpoint, in the first and second half, and just before the end."""
        whole = self.start(plugin, None)
        whole.run()
        expected = self.result(whole)
        path = tmp_path / "state" / "checkpoint.pt"
        for killed in (0, 3, 4, 7, self.STEPS - 1):
            context = self.start(plugin, path, killed)
            with pytest.raises(Killed):
                context.run()
        context = self.start(plugin, path)
        torch.manual_seed(123)
        context.run()
        assert self.agree(self.result(context), expected)
        assert context.log.resumed == 4
        assert not path.exists(), "the checkpoint of a finished run is removed"

    def test_it_does_go_on_and_not_start_again(self, tmp_path):
        path = tmp_path / "checkpoint.pt"
        with pytest.raises(Killed):
            self.start(Drawing, path, killed=6).run()
        context = self.start(Drawing, path)
        seen = []
        context.method.on_step = lambda step, ctx: seen.append(step.index)
        context.run()
        assert seen == [6, 7, 8, 9]

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", "truncated", "other form"])
    def test_a_checkpoint_that_cannot_be_used_is_dropped(self, content, tmp_path):
        path = tmp_path / "checkpoint.pt"
        with pytest.raises(Killed):
            self.start(Drawing, path, killed=6).run()
        if content == "other form":
            torch.save({"step": 3}, path)
        else:
            path.write_bytes(path.read_bytes()[:2000] if content == "truncated" else content)
        context = self.start(Drawing, path)
        context.run()
        assert context.log.resumed == 0 and context.log.steps == self.STEPS

    def test_no_half_written_file_is_left(self, tmp_path, monkeypatch):
        path = tmp_path / "checkpoint.pt"
        with pytest.raises(Killed):
            self.start(Drawing, path, killed=4).run()
        good = path.read_bytes()

        def full(state, file):
            file.write(b"half")
            raise OSError("no space left on device")

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="no space left"):
            self.start(Drawing, path).run()
        assert path.read_bytes() == good and os.listdir(tmp_path) == ["checkpoint.pt"]


class Exploding(LoRA):
    """The loss is no number from step three on."""

    def loss(self, outputs, batch, loss):
        self.calls = getattr(self, "calls", 0) + 1
        return super().loss(outputs, batch, loss) * (float("nan") if self.calls > 3 else 1.0)


class TestEndings:
    def test_a_loss_that_is_no_number_stops_the_run_soon(self):
        on, method = backbone("tiny-bert"), Exploding()
        context = training(on, method, max_steps=100)
        attach(method, on, context)
        with pytest.raises(Diverged, match="nan at step"):
            context.run()
        assert 3 < method.calls <= CHECK_EVERY

    def test_the_time_limit_stops_the_run(self):
        on, method = backbone("tiny-bert"), LoRA()
        context = training(on, method, max_steps=1000, deadline=time.monotonic() + 0.3)
        attach(method, on, context)
        with pytest.raises(TimeLimit, match="of 1000"):
            context.run()

    def test_the_scheduler_s_signal_writes_a_checkpoint_and_stops(self, tmp_path):
        class Stopped(LoRA):
            def on_step(self, step, ctx):
                if step.index == 2:
                    os.kill(os.getpid(), signal.SIGTERM)

        def start(plugin):
            on, method = backbone("tiny-bert"), plugin()
            context = training(on, method, max_steps=6, checkpoint=tmp_path / "checkpoint.pt")
            attach(method, on, context)
            return context

        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="step 3"):
            start(Stopped).run()
        assert signal.getsignal(signal.SIGTERM) is handler
        resumed, whole = start(LoRA), start(LoRA)
        resumed.run()
        whole.run()
        assert resumed.log.resumed == 1 and whole.log.resumed == 0
        assert same(resumed.weights(), whole.weights())

    def test_progress_is_told_at_every_look_at_the_loss(self):
        seen = []
        trained(LoRA(), max_steps=CHECK_EVERY + 5, progress=lambda step, total, loss: seen.append((step, total)))
        assert seen == [(CHECK_EVERY, CHECK_EVERY + 5), (CHECK_EVERY + 5, CHECK_EVERY + 5)]


class TestLog:
    def test_steps_examples_and_tokens_are_counted(self):
        data = encoded(8, lengths=[4, 6, 4, 6, 4, 6, 4, 6])
        log = trained(LoRA(), data=data, batch_size=8, max_steps=2).log
        assert (log.steps, log.examples, log.tokens, log.padded) == (2, 16, 80, 96)
        assert len(log.step_seconds) == 2

    def test_epochs_give_the_number_of_steps(self):
        assert training(backbone("tiny-bert"), LoRA(), encoded(10), max_steps=None, epochs=1.5).total_steps == 5

    def test_the_best_weights_on_validation_are_kept(self):
        values = iter([0.3, 0.9, 0.5])
        context = trained(LoRA(), score=lambda data: next(values), max_steps=6, evaluations=3)
        assert [list(entry) for entry in context.log.validation] == [[2, 0.3], [4, 0.9], [6, 0.5]]
        assert (context.log.best_step, context.log.best_value) == (4, 0.9)
        last = run(context.backbone, text("tiny-bert"))
        context.load_weights(context.best)
        assert not torch.equal(run(context.backbone, text("tiny-bert")), last)

    def test_the_same_seed_gives_the_same_numbers_and_another_does_not(self):
        one, two, other = trained(LoRA()), trained(LoRA()), trained(LoRA(), seed=1)
        assert same(one.weights(), two.weights()) and not same(one.weights(), other.weights())


def test_a_tensor_that_sites_share_is_kept_once():
    from methods.lowrank.vb_lora import VBLoRA

    on = backbone("tiny-bert")
    method = VBLoRA(VBLoRA.Settings(**VBLoRA.tiny))
    context = training(on, method)
    attach(method, on, context)
    kept = context.weights()
    unique = {id(p): p for p in method.parts.parameters()}
    head = sum(p.numel() for p in on.head.parameters())
    assert sum(t.numel() for t in kept.values()) == sum(p.numel() for p in unique.values()) + head
