"""The training loop: one for every kind of model and every method. It is what the harness measures.

Bump TRAINING_LOOP in workflow/versions.py with any change here that could move a number.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.base import Method, Phase, Step, StepResult
from methods.base.contract import is_stored, keep_stored
from models.backbone import Backbone
from models.batch import Batch, Outputs
from workflow.data import IGNORED, Encoded, prefetch, sorted_batches, training_batches
from workflow.meter import Meter

CHECKPOINT = 3  # form of the checkpoint file; one of another form is dropped
CHECK_EVERY = 20  # steps between looks at the loss: a look waits for the device


class Diverged(Exception):
    """The loss is not a finite number."""


class TimeLimit(Exception):
    """The cell's own time limit was reached."""


class Interrupted(BaseException):
    """The scheduler asked the job to stop; a checkpoint was written."""


def task_loss(outputs: Outputs, batch: Batch) -> Tensor:
    """Cross-entropy over classes or next tokens, or squared error for one score; a mean, in fp32 (0 over nothing)."""
    logits, labels = outputs.logits.float(), outputs.targets(batch)
    if labels.dim() == 1:
        return F.cross_entropy(logits, labels) if labels.dtype == torch.long else F.mse_loss(logits[:, 0], labels)
    total = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp_min(1)


def learning_rate_factor(schedule: str, step: int, total: int, warmup: float) -> float:
    """Multiplier of the learning rate at optimiser step `step` (from 0) of `total`.

    warmup: a share of the steps (below 1) or their number. linear and cosine end at 0 after the last step.
    """
    warm = warmup if warmup >= 1 else warmup * total
    if step < warm:
        return (step + 1) / (warm + 1)
    if schedule == "constant":
        return 1.0
    progress = (step - warm) / max(1.0, total - warm)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


