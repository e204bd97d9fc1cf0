"""What a method is, and what it may do at each step of a cell.

Order: supports, plan, calibrate, attach, initialise, optimizer, phases, prepare_inference, merge, detach. Every
step has a default; a plain weight delta overrides only what it is about.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from models.backbone import Backbone
from models.batch import Batch, Outputs
from models.shape import BackboneShape, SiteId

Range = int | tuple[int, int]


@dataclass(frozen=True)
class Count:
    """Parameters of a method, its head apart: trained, stored for a task, added at inference after merging.

    Each is a number, or (low, high) where it depends on data.
    """

    trained: Range = 0
    stored: Range | None = None
    added: Range | None = None

    def resolved(self, mergeable: bool) -> Count:
        """What is not said: stored = trained; added = 0 where it merges, else trained."""
        stored = self.trained if self.stored is None else self.stored
        return Count(self.trained, stored, (0 if mergeable else self.trained) if self.added is None else self.added)


@dataclass(frozen=True)
class Plan:
    """Where a method attaches, decided from shapes alone. `groups`: sites that share parameters, by group name."""

    sites: tuple[SiteId, ...] = ()
    ranks: dict[SiteId, int] = field(default_factory=dict)
    groups: dict[str, tuple[SiteId, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """A stretch of training. share: part of the recipe's steps; data: the split it trains on.

    rewind: it begins again from the first weights, and no checkpoint from before it is chosen.
    """

    name: str = "train"
    share: float = 1.0
    data: str = "train"
    reset_optimizer: bool = True
    rewind: bool = False


@dataclass(frozen=True)
class Step:
    """Optimiser step `index` (from 0) of `total` in this phase."""

    index: int
    total: int
    phase: Phase


@dataclass
class StepResult:
    """loss: detached mean loss of the step. updated: the method has changed the parameters itself."""

    loss: Tensor
    updated: bool = False


@dataclass(frozen=True)
class MergeReport:
    """sites: weights written; max_error: largest |written - exact| over them, from rounding to the weights' type."""

    sites: tuple[SiteId, ...]
    max_error: float

    @property
    def exact(self) -> bool:
        return self.max_error == 0.0


class Context(Protocol):
    """What the harness lends to a method during a cell. total_steps: optimiser steps that the recipe comes to."""

    device: torch.device
    optimizer: Optimizer | None
    backbone: Backbone
    recipe: dict[str, Any]

    @property
    def total_steps(self) -> int: ...
    def batches(self, split: str = "train", n: int | None = None, start: int = 0) -> Iterator[Batch]: ...
    def split(self, shares: dict[str, float]) -> None: ...
    def pool(self, n: int | None = None) -> Iterator[Batch]: ...
    def evaluate(self, split: str = "validation", n: int | None = None) -> float: ...
    def rng(self, name: str) -> torch.Generator: ...
    def forward(self, batch: Batch) -> Outputs: ...
    def loss(self, outputs: Outputs, batch: Batch) -> Tensor: ...
    def backward(self, loss: Tensor) -> None: ...
    def autocast(self) -> AbstractContextManager: ...
    def set_trainable(self, parameters: Iterable[nn.Parameter], keep_state: bool = True) -> None: ...
    def train(self, phase: Phase) -> None: ...
    def measure(self, name: str) -> AbstractContextManager: ...