@dataclass
class Log:
    """What a run leaves behind besides weights."""

    train_loss: list[list[float]] = field(default_factory=list)
    validation: list[list[float]] = field(default_factory=list)
    trainable: list[list[int]] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    tokens: int = 0
    padded: int = 0
    examples: int = 0
    resumed: int = 0
    best_step: int = -1
    best_value: float = -math.inf
    after_optimizer: int = 0

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class Training:
    """One cell's training, and the context (`methods.base.Context`) that its method sees.

    `splits["train"]` is set before `run`. score: the task's primary metric on a split, larger is better; checkpoint:
    file for resumable state, or None. The same arguments give the same numbers, resumed or not. A training that took
    longer than `checkpoint_seconds` leaves its end beside the checkpoint, in `trained.pt`: what comes after it may be
    long, too.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        recipe: dict[str, Any],
        validation: Encoded | None,
        score: Callable[[Encoded], float] | None,
        seed: int,
        checkpoint: Path | None = None,
        checkpoint_seconds: float = 60.0,
        deadline: float | None = None,
        progress: Callable[[int, int, float], None] | None = None,
        meter: Meter | None = None,
    ):
        self.backbone, self.method, self.recipe, self.seed = backbone, method, recipe, seed
        self.splits: dict[str, Encoded] = {} if validation is None else {"validation": validation}
        self.score, self.progress, self.deadline = score, progress, deadline
        self.meter = Meter((backbone.device,)) if meter is None else meter
        self.checkpoint, self.checkpoint_seconds = checkpoint, checkpoint_seconds
        self.device = backbone.device
        self.optimizer: torch.optim.Optimizer | None = None
        self.log = Log()
        self.best: dict[str, Tensor] | None = None
        self._generators: dict[str, torch.Generator] = {}
        self._phase, self._weight = 0, None
        self._loss, self._loss_steps = torch.zeros((), device=self.device), 0
        self._depth, self._all_steps, self._stepped = 0, 0, 0
        self._initial: dict[str, Tensor] = {}
        self._ends: list[dict[str, Any]] = []
        self._stop = False
        self.dtype = getattr(torch, recipe["dtype"])
        self._scaler = torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None

    # ---- what a method may use -------------------------------------------------------------------------------

    def rng(self, name: str) -> torch.Generator:
        """The CPU generator of this name: starts from the cell's seed and the name, and goes on where it was."""
        if name not in self._generators:
            digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
            self._generators[name] = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return self._generators[name]

    def batches(self, split: str = "train", n: int | None = None, start: int = 0) -> Iterator[Batch]:
        """n batches of a split, from batch `start` of its training order (validation: every example, longest first).

        Without n, one epoch. A method that needs another batch at each step asks for `n=1, start=step.index`, which
        a resumed run repeats.
        """
        data, size = self.splits[split], self.recipe["batch_size"]
        if split == "validation":
            source: Iterator[Batch] = sorted_batches(data, size)
        else:
            source = training_batches(data, size, self.seed, start)
            n = -(-len(data) // size) if n is None else n
        for i, batch in enumerate(source):
            if i == n:
                return
            yield batch.to(self.device)

    def pool(self, n: int | None = None) -> Iterator[Batch]:
        """Training inputs without their labels."""
        for batch in self.batches("train", n):
            batch.labels = None
            yield batch

    def split(self, shares: dict[str, float]) -> None:
        """Cut the training data into named parts; a phase or `batches` may then ask for one by name."""
        data, ends = self.splits["train"], np.cumsum(list(shares.values()))
        if ends[-1] > 1 + 1e-9:
            raise ValueError(f"the shares of a split add up to {ends[-1]:g}, more than all training data")
        order = np.random.default_rng([self.seed, 1 << 20]).permutation(len(data))
        parts = np.split(order, np.round(ends * len(data)).astype(int))
        for name, rows in zip(shares, parts, strict=False):
            self.splits[name] = data.take(np.sort(rows))

    def evaluate(self, split: str = "validation", n: int | None = None) -> float:
        """The task's primary metric on a split (the first n examples of it); leaves training mode as it was."""
        data, modes = self.splits[split], (self.backbone.model.training, self.method.parts.training)
        try:
            with self.meter.phase("evaluate"):
                return float(self.score(data if n is None else data.take(np.arange(min(n, len(data))))))
        finally:
            self.backbone.train(modes[0])
            self.method.parts.train(modes[1])

    def autocast(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def forward(self, batch: Batch) -> Outputs:
        return self.method.forward(batch, self.backbone.forward)

    def loss(self, outputs: Outputs, batch: Batch) -> Tensor:
        return self.method.loss(outputs, batch, task_loss).to(self.device)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of one micro-batch, weighted by its share of the batch."""
        if self._weight is not None:
            loss = loss * self._weight
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def set_trainable(self, parameters: Iterable[nn.Parameter], keep_state: bool = True) -> None:
        """From now on exactly these parameters of the method are trained (the head always is).

        The others lose their gradient, so that an optimiser with momentum leaves them where they are; without
        `keep_state` they lose their optimiser state too.
        """
        keep_stored(self.method.trained())
        wanted = {id(p) for p in parameters}
        known = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        for parameter in self.method.parameters():
            parameter.requires_grad_(id(parameter) in wanted)
            if id(parameter) not in wanted:
                parameter.grad = None
                if not keep_state:
                    self.optimizer.state.pop(parameter, None)
            elif id(parameter) not in known:
                self._add_group([parameter], self.recipe["lr"])
        keep_stored(self.method.trained())
        self._log_trainable()

    def train(self, phase: Phase) -> None:
        """Run a phase inside another step of the method (searches); its steps and time are charged to the cell."""
        self._depth += 1
        optimizer, self.optimizer = self.optimizer, self._build_optimizer()
        self._run_phase(phase, self._steps(phase), 0)
        self.optimizer = optimizer
        self._depth -= 1

    @contextmanager
    def measure(self, name: str):
        """Charge the time of the block to the cell under this name."""
        start = time.perf_counter()
        yield
        synchronise(self.device)
        self.log.add(name, time.perf_counter() - start)

    # ---- the loop --------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the recipe, before phases take their shares."""
        if self.recipe["max_steps"]:
            return self.recipe["max_steps"]
        return math.ceil(self.recipe["epochs"] * -(-len(self.splits["train"]) // self.recipe["batch_size"]))

    def _steps(self, phase: Phase) -> int:
        return max(1, round(phase.share * self.total_steps))

    def run(self) -> None:
        """All phases of the method, from the checkpoint if there is one.

        A phase that an earlier run finished is not trained again: what it ended with is put back, and `between`
        then does to the structure what it did before.
        """
        torch.manual_seed(self.seed)
        phases: Sequence[Phase] = self.method.phases(self.recipe)
        self._all_steps = sum(self._steps(p) for p in phases)
        saved = self._load_checkpoint()
        self._ends = saved["ends"] if saved else []
        began, previous = time.monotonic(), self._catch_signal()
        try:
            for index, phase in enumerate(phases):
                self._phase = index
                self._start_phase(phase, index)
                if saved and index < saved["phase"]:
                    self._restore(copy.deepcopy(self._ends[index]))
                else:
                    start = self._resume(saved) if saved and index == saved["phase"] else 0
                    self._run_phase(phase, self._steps(phase), start)
                    if self.checkpoint is not None and index + 1 < len(phases):
                        self._ends.append(copy.deepcopy(self._snapshot(0)))
                    elif self._stop or time.monotonic() - began > self.checkpoint_seconds:
                        self._save_checkpoint(self._steps(phase), self._trained)
                        self._stop_if_asked()
                self.method.between(phase, self)
        finally:
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)

    @property
    def _trained(self) -> Path | None:
        return None if self.checkpoint is None else self.checkpoint.with_name("trained.pt")

    def _start_phase(self, phase: Phase, index: int) -> None:
        if phase.rewind:
            self.load_weights(self._initial)
            self.best, self.log.best_step, self.log.best_value = None, -1, -math.inf
        if self.optimizer is None or phase.reset_optimizer:
            self.optimizer = self._build_optimizer()
        if index == 0:
            self._initial = self.weights() if any(p.rewind for p in self.method.phases(self.recipe)) else {}
            self.log.after_optimizer = self._in_optimizer()
            self._log_trainable()

    def _run_phase(self, phase: Phase, total: int, start: int) -> None:
        recipe = self.recipe
        stream = prefetch(
            training_batches(self.splits[phase.data], recipe["batch_size"], self.seed, start), self.device
        )
        evaluate_at = self._evaluation_steps(total)
        checkpointed = time.monotonic()
        self.backbone.train(True)
        self.method.parts.train(True)
        clock = StepClock(self.device, self.log)
        for index in range(start, total):
            clock.start()
            batch = next(stream)
            factor = learning_rate_factor(recipe["schedule"], index, total, recipe["warmup"])
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            step = Step(index, total, phase)
            self._loss += self._step(batch, step).to(self.device)
            self._loss_steps += 1
            clock.stop()
            self._count(batch)
            if self._loss_steps == CHECK_EVERY or index + 1 == total or index + 1 in evaluate_at:
                self._look_at_loss()
            if index + 1 in evaluate_at:
                self._evaluate()
            if self.deadline is not None and time.monotonic() > self.deadline:
                raise TimeLimit(f"time limit reached at step {self.log.steps} of {self._all_steps}")
            due = time.monotonic() - checkpointed > self.checkpoint_seconds
            if (due or self._stop) and index + 1 < total and self._depth == 0:
                self._save_checkpoint(index + 1, self.checkpoint)
                checkpointed = time.monotonic()
                self._stop_if_asked()
        clock.finish()

    def _stop_if_asked(self) -> None:
        if self._stop:
            raise Interrupted(f"stopped by the scheduler at step {self.log.steps}; the same command resumes")

    def _look_at_loss(self) -> None:
        """Note the mean loss since the last look; the only place of the loop that waits for the device."""
        value = float(self._loss) / self._loss_steps
        self.meter.sample()
        self.log.train_loss.append([self.log.steps, round(value, 6)])
        if not math.isfinite(value):
            raise Diverged(f"training loss is {value} at step {self.log.steps}")
        self._loss.zero_()
        self._loss_steps = 0
        if self.progress:
            self.progress(self.log.steps, self._all_steps, value)

    def _step(self, batch: Batch, step: Step) -> Tensor:
        self.method.on_step_start(step, self)
        result = self.forward_backward(batch)
        if not result.updated:
            if self._scaler is not None:
                self._scaler.unscale_(self.optimizer)
            self.method.on_gradients(step, self)
            if self.recipe["clip"]:
                nn.utils.clip_grad_norm_(self._with_gradient(), self.recipe["clip"])
            if self._scaler is None:
                self.optimizer.step()
            else:
                self._scaler.step(self.optimizer)
                self._scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        self._stepped = 1
        self.method.on_step(step, self)
        self._stepped = 0
        return result.loss

    def forward_backward(self, batch: Batch) -> StepResult:
        """Gradients of a batch, or what the method does instead of taking them, by micro-batches."""
        micro, rows = self.recipe["micro_batch_size"], len(batch)
        if not micro or micro >= rows:
            self._weight = None
            return self.method.training_step(batch, self)
        loss, updated = torch.zeros((), device=self.device), False
        for first in range(0, rows, micro):
            part = batch.rows_slice(slice(first, min(first + micro, rows)))
            self._weight = _share(part, batch)
            result = self.method.training_step(part, self)
            loss += (result.loss * self._weight).to(self.device)
            updated = updated or result.updated
        return StepResult(loss, updated)

    def _with_gradient(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]

    def _count(self, batch: Batch) -> None:
        self.log.steps += 1
        self.log.tokens += batch.tokens
        self.log.padded += batch.padded
        self.log.examples += len(batch)

    def _evaluation_steps(self, total: int) -> set[int]:
        if self.score is None or "validation" not in self.splits or self._depth:
            return set()
        return {round(total * (i + 1) / self.recipe["evaluations"]) for i in range(self.recipe["evaluations"])} - {0}

    def _evaluate(self) -> None:
        with self.measure("validation"):
            value = self.evaluate("validation")
        self.log.validation.append([self.log.steps, round(value, 6)])
        if value > self.log.best_value:
            self.log.best_value, self.log.best_step = value, self.log.steps
            self.best = self.weights("cpu")

    # ---- optimiser -------------------------------------------------------------------------------------------

    def _build_optimizer(self) -> torch.optim.Optimizer:
        recipe, groups = self.recipe, list(self.method.parameter_groups(self.recipe))
        if self.backbone.head is not None:
            lr = recipe["lr"] if recipe["head_lr"] is None else recipe["head_lr"]
            parameters = list(self.backbone.head.parameters())
            groups.append({"params": [p for p in parameters if p.dim() > 1], "lr": lr})
            groups.append({"params": [p for p in parameters if p.dim() < 2], "lr": lr, "weight_decay": 0.0})
        groups = [{"lr": recipe["lr"], "weight_decay": recipe["weight_decay"]} | g for g in groups if g["params"]]
        optimizer = self.method.optimizer(groups) or self._default_optimizer(groups)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return optimizer

    def _default_optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        recipe = self.recipe
        if recipe["optimizer"] == "adamw":
            return torch.optim.AdamW(
                groups, lr=recipe["lr"], betas=tuple(recipe["betas"]), eps=recipe["eps"], fused=True
            )
        return torch.optim.SGD(groups, lr=recipe["lr"], momentum=recipe["betas"][0])

    def _add_group(self, parameters: list[nn.Parameter], lr: float) -> None:
        decay = self.recipe["weight_decay"] if parameters[0].dim() >= 2 else 0.0
        self.optimizer.add_param_group({"params": parameters, "lr": lr, "initial_lr": lr, "weight_decay": decay})

    def _in_optimizer(self) -> int:
        head = {id(p) for p in self.backbone.head.parameters()} if self.backbone.head is not None else set()
        groups = self.optimizer.param_groups
        return sum(p.numel() for g in groups for p in g["params"] if id(p) not in head and p.requires_grad)

    def _log_trainable(self) -> None:
        """Note the number of trained parameters from the present step on (after it: from the next)."""
        at = self.log.steps + self._stepped
        self.log.trainable.append([at, sum(p.numel() for p in self.method.trained())])

    # ---- weights and resumable state ---------------------------------------------------------------------------

    def _places(self) -> dict[str, Tensor]:
        """Every tensor that training may change, once, by a stable name."""
        places = {f"parts.{k}": v for k, v in self.method.parts.state_dict(keep_vars=True).items()}
        places |= {f"base.{k}": v for k, v in self.method.base_parameters.items()}
        if self.backbone.head is not None:
            places |= {f"head.{k}": v for k, v in self.backbone.head.state_dict(keep_vars=True).items()}
        first: dict[int, str] = {}
        return {name: tensor for name, tensor in places.items() if first.setdefault(id(tensor), name) == name}

    def weights(self, device: str | None = None) -> dict[str, Tensor]:
        """A copy of what is trained (method, changed backbone weights, head), on a device or where it is."""
        return {name: tensor.detach().to(device, copy=True) for name, tensor in self._places().items()}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        places = self._places()
        for name, value in weights.items():
            places[name].copy_(value)

    def _snapshot(self, step: int) -> dict[str, Any]:
        """All that the rest of the training depends on; references, not copies."""
        names = {id(tensor): name for name, tensor in self._places().items()}
        return {
            "format": CHECKPOINT,
            "step": step,
            "phase": self._phase,
            "loss": (float(self._loss), self._loss_steps),
            "weights": self.weights(),
            "initial": self._initial,
            "best": self.best,
            "groups": [[names[id(p)] for p in group["params"]] for group in self.optimizer.param_groups],
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self._scaler is None else self._scaler.state_dict(),
            "trained": [(p.requires_grad, is_stored(p)) for p in self.method.parameters()],
            "method": self.method.training_state(),
            "log": vars(self.log),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            "generators": {name: generator.get_state() for name, generator in self._generators.items()},
        }

    def _save_checkpoint(self, step: int, path: Path | None) -> None:
        """Write the state to a file, whole or not at all. Raises OSError where the disk is full or fails."""
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            _write(self._snapshot(step) | {"ends": self._ends}, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _load_checkpoint(self) -> dict[str, Any] | None:
        """The saved state, the latest first; one that cannot be read is dropped."""
        for path in (self._trained, self.checkpoint):
            if path is None or not path.exists():
                continue
            try:
                saved = torch.load(path, map_location="cpu", weights_only=True)
                if saved["format"] == CHECKPOINT:
                    return saved
            except Exception as problem:
                print(f"dropped a checkpoint that cannot be read: {problem}", file=sys.stderr)
            path.unlink(missing_ok=True)
        return None

    def _resume(self, saved: dict[str, Any]) -> int:
        """Go on where a checkpoint was written; returns the next step of the phase."""
        self._restore(saved)
        self.log.resumed += 1
        return saved["step"]

    def _restore(self, saved: dict[str, Any]) -> None:
        """Put everything back as it was when the snapshot was taken."""
        self.method.load_training_state(saved["method"])
        for parameter, (trained, stored) in zip(self.method.parameters(), saved["trained"], strict=True):
            parameter.requires_grad_(trained)
            if stored:
                keep_stored([parameter])
        self.load_weights(saved["weights"])
        self._restore_groups(saved["groups"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self._scaler is not None:
            self._scaler.load_state_dict(saved["scaler"])
        self._initial, self.best = saved["initial"], saved["best"]
        self.log = Log(**saved["log"])
        self._loss.fill_(saved["loss"][0])
        self._loss_steps = saved["loss"][1]
        torch.set_rng_state(saved["rng"])
        if saved["cuda_rng"] and self.device.type == "cuda":
            torch.cuda.set_rng_state_all(saved["cuda_rng"])
        for name, state in saved["generators"].items():
            self.rng(name).set_state(state)

    def _restore_groups(self, saved: list[list[str]]) -> None:
        """Give the optimiser the same parameters in the same order, also those that joined during training."""
        places, groups = self._places(), self.optimizer.param_groups
        del groups[len(saved) :]
        for index, names in enumerate(saved):
            parameters = [places[name] for name in names]
            if index < len(groups):
                groups[index]["params"] = parameters
            else:
                self.optimizer.add_param_group({"params": parameters})

    def _catch_signal(self):
        """SIGTERM (preemption, scancel, time limit) asks for a checkpoint at the next look at the loss."""

        def stop(number, frame):
            self._stop = True

        try:
            return signal.signal(signal.SIGTERM, stop)
        except ValueError:
            return None


def _write(state: dict[str, Any], path: Path) -> None:
    """Save to a file, down to the disk. Raises OSError with its name."""
    try:
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as problem:
        hidden = problem.__context__ if isinstance(problem, RuntimeError) else problem  # torch's writer says only that
        if not (isinstance(hidden, OSError) and hidden.errno):
            raise
        hidden.filename = str(path)
        raise hidden from None


def _share(part: Batch, whole: Batch) -> float | Tensor:
    """Weight of a micro-batch's mean loss in the mean over the batch: its share of rows, or of learned tokens."""
    if whole.labels is None or whole.labels.dim() < 2:
        return len(part) / len(whole)
    return (part.labels != IGNORED).sum() / (whole.labels != IGNORED).sum().clamp_min(1)


class StepClock:
    """Seconds of each optimiser step without waiting for the device: CUDA events there, a clock elsewhere."""

    def __init__(self, device: torch.device, log: Log):
        self.log, self.cuda = log, device.type == "cuda"
        self.events: list[tuple[Any, Any]] = []

    def start(self) -> None:
        if self.cuda:
            self.begin = torch.cuda.Event(enable_timing=True)
            self.begin.record()
        else:
            self.begin = time.perf_counter()

    def stop(self) -> None:
        if self.cuda:
            end = torch.cuda.Event(enable_timing=True)
            end.record()
            self.events.append((self.begin, end))
            if len(self.events) >= 1000:
                self.finish()
        else:
            self.log.step_seconds.append(time.perf_counter() - self.begin)

    def finish(self) -> None:
        if self.events:
            torch.cuda.synchronize()
            self.log.step_seconds += [begin.elapsed_time(end) / 1e3 for begin, end in self.events]
            self.events.clear()


def synchronise(device: torch.device) -> None:
    """Wait until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