class Method:
    """One way of fine-tuning a frozen backbone. Class attributes are literals, read without importing the file.

    edits_base: what happens to the pretrained weights: "no", "offset" (W is split into W_res and a trained part),
    "trained" (some of them are trained in place), "replaced" (quantised, factorised).
    no_gradient: patterns of parameter names that may never get a gradient, with the reason in the docstring.
    learns: whether training is meant to lower the loss on the true labels; patience: steps in which it does on a toy
    task. tiny: settings for the conformance checks where the defaults do not fit networks of width 32. vectors_only: of
    pretrained weights only norms and biases are trained, which the estimate of a job's memory wants to know. These five
    never change a number and are not in a cell's key.
    `parts` holds the method's own modules; the head belongs to the harness.
    """

    name: str = ""
    family: str = ""
    title: str = ""
    paper: str = ""
    kinds: tuple[str, ...] = ("encoder", "decoder", "encoder_decoder", "vision")
    mergeable: bool = False
    identity_at_init: bool = False
    requires: tuple[str, ...] = ()
    recipe: dict[str, Any] = {}
    edits_base: Literal["no", "offset", "trained", "replaced"] = "no"
    stackable: bool = False
    trains: bool = True
    learns: bool = True
    patience: int = 15
    no_gradient: tuple[str, ...] = ()
    tiny: dict[str, Any] = {}
    vectors_only: bool = False

    @dataclass(frozen=True)
    class Settings:
        pass

    def __init__(self, settings: Any = None):
        self.settings = self.Settings() if settings is None else settings
        self.parts = nn.ModuleDict()
        self.base_parameters: dict[str, nn.Parameter] = {}
        self.found: dict[SiteId, Any] = {}
        self.backbone: Backbone | None = None
        self.planned = Plan()

    @classmethod
    def create(cls, values: dict[str, Any] | None = None) -> Method:
        """The method with settings given by name; lists become tuples. An unknown name is a TypeError."""
        known = {f.name for f in fields(cls.Settings)}
        for key in values or {}:
            if key not in known:
                raise TypeError(f"method '{cls.name}' has no setting '{key}'; it has: {', '.join(sorted(known))}")
        return cls(cls.Settings(**{k: tuple(v) if isinstance(v, list) else v for k, v in (values or {}).items()}))

    # ---- before training -----------------------------------------------------------------------------------

    def supports(self, shape: BackboneShape, task: Any) -> str | None:
        """None, or the reason why this backbone or task cannot be used."""
        return None if shape.kind in self.kinds else f"{self.name} is not defined for models of kind {shape.kind}"

    def plan(self, shape: BackboneShape) -> Plan:
        return Plan()

    def training_data(self, data: Any, ctx: Context) -> Any:
        """The training split (`tasks.base.Split`) this method learns from; the protocol's own by default."""
        return data

    def calibrate(self, backbone: Backbone, ctx: Context) -> None:
        """Before anything is attached: look at data or gradients, fill `self.found`, change `self.planned`."""

    def attach(self, backbone: Backbone, ctx: Context | None) -> None:
        """Allocate modules and attach them, by shape only: also runs on the meta device, where `ctx` is None."""

    def initialise(self, backbone: Backbone, ctx: Context) -> None:
        """Give the attached modules their values."""

    # ---- training --------------------------------------------------------------------------------------------

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters of the method that may be trained, each once, the head left out."""
        yield from self.parts.parameters()
        yield from self.base_parameters.values()

    def trained(self) -> list[nn.Parameter]:
        """Those that are trained now."""
        return [p for p in self.parameters() if p.requires_grad]

    def parameter_groups(self, recipe: dict[str, Any]) -> list[dict[str, Any]]:
        """Groups for the optimiser, head excluded. Weight decay acts on matrices, not on vectors and scalars."""
        matrices = [p for p in self.trained() if p.dim() >= 2]
        vectors = [p for p in self.trained() if p.dim() < 2]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        return [group for group in groups if group["params"]]

    def optimizer(self, groups: list[dict[str, Any]]) -> Optimizer | None:
        """An optimiser of the method's own over all groups (head included), or None for the recipe's."""
        return None

    def phases(self, recipe: dict[str, Any]) -> Sequence[Phase]:
        return (Phase(),) if self.trains else ()

    def between(self, done: Phase, ctx: Context) -> None:
        """After a phase: prune, select, rewind, rebuild."""

    def on_step_start(self, step: Step, ctx: Context) -> None:
        """Before the forward pass: draw masks, ranks and layers here, never inside forward."""

    def on_gradients(self, step: Step, ctx: Context) -> None:
        """Once an optimiser step: gradients are accumulated and unscaled, not yet clipped."""

    def on_step(self, step: Step, ctx: Context) -> None:
        """After the optimiser has stepped."""

    def forward(self, batch: Batch, call: Callable[[Batch], Outputs]) -> Outputs:
        """Around the whole model: several streams or passes. Generation does not pass here: see `logits`."""
        return call(batch)

    def loss(self, outputs: Outputs, batch: Batch, task_loss: Callable[[Outputs, Batch], Tensor]) -> Tensor:
        """The task's loss plus the penalties that sites left in the forward state."""
        total = task_loss(outputs, batch)
        for penalty in self.backbone.state.penalties.values():
            total = total + penalty.to(total.device)
        return total

    def training_step(self, batch: Batch, ctx: Context) -> StepResult:
        """Forward and backward of one micro-batch."""
        with ctx.autocast():
            loss = ctx.loss(ctx.forward(batch), batch)
        ctx.backward(loss)
        return StepResult(loss.detach())

    def logits(self, logits: Tensor, state: Any) -> Tensor:
        """Scores (B, vocabulary) of one generated token, (B, L, vocabulary) of given ones, or class scores."""
        return logits

    def training_state(self) -> dict[str, Any]:
        """Tensors and plain values, beyond parameters and buffers, that a resumed run needs."""
        return {}

    def load_training_state(self, state: dict[str, Any]) -> None:
        pass

    # ---- after training ----------------------------------------------------------------------------------------

    def prepare_inference(self) -> None:
        """Fold away what only training needs.

        Called once more when another checkpoint is put in its place, so it keeps the names of what is stored.
        """

    def kept(self) -> list[nn.Parameter]:
        """The parameters that inference needs beside the network, said from `attach` on."""
        return [] if self.mergeable else list(self.parts.parameters())

    def merge(self) -> MergeReport:
        """Write the learned change into the pretrained weights, so that inference costs nothing extra."""
        raise TypeError(f"{self.name} does not merge")

    def unmerge(self) -> None:
        raise TypeError(f"{self.name} does not merge")

    def detach(self) -> None:
        """Leave the backbone as it was before `attach`, bit for bit."""
        if self.backbone is not None:
            self.backbone.restore()
        self.parts, self.base_parameters, self.backbone = nn.ModuleDict(), {}, None

    def state_dict(self) -> dict[str, Tensor]:
        """Exactly what must be stored for a task: own parameters once each, and trained pretrained ones.

        Parameters of the method that were never trained are left out: they come back from the seed.
        """
        places, names = self._places(), self._stored_names()
        return {name: places[name].detach().contiguous().clone() for name in names}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """The inverse, onto a freshly attached method. A missing or unknown name is a KeyError."""
        places = self._places()
        if missing := set(self._stored_names()) - state.keys():
            raise KeyError(f"the stored state lacks {', '.join(sorted(missing))}")
        for name, value in state.items():
            if places[name].shape != value.shape:
                raise RuntimeError(
                    f"{name} is {tuple(value.shape)} in the stored state, not {tuple(places[name].shape)}"
                )
            places[name].copy_(value)

    def _places(self) -> dict[str, nn.Parameter]:
        """Every parameter that may be stored, by its name in the file."""
        return dict(self.parts.named_parameters()) | {f"base.{k}": p for k, p in self.base_parameters.items()}

    def _stored_names(self) -> list[str]:
        return [name for name, p in self._places().items() if name.startswith("base.") or is_stored(p)]

    def expected_parameters(self, shape: BackboneShape) -> Count:
        """The paper's closed form."""
        return Count()

    # ---- helpers for plugins -----------------------------------------------------------------------------------

    def train_base(self, backbone: Backbone, parameters: dict[str, nn.Parameter]) -> None:
        """Train these pretrained parameters in place, in fp32, and store them with the method."""
        backbone.train_weights(parameters.values())
        self.base_parameters |= parameters


def keep_stored(parameters: Iterable[nn.Parameter]) -> None:
    """Mark parameters as trained at some time: they are stored even if they end frozen."""
    for parameter in parameters:
        parameter.was_trained = True


def is_stored(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad or getattr(parameter, "was_trained", False)


def key(site: SiteId) -> str:
    """A site's name as a key of a ModuleDict (which takes no dots)."""
    return str(site).replace(".", "/")
