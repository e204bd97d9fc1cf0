"""What every method must show: one function a rule, run on tiny networks of each kind. See docs/add_a_method.md.

A rule returns nothing or a note, or raises `Failed` (what was expected, what was found, where) or `Skip` (why it
does not apply).
"""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from methods.base import Count, Method
from models.backbone import Backbone
from models.batch import Batch
from models.shape import BackboneShape
from workflow import measure, registry, settings, toy, verdicts
from workflow.data import Encoded
from workflow.grid import BASE_RECIPE
from workflow.registry import ROOT, MethodInfo
from workflow.train import Training, task_loss
from workflow.verdicts import Verdict

KINDS = ("encoder", "decoder", "encoder_decoder", "vision")
TOLERANCE = 1e-4  # of outputs in fp32, relative to the largest
OFFSET_TOLERANCE = 1e-3  # the same at initialisation where W is split into a rest and a trained part
NOISE = 1e-6  # a gradient below this share of the largest one is rounding
FALL = 0.97  # the loss must end below this share of where it began
LEARNING_RATES = (1e-2, 1e-1, 1e-3)  # tried in turn until the loss falls
RECIPE = BASE_RECIPE | {
    "lr": 1e-2,
    "batch_size": 8,
    "max_steps": 3,
    "evaluations": 0,
    "schedule": "constant",
    "warmup": 0.0,
}

LIFE = {"batch_size": 4, "examples": 16}  # small batches: random numbers and bf16 are slow on a CPU


class Failed(Exception):
    """The method breaks a rule; the text says what was expected, what was found and where."""


class Skip(Exception):
    """The rule does not apply; the text says why."""


@dataclass(frozen=True)
class Rule:
    """One check. per_model: it runs on every tiny network, else once a method."""

    number: str
    run: Callable[[Case], str | None]
    per_model: bool

    @property
    def name(self) -> str:
        return self.run.__name__

    @property
    def title(self) -> str:
        return self.run.__doc__.splitlines()[0]


RULES: dict[str, Rule] = {}


def rule(number: str, per_model: bool = True) -> Callable:
    def add(function: Callable[[Case], str | None]) -> Callable:
        RULES[function.__name__] = Rule(number, function, per_model)
        return function

    return add


@dataclass(frozen=True)
class Case:
    """A method on a tiny network, and what its rules share."""

    info: MethodInfo
    model: str

    @cached_property
    def plugin(self) -> type[Method]:
        return registry.load_method(self.info)

    @cached_property
    def unsupported(self) -> str | None:
        return self.create().supports(_shape(self.model), toy.task(self.model))

    @cached_property
    def shared(self) -> dict[Any, Any]:
        """What one rule made and others look at (see `lived`); empty again after a rule that failed."""
        return {}

    def create(self, **values: Any) -> Method:
        return self.plugin.create(self.plugin.tiny | values)


@dataclass(frozen=True)
class Result:
    """status: ok, FAILED or skipped; text: the reason, or a note."""

    rule: Rule
    model: str
    status: str
    text: str
    seconds: float


# ---- running a method ----------------------------------------------------------------------------------------


@cache
def _shape(model: str) -> BackboneShape:
    return toy.backbone(model).shape


def begin(
    case: Case,
    *,
    backbone: Backbone | None = None,
    dtype: str = "float32",
    examples: int = 32,
    values: dict[str, Any] | None = None,
    marked: bool = False,
    **recipe: Any,
) -> Training:
    """The method attached to a tiny network and initialised, ready for `run()`.

    values: settings; marked: with NaN in all memory that `attach` and `initialise` take and do not write to.
    """
    backbone = backbone or toy.backbone(case.model, getattr(torch, dtype))
    method = case.create(**(values or {}))
    validation = toy.examples(case.model, 8, seed=1)
    training = Training(
        backbone,
        method,
        RECIPE | {"dtype": dtype} | recipe,
        validation,
        lambda data: -mean_loss(training, data),
        seed=0,
    )
    training.splits["train"] = toy.encode(case.model, method.training_data(toy.split(case.model, examples), training))
    method.planned = method.plan(backbone.shape)
    method.calibrate(backbone, training)
    with _unwritten_is_nan() if marked else nullcontext():
        method.attach(backbone, training)
        method.initialise(backbone, training)
    if marked:
        left = [name for name, tensor in method.state_dict().items() if bool(tensor.isnan().any())]
        expect(not left, "numbers", f"NaN, or memory that was never written, in {', '.join(left)}", "initialise")
    return training


@contextmanager
def _unwritten_is_nan() -> Iterator[None]:
    mode, fill = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill


def evaluating(training: Training) -> None:
    if training.backbone.model.training or training.method.parts.training:  # setting it takes long
        training.backbone.train(False)
        training.method.parts.train(False)


@torch.inference_mode()
def outputs(training: Training, batch: Batch) -> list[Tensor]:
    """Logits without dropout, one tensor a row; of texts at real tokens only."""
    evaluating(training)
    backbone, method = training.backbone, training.method
    out = method.forward(batch, backbone.forward)
    logits, state = method.logits(out.logits, backbone.state).float(), backbone.state
    if logits.dim() == 2:
        return list(logits)
    if backbone.kind == "encoder_decoder":
        keep = out.labels != -100
    elif state.slots is not None and logits.shape[1] == state.mask.shape[1]:
        keep = state.mask & ~state.slots
    else:
        keep = batch.mask
    return [row[real] for row, real in zip(logits, keep, strict=True)]


def output(training: Training) -> Tensor:
    """All logits of one fixed, padded batch."""
    return torch.cat(
        [row.flatten() for row in outputs(training, toy.examples(training.backbone.name, 6).batch(np.arange(6)))]
    )


@torch.inference_mode()
def mean_loss(training: Training, data: Encoded) -> float:
    evaluating(training)
    batch = data.batch(np.arange(len(data)))
    return task_loss(training.method.forward(batch, training.backbone.forward), batch).item()


def parameters(method: Method) -> dict[str, nn.Parameter]:
    """What is trained now, by name: `0.attn.q.A`; a pretrained parameter by the name that the method gives it."""
    own = {id(p): name.replace("/", ".") for name, p in method.parts.named_parameters()}
    base = {id(p): name for name, p in method.base_parameters.items()}
    return {(own | base).get(id(p), f"parameter {i} outside `parts`"): p for i, p in enumerate(method.trained())}


def record_gradients(training: Training) -> list[dict[str, Tensor]]:
    """A list that gets the gradients of every step, by name, before the method or clipping sees them."""
    seen, original, head = [], training.method.on_gradients, training.backbone.head

    def on_gradients(step, ctx):
        names = parameters(training.method)
        names |= {f"head.{name}": p for name, p in head.named_parameters()} if head is not None else {}
        seen.append({name: p.grad.clone() for name, p in names.items() if p.grad is not None})
        original(step, ctx)

    training.method.on_gradients = on_gradients
    return seen


def record_undeclared(training: Training) -> list[str | None]:
    """A list that gets, at the first backward pass, what would receive a gradient unasked, or None."""
    seen, original = [], training.backward

    def backward(loss):
        if not seen:
            seen.append(_undeclared(training, loss))
        original(loss)

    training.backward = backward
    return seen


def _undeclared(training: Training, loss: Tensor) -> str | None:
    """The place of a tensor that is neither trained by the method nor in the head and would receive a gradient."""
    backbone, method = training.backbone, training.method
    head = backbone.head.parameters() if backbone.head is not None else ()
    declared = {id(p) for p in (*method.trained(), *head)}
    names = {id(p): name for name, p in (*backbone.model.named_parameters(), *method.parts.named_parameters())}
    asked = [p for p in backbone.model.parameters() if p.requires_grad]
    more = (leaf for leaf in (*asked, *_leaves(loss)) if id(leaf) not in declared)
    places = (names.get(id(leaf), f"a tensor of shape {tuple(leaf.shape)} outside `parts`") for leaf in more)
    return next(places, None)


def _leaves(loss: Tensor) -> list[Tensor]:
    """The tensors that `backward` would give a gradient."""
    found, seen, waiting = [], set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [parent for parent, _ in node.next_functions]
    return found


def tensors(backbone: Backbone) -> dict[str, Tensor]:
    """Copies of every parameter and buffer of the network."""
    return {name: tensor.detach().clone() for name, tensor in _named_tensors(backbone)}


def _named_tensors(backbone: Backbone) -> Iterator[tuple[str, Tensor]]:
    yield from backbone.model.named_parameters()
    yield from backbone.model.named_buffers()


def structure(backbone: Backbone) -> dict[str, Any]:
    """Everything of the network besides values: classes, attributes, hooks and flags, by place."""
    facts: dict[str, Any] = {
        "config: attention": backbone.model.config._attn_implementation,
        "switch": backbone.switch.on,
    }
    for name, module in backbone.model.named_modules():
        place = name or "(model)"
        facts[f"{place}: class"] = type(module)
        facts[f"{place}: attributes"] = sorted(vars(module))
        facts[f"{place}: hooks"] = {
            k: len(v) for k, v in vars(module).items() if "hooks" in k and hasattr(v, "__len__")
        }
    for name, parameter in backbone.model.named_parameters():
        hooks = (parameter._backward_hooks, parameter._post_accumulate_grad_hooks)
        facts[f"{name}: identity"] = id(parameter)
        facts[f"{name}: requires_grad"] = parameter.requires_grad
        facts[f"{name}: gradient"] = parameter.grad is not None
        facts[f"{name}: hooks"] = sum(len(h) for h in hooks if h)
    return facts


# ---- one life, many rules ------------------------------------------------------------------------------------


@dataclass
class Look:
    """What is seen of a training at one time.

    network: its tensors; weights: what is trained, and the head; trained, frozen: the types of trained parameters and
    of the network's others; base: names of pretrained tensors that are trained; planned: of those at planned sites.
    """

    network: dict[str, Tensor]
    weights: dict[str, Tensor]
    trained: dict[str, torch.dtype]
    frozen: dict[str, torch.dtype]
    base: list[str]
    planned: list[str]


@dataclass
class Life:
    """A method attached, initialised and trained by the real loop, so that nothing is at its start any more.

    before: tensors of the network as it came; start: after `initialise`; end: after training; then inference was
    prepared. gradients: of every step. unmerged: output and network before its change was merged. Of the first life
    alone, facts: structure of the network as it came; undeclared: see `record_undeclared`, of a plain training step.
    """

    training: Training
    before: dict[str, Tensor]
    facts: dict[str, Any]
    start: Look
    end: Look
    gradients: list[dict[str, Tensor]]
    undeclared: list[str | None]
    unmerged: tuple[Tensor, dict[str, Tensor]] | None = None

    @cached_property
    def output(self) -> Tensor:
        return output(self.training)


FIRST, SECOND, HALF = "first", "second", "half"  # two equal lives, and one in bf16


def lived(case: Case, which: str) -> Life:
    """A life of the method, lived once: rules look at it. One that changes it gets it from `take`."""
    if which not in case.shared:
        case.shared[which] = _live(case, which)
    return case.shared[which]


def take(case: Case, which: str) -> Life:
    """The same for one rule alone: whoever asks next gets another."""
    lived(case, which)
    return case.shared.pop(which)


def _live(case: Case, which: str) -> Life:
    torch.manual_seed(1 + (FIRST, SECOND, HALF).index(which))  # nothing may depend on what was drawn before
    dtype = "bfloat16" if which == HALF else "float32"
    backbone = toy.backbone(case.model, getattr(torch, dtype))
    before, facts = tensors(backbone), structure(backbone) if which == FIRST else {}
    training = begin(case, backbone=backbone, dtype=dtype, marked=which == SECOND, **LIFE)
    method, start, seen = training.method, _look(training), record_gradients(training)
    plain = which == FIRST and type(method).training_step is Method.training_step
    undeclared = record_undeclared(training) if plain else []
    training.run()
    end = _look(training)
    method.prepare_inference()
    case.shared[which, "weights"] = start.weights, end.weights
    return Life(training, before, facts, start, end, seen, undeclared)


def _look(training: Training) -> Look:
    backbone, method = training.backbone, training.method
    named = dict(_named_tensors(backbone))
    base = {id(p) for p in method.base_parameters.values()}
    planned: set[int] = set()
    if method.edits_base in ("offset", "replaced"):
        modules = [backbone.site(s).module for s in method.planned.sites if s in backbone.shape.linears]
        planned = {id(p) for module in modules for p in module.parameters()}
    beside = _beside_trained(method, backbone) if base else set()
    frozen = {name: t.dtype for name, t in named.items() if isinstance(t, nn.Parameter) and id(t) not in beside}
    return Look(
        {name: tensor.detach().clone() for name, tensor in named.items()},
        training.weights(),
        {name: p.dtype for name, p in parameters(method).items()},
        frozen,
        [name for name, tensor in named.items() if id(tensor) in base],
        [name for name, tensor in named.items() if id(tensor) in planned],
    )


def _beside_trained(method: Method, backbone: Backbone) -> set[int]:
    """Ids of trained pretrained parameters and of those in the same module: a norm wants one type for both."""
    base = {id(p) for p in method.base_parameters.values()}
    families = ([id(p) for p in module.parameters(recurse=False)] for module in backbone.model.modules())
    return {own for family in families if base & set(family) for own in family}


def begun(case: Case) -> Training:
    """The method attached and initialised, as rule 6.1 trains it first; the others look at it."""
    if "begun" not in case.shared:
        case.shared["begun"] = _begin_to_learn(case, LEARNING_RATES[0])
    return case.shared["begun"]


def _begin_to_learn(case: Case, rate: float) -> Training:
    """Ready for the steps of rule 6.1, the head frozen wherever something else is trained."""
    training = begin(case, lr=rate, batch_size=16, max_steps=case.create().patience)
    if training.method.trained():
        training.recipe["head_lr"] = 0.0
    return training


# ---- comparing -----------------------------------------------------------------------------------------------


def expect(condition: bool, expected: object, found: object, where: str) -> None:
    if not condition:
        raise Failed(f"expected {expected}, found {found}, at {where}")


def same_tensors(before: dict[str, Tensor], after: dict[str, Tensor], where: str, skip: Iterable[str] = ()) -> None:
    """Bit for bit, with type and shape."""
    skipped = set(skip)
    expect(
        before.keys() == after.keys(),
        "the same tensors",
        f"a difference in {sorted(before.keys() ^ after.keys())}",
        where,
    )
    for name, old in before.items():
        new = after[name]
        if name in skipped or (old.dtype == new.dtype and torch.equal(old, new)):
            continue
        place = f"{where}, {name}"
        expect(old.dtype == new.dtype, old.dtype, new.dtype, place)
        expect(old.shape == new.shape, tuple(old.shape), tuple(new.shape), place)
        different = int((old != new).sum())
        largest = (old.double() - new.double()).abs().max().item()
        found = f"{different} of {old.numel()} entries changed by up to {largest:.2g}"
        expect(False, "the same bits", found, place)


def close(expected: Tensor, found: Tensor, where: str, tolerance: float = TOLERANCE) -> float:
    """The largest difference relative to the largest expected value, which must not pass the tolerance."""
    expect(expected.shape == found.shape, f"shape {tuple(expected.shape)}", f"shape {tuple(found.shape)}", where)
    largest = expected.abs().max().item()
    error = (expected - found).abs().max().item() / max(largest, 1e-30)
    expect(error <= tolerance, f"the same output within {tolerance:g}", f"a relative difference of {error:.2g}", where)
    return error


def within(found: int, expected: int | tuple[int, int]) -> bool:
    low, high = expected if isinstance(expected, tuple) else (expected, expected)
    return low <= found <= high


def _expected(training: Training) -> Count:
    method = training.method
    return method.expected_parameters(training.backbone.shape).resolved(method.mergeable)


def _itemised(method: Method) -> str:
    items = [f"{name} {p.numel()}" for name, p in parameters(method).items()]
    return ", ".join(items[:6]) + (f" and {len(items) - 6} more" if len(items) > 6 else "")


# ---- 1 the file ----------------------------------------------------------------------------------------------


@rule("1.1", per_model=False)
def metadata(case: Case) -> None:
    """Name, family, title, paper, kinds and recipe are there and make sense."""
    info, plugin, where = case.info, case.plugin, case.info.class_name
    expect(bool(re.fullmatch(r"[a-z][a-z0-9_]*", info.name)), "a name in lower case", repr(info.name), f"{where}.name")
    for attribute in ("family", "title"):
        expect(bool(getattr(info, attribute)), f"a {attribute}", "none", f"{where}.{attribute}")
    expect(bool(info.doc), "a docstring with the formula", "none", "the top of the file")
    expect(
        bool(info.paper) or info.family == "control", "the arXiv number or DOI of the paper", "none", f"{where}.paper"
    )
    kinds = plugin.kinds
    expect(bool(kinds) and set(kinds) <= set(KINDS), f"some of {', '.join(KINDS)}", kinds, f"{where}.kinds")
    unknown = set(plugin.recipe) - set(BASE_RECIPE)
    expect(not unknown, "keys of a recipe", sorted(unknown), f"{where}.recipe")
    unknown = set(plugin.tiny) - {f.name for f in fields(plugin.Settings)}
    expect(not unknown, "names of settings", sorted(unknown), f"{where}.tiny")
    for attribute in ("name", "mergeable", "identity_at_init", "recipe"):
        stated, actual = getattr(info, attribute), getattr(plugin, attribute)
        expect(stated == actual, f"{stated!r} as the source says", repr(actual), f"{where}.{attribute} after import")


@rule("1.2", per_model=False)
def settings_are_strict(case: Case) -> None:
    """Settings are a frozen dataclass of literals; an unknown name is an error that says so."""
    plugin, where = case.plugin, f"{case.info.class_name}.Settings"
    frozen = is_dataclass(plugin.Settings) and plugin.Settings.__dataclass_params__.frozen
    expect(frozen, "a frozen dataclass", plugin.Settings, where)
    names = [f.name for f in fields(plugin.Settings)]
    resolved = settings.resolve(case.info, {}, file=case.info.path, key="settings")
    missing = [name for name in names if name not in resolved]
    expect(not missing, "a literal default for every setting", f"none for {', '.join(missing)}", where)
    try:
        plugin.create({"no_such_setting": 1})
    except (TypeError, ValueError) as problem:
        expect("no_such_setting" in str(problem), "an error that names the setting", repr(problem), f"{where}.create")
    else:
        raise Failed(f"expected an error for the unknown setting 'no_such_setting', found none, at {where}")


@rule("1.3", per_model=False)
def discovery(case: Case) -> None:
    """Listing the methods finds the file under its name."""
    path = case.info.path
    inside = path.is_relative_to(ROOT / "methods")
    found = _listed()
    if inside and case.info.name not in found:
        _listed.cache_clear()
        found = _listed()
    other = found.get(case.info.name)
    taken = f"the name '{case.info.name}' at {other.path}" if other else f"no method '{case.info.name}'"
    if inside:
        expect(other is not None and other.path == path, f"{path} in the list of methods", taken, "discovery")
    else:
        expect(other is None, "a name of its own", taken, "discovery")


@cache
def _listed() -> dict[str, MethodInfo]:
    """The list of methods: reading it takes longer, the more there are."""
    return registry.methods()


# ---- 2 the backbone ------------------------------------------------------------------------------------------


@rule("2.1")
def gradients(case: Case) -> None:
    """Only the method's trained parameters and the head receive gradients."""
    seen = lived(case, FIRST).undeclared
    if not seen:  # the method steps in a way of its own, or does not
        training = begin(case)
        training.backbone.train(True)
        training.method.parts.train(True)
        batch = next(training.batches())
        seen = [_undeclared(training, training.loss(training.forward(batch), batch))]
    expect(seen[0] is None, "gradients of declared parameters only", "one more that requires them", seen[0])


@rule("2.2")
def backbone_unchanged(case: Case) -> None:
    """Attaching and training leave the network's tensors alone, but for what `edits_base` says."""
    life = lived(case, FIRST)
    edits, start = life.training.method.edits_base, life.start
    expect(
        not start.base or edits != "no",
        f"no trained pretrained parameters with {case.info.class_name}.edits_base = {edits!r}",
        f"{len(start.base)}",
        "attach",
    )
    if edits != "replaced":
        same_tensors(life.before, start.network, "attach and initialise", skip=start.planned)
    same_tensors(start.network, life.end.network, "three training steps", skip=start.base)


@rule("2.3")
def detach(case: Case) -> None:
    """After training, `detach` leaves every tensor, hook, class, attribute and flag as before `attach`."""
    life = take(case, FIRST)
    backbone, facts = life.training.backbone, life.facts
    life.training.method.detach()
    backbone.train(True)
    same_tensors(life.before, tensors(backbone), "detach")
    after = structure(backbone)
    for name in sorted(facts.keys() | after.keys()):
        expect(
            facts.get(name) == after.get(name),
            facts.get(name, "nothing"),
            after.get(name, "nothing"),
            f"detach, {name}",
        )


# ---- 3 counts ------------------------------------------------------------------------------------------------


@rule("3.1")
def count(case: Case) -> None:
    """As many parameters are trained and added as `expected_parameters` says."""
    training = begun(case)
    method, expected = training.method, _expected(training)
    attached = sum(p.numel() for p in method.trained())
    expect(
        within(attached, expected.trained), f"{expected.trained} trained", f"{attached} ({_itemised(method)})", "attach"
    )
    added = sum(p.numel() for p in method.kept())
    expect(within(added, expected.added), f"{expected.added} added at inference", added, "attach")


@rule("3.2")
def count_on_meta(case: Case) -> None:
    """`attach` runs without weights, on the meta device, and gives the same count."""
    backbone, method = toy.meta(case.model), case.create()
    method.planned = method.plan(backbone.shape)
    method.attach(backbone, None)
    real = [name for name, p in parameters(method).items() if p.device.type != "meta"]
    expect(not real, "parameters on the meta device", f"real ones: {', '.join(real[:3])}", "attach")
    attached, expected = sum(p.numel() for p in method.trained()), method.expected_parameters(backbone.shape).trained
    expect(within(attached, expected), f"{expected} trained", f"{attached} ({_itemised(method)})", "attach on meta")


@rule("3.3")
def count_in_optimizer(case: Case) -> None:
    """The optimiser holds exactly what is trained."""
    training = lived(case, SECOND).training
    if not training.method.trains:
        raise Skip("does not train")
    expected = _expected(training).trained
    expect(
        within(training.log.after_optimizer, expected), expected, training.log.after_optimizer, "the optimiser's groups"
    )


# ---- 4 to 6 learning -----------------------------------------------------------------------------------------


@rule("4.1")
def identity(case: Case) -> str:
    """With `identity_at_init`, attaching does not change the output."""
    training = begun(case)
    if not training.method.identity_at_init:
        raise Skip("identity_at_init is not declared")
    tolerance = OFFSET_TOLERANCE if training.method.edits_base in ("offset", "replaced") else NOISE
    error = close(_plain_output(case.model), output(training), "the output after initialise", tolerance)
    return f"error {error:.1g}" if error else "exact"


@cache
def _plain_output(model: str) -> Tensor:
    return output(Training(toy.backbone(model), Method(), RECIPE, None, None, seed=0))


@rule("5.1")
def every_parameter_learns(case: Case) -> str | None:
    """Within five steps every trained parameter gets a gradient that is not zero."""
    life = lived(case, SECOND)
    method, names, seen = life.training.method, life.start.trained, life.gradients
    if not method.trains or not names:
        raise Skip("trains nothing but the head" if method.trains else "does not train")
    still, left = _without_gradient(method, names, seen)
    if left:  # three steps were not enough
        still, left = _without_gradient(method, names, _five_steps(case))
    expect(
        not left,
        "a gradient for every trained parameter",
        f"none for {', '.join(left)}",
        f"{len(left)} of {len(names)}",
    )
    return f"exempt: {', '.join(method.no_gradient)}" if len(still) > len(left) else None


def _five_steps(case: Case) -> list[dict[str, Tensor]]:
    """The gradients of five steps; if the method steps by itself, what moved tells."""
    training = begin(case, max_steps=5)
    names = parameters(training.method)
    start = {name: p.detach().clone() for name, p in names.items()}
    seen = record_gradients(training)
    training.run()
    return seen or [{name: p.detach() - start[name] for name, p in names.items()}]


def _without_gradient(
    method: Method, names: Iterable[str], seen: list[dict[str, Tensor]]
) -> tuple[list[str], list[str]]:
    """Those of the parameters that got no gradient, and of them those that are not exempt."""
    moved = {name: max((g[name].abs().max().item() for g in seen if name in g), default=0.0) for name in names}
    floor = NOISE * max(moved.values())
    still = [name for name in names if moved[name] <= floor]
    return still, [name for name in still if not any(fnmatch.fnmatch(name, p) for p in method.no_gradient)]


@rule("6.1")
def loss_falls(case: Case) -> str:
    """With a frozen head, fifteen steps (or the method's `patience`) on a toy task lower its loss."""
    if not begun(case).method.learns:
        raise Skip("exempt: learns = False")
    data, tried = toy.examples(case.model, 32), []
    for rate in LEARNING_RATES:
        training = case.shared.pop("begun") if not tried else _begin_to_learn(case, rate)
        before = mean_loss(training, data)
        training.run()
        after = mean_loss(training, data)
        if after < FALL * before:
            return f"{before:.2f} to {after:.2f}"
        tried.append(f"{before:.4f} to {after:.4f} (lr {rate:g})")
    raise Failed(
        f"expected a loss below {FALL:g} of its start, found {', '.join(tried)}, at the toy task of {case.model}"
    )


# ---- 7 storing -----------------------------------------------------------------------------------------------


@rule("7.1")
def save_and_load(case: Case) -> None:
    """What is stored, loaded into a fresh attachment, gives the same output."""
    life = lived(case, SECOND)
    training, expected = life.training, life.output
    data = safetensors.save(training.method.state_dict())
    fresh = begin(case, **LIFE)
    with torch.no_grad():
        for parameter in fresh.method.trained():
            parameter.add_(1.0)
    _load(fresh, safetensors.load(data), training.backbone.head)
    close(expected, output(fresh), "the output after load_state_dict")


def _load(training: Training, state: dict[str, Tensor], head: nn.Module | None) -> None:
    if head is not None:
        training.backbone.head.load_state_dict(head.state_dict())
    training.method.load_state_dict(state)
    training.method.prepare_inference()


@rule("7.2")
def stored_bytes(case: Case) -> str:
    """The file holds as many numbers as stated, and is as large as reported."""
    training = lived(case, SECOND).training
    state = training.method.state_dict()
    stored, expected = sum(t.numel() for t in state.values()), _expected(training).stored
    expect(within(stored, expected), f"{expected} stored", stored, f"state_dict ({', '.join(list(state)[:4])} ...)")
    if not state:
        return "nothing stored"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "method.safetensors")
        safetensors.save_file(state, path)
        size = path.stat().st_size
    expect(
        size == measure.stored_bytes(state),
        f"{size} bytes, the size of the file",
        measure.stored_bytes(state),
        "stored_bytes",
    )
    return f"{size} bytes"


@rule("7.3", per_model=False)
def fresh_process(case: Case) -> None:
    """Another process rebuilds network and method, loads the file and computes the same."""
    life = lived(case, SECOND)
    training, expected = life.training, life.output
    with tempfile.TemporaryDirectory() as folder:
        safetensors.save_file(training.method.state_dict(), Path(folder, "method.safetensors"))
        if training.backbone.head is not None:
            safetensors.save_file(training.backbone.head.state_dict(), Path(folder, "head.safetensors"))
        error = _other_process().replay(case, folder)
        expect(not error, f"{case.model} rebuilt and loaded", error, "a fresh process")
        found = safetensors.load_file(Path(folder, "output.safetensors"))["output"]
    close(expected, found, f"the output of {case.model} in a fresh process")


class _OtherProcess:
    """A second interpreter that replays stored methods; it loads its libraries while other rules run."""

    def __init__(self):
        command = [sys.executable, "-c", "from workflow import conformance; conformance.serve()"]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def replay(self, case: Case, folder: str) -> str:
        """Let it write output.safetensors into the folder; returns its error, or ''."""
        print(json.dumps([str(case.info.path), case.model, folder]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline() or '"the process died"')


@cache
def _other_process() -> _OtherProcess:
    return _OtherProcess()


def serve() -> None:
    """The other process: answers each request on standard input, until there are no more."""
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a plugin prints is no answer
    for line in sys.stdin:
        path, model, folder = json.loads(line)
        case = Case(registry.read_method(Path(path)), model)
        try:
            _replay(case, Path(folder))
            error = ""
        except Exception as problem:  # a method may fail in any way
            error = f"{type(problem).__name__}: {problem}, at {_place(problem, case)}"
        print(json.dumps(error), file=answers, flush=True)


def _replay(case: Case, folder: Path) -> None:
    training = begin(case, **LIFE)
    head = folder / "head.safetensors"
    if head.exists():
        training.backbone.head.load_state_dict(safetensors.load_file(head))
    _load(training, safetensors.load_file(folder / "method.safetensors"), None)
    safetensors.save_file({"output": output(training)}, folder / "output.safetensors")


# ---- 8 merging -----------------------------------------------------------------------------------------------


@rule("8.1")
def merge(case: Case) -> str:
    """Merged weights alone compute what the attached method computed; the error in bf16 is shown."""
    errors = []
    for dtype, which, tolerance in (("float32", SECOND, TOLERANCE), ("bfloat16", HALF, 1.0)):
        training, before, _ = _merged(case, which)
        errors.append(close(before, output(training), f"the output after merge in {dtype}", tolerance))
        training.backbone.switch.on = False
        close(before, output(training), f"the merged backbone by itself in {dtype}", tolerance)
        training.backbone.switch.on = True
    return f"error {errors[0]:.1g} in fp32, {errors[1]:.1g} in bf16"


@rule("8.2")
def unmerge(case: Case) -> None:
    """`unmerge` brings back weights and output bit for bit, as often as asked."""
    for dtype, which in (("float32", SECOND), ("bfloat16", HALF)):
        training, before, start = _merged(case, which)
        for time_ in ("first", "second"):
            if time_ == "second":
                training.method.merge()
            training.method.unmerge()
            same_tensors(start, tensors(training.backbone), f"the {time_} unmerge in {dtype}")
        expect(torch.equal(before, output(training)), "the same output", "another", f"unmerge in {dtype}")
        case.shared[which] = case.shared.pop((which, "merged"))


def _merged(case: Case, which: str) -> tuple[Training, Tensor, dict[str, Tensor]]:
    """A life whose change is merged, with its output and the network's tensors before that; `unmerge` gives it back."""
    if not case.create().mergeable:
        raise Skip("does not merge")
    if (which, "merged") not in case.shared:
        life = take(case, which)
        life.unmerged = life.output, tensors(life.training.backbone)
        life.training.method.merge()
        case.shared[which, "merged"] = life
    life = case.shared[which, "merged"]
    return life.training, *life.unmerged


# ---- 9 numbers -----------------------------------------------------------------------------------------------


@rule("9.1")
def same_seed(case: Case) -> None:
    """The same seed gives the same start and the same result, whatever was drawn or lay in memory before."""
    for which in (SECOND, FIRST):  # the marked one first: it says what is wrong where the other only goes wrong
        if (which, "weights") not in case.shared:
            lived(case, which)
    starts, ends = zip(*(case.shared[which, "weights"] for which in (FIRST, SECOND)), strict=True)
    same_tensors(*starts, "initialise, second run")
    same_tensors(*ends, "three training steps, second run")


@rule("9.2")
def bf16(case: Case) -> None:
    """On a bf16 network the trained parameters are fp32, training and evaluation run, and `detach` brings bf16 back."""
    life = take(case, HALF)
    training, method = life.training, life.training.method
    for stage, look in (("initialise", life.start), ("three steps", life.end)):
        for name, dtype in look.trained.items():
            expect(dtype == torch.float32, torch.float32, dtype, f"{name} after {stage}")
        if method.edits_base in ("no", "trained"):
            for name, dtype in look.frozen.items():
                expect(dtype == torch.bfloat16, torch.bfloat16, dtype, f"{name} (frozen) after {stage}")
    expect(bool(life.output.isfinite().all()), "finite output", "nan or inf", "evaluation after three steps")
    method.detach()
    same_tensors(life.before, tensors(training.backbone), "detach in bf16")


@rule("9.3")
def checkpointing(case: Case) -> None:
    """Gradients of two steps, with dropout, are the same with and without gradient checkpointing."""
    if not case.create().trains:
        raise Skip("does not train")
    dropouts = {f.name: toy.DROPOUT for f in fields(case.plugin.Settings) if f.name.endswith("dropout")}
    runs = []
    for recompute in (False, True):
        torch.manual_seed(0)
        training = begin(case, max_steps=2, values=dropouts, **LIFE)
        if recompute:
            training.backbone.gradient_checkpointing()
        seen = record_gradients(training)
        training.run()
        runs.append(seen or [training.weights()])
    for step, (plain, again) in enumerate(zip(*runs, strict=True)):
        _same_gradients(plain, again, f"step {step}")


def _same_gradients(plain: dict[str, Tensor], again: dict[str, Tensor], where: str) -> None:
    expect(
        plain.keys() == again.keys(),
        "the same gradients",
        f"a difference in {sorted(plain.keys() ^ again.keys())}",
        where,
    )
    largest = max((g.abs().max().item() for g in plain.values()), default=0.0)
    for name, gradient in plain.items():
        allowed = TOLERANCE * gradient.abs().max().item() + NOISE * largest
        error = (gradient - again[name]).abs().max().item()
        expect(error <= allowed, f"a gradient within {allowed:.1g}", f"a difference of {error:.2g}", f"{name}, {where}")


# ---- 10 batches ----------------------------------------------------------------------------------------------


@rule("10.1")
def padding(case: Case) -> None:
    """A text gives the same output without padding, and padded right or left with any token."""
    if toy.task(case.model).modality == "image":
        raise Skip("images have no padding")
    training = lived(case, SECOND).training
    short, long = toy.LENGTHS
    pairs = [outputs(training, _texts(training, (short, short))), outputs(training, _texts(training, (long, long)))]
    plain = [pairs[0][0], pairs[1][1]]
    for side in ("right", "left"):
        for pad in (toy.PAD, 9):
            batch = _texts(training, (short, long), pad, side == "left")
            for length, expected, found in zip((short, long), plain, outputs(training, batch), strict=True):
                close(expected, found, f"{side} padding with token {pad}, text of {length} tokens")


def _texts(training: Training, lengths: tuple[int, ...], pad: int = toy.PAD, left: bool = False) -> Batch:
    """A batch of texts of these lengths; only the encoder's side of an encoder-decoder is padded left."""
    rows = np.arange(len(lengths))
    model = training.backbone.name
    batch = toy.texts(model, lengths, pad, left).batch(rows)
    if training.backbone.kind == "encoder_decoder":
        batch.labels = toy.texts(model, lengths, pad).batch(rows).labels
    return batch


@rule("10.2")
def batch_of_one(case: Case) -> None:
    """An example alone gives the same output as among others."""
    training = lived(case, SECOND).training
    length = toy.LENGTHS[1]
    among = outputs(training, _texts(training, (length,) * 3))
    alone = outputs(training, _texts(training, (length,)))
    close(among[0], alone[0], "a batch of one")


@rule("10.3")
def generation(case: Case) -> None:
    """Greedy generation: with and without cache, padded and alone, the scores of every new token agree."""
    if toy.task(case.model).kind != "generation":
        raise Skip("does not generate")
    training = lived(case, SECOND).training
    lengths = (toy.LENGTHS[0], 9, toy.LENGTHS[1])
    batch = toy.texts(case.model, lengths, pad_left=True).batch(np.arange(3))
    tokens, scores = _generate(training, batch, cached=False)
    found, again = _generate(training, batch, cached=True)
    close(scores, again, "cached generation, scores")
    expect(torch.equal(tokens, found), tokens.tolist(), found.tolist(), "cached generation, tokens")
    alone = _generate(training, toy.texts(case.model, lengths).batch(np.arange(1)), cached=True)[1]
    close(scores[:, :1], alone, "generation of one text without padding, scores")


def _generate(training: Training, batch: Batch, cached: bool) -> tuple[Tensor, Tensor]:
    """(B, 4) new tokens and their scores (4, B, vocabulary)."""
    seen: list[Tensor] = []

    def keep(scores: Tensor, state: Any) -> Tensor:
        seen.append(training.method.logits(scores, state).clone())
        return seen[-1]

    evaluating(training)
    batch.prompt_length = batch.mask.sum(1)
    tokens = training.backbone.generate(batch, 4, cached=cached, logits=keep)
    return tokens, torch.stack(seen)


# ---- the whole check -----------------------------------------------------------------------------------------


def apply(checked: Rule, case: Case) -> Result:
    """Run one rule; whatever the method raises is a failure with the place in its code."""
    start = time.perf_counter()
    try:
        if checked.per_model and case.unsupported:
            raise Skip(f"unsupported: {case.unsupported}")
        status, text = "ok", checked.run(case) or ""
    except Skip as reason:
        status, text = "skipped", str(reason)
    except Failed as problem:
        status, text = "FAILED", str(problem)
    except Exception as problem:  # a method may fail in any way
        status, text = (
            "FAILED",
            f"expected no error, found {type(problem).__name__}: {problem}, at {_place(problem, case)}",
        )
    if status == "FAILED":
        case.shared.clear()
    return Result(checked, case.model, status, text, time.perf_counter() - start)


def _place(problem: BaseException, case: Case) -> str:
    """The line of the plugin that led to an error, else the innermost one."""
    frames = traceback.extract_tb(problem.__traceback__)
    own = [frame for frame in frames if Path(frame.filename) == case.info.path] or frames
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line}"


def run(
    info: MethodInfo, models: Iterable[str] = toy.MODELS, rules: Iterable[str] | None = None
) -> Iterator[list[Result]]:
    """The results of each rule, over the networks it runs on."""
    cases = [Case(info, model) for model in models]
    for checked in RULES.values() if rules is None else (RULES[name] for name in rules):
        if checked.per_model:
            yield [apply(checked, case) for case in cases]
        else:
            yield [apply(checked, next((case for case in cases if not _refused(case)), cases[0]))]


def _refused(case: Case) -> str | None:
    """Why the network cannot be used; a method that fails to say so is left to the rules."""
    try:
        return case.unsupported
    except Exception:
        return None


def check(path: Path, verbose: bool = False) -> Verdict:
    """Run every rule on one method file, print a line a rule and what is to be said of the whole.

    A rule counts as passed that holds on the networks it applies to, as skipped where it applies to none. Raises
    AtlasError if the file cannot be imported.
    """
    torch.set_num_threads(1)
    info = registry.read_method(Path(path).resolve())
    registry.load_method(info)
    print(f"{info.name}: {info.title}\n{info.path}")
    refused = {model: reason for model in toy.MODELS if (reason := _refused(Case(info, model)))}
    for model, reason in refused.items():
        print(f"      {model.removeprefix('tiny-')}: unsupported: {reason}")
    models = [model for model in toy.MODELS if model not in refused]
    if not models:
        print("does not conform: it supports none of the tiny networks")
        return verdicts.made(info, 0, 0, ["it supports none of the tiny networks"])
    _other_process()
    failed, statuses = [], Counter()
    for results in run(info, models):
        statuses[_status(results)] += 1
        if texts := dict.fromkeys(r.text for r in results if r.status == "FAILED"):
            failed.append(f"{results[0].rule.number} {results[0].rule.name}: {'; '.join(texts)}")
        for line in _lines(results, verbose):
            print(line, flush=True)
    print(f"does not conform: {len(failed)} of {len(RULES)} checks failed" if failed else "conforms")
    return verdicts.made(info, statuses["ok"], statuses["skipped"], failed)


def _status(results: list[Result]) -> str:
    """Of a rule, over its networks."""
    states = {result.status for result in results}
    return next(status for status in ("FAILED", "ok", "skipped") if status in states)


def _lines(results: list[Result], verbose: bool) -> Iterator[str]:
    """One line for the rule, then one for each failure (verbose: also for each note), with its networks."""
    checked, status = results[0].rule, _status(results)
    skipped = {result.text: None for result in results if result.status == "skipped"}
    reason = "; ".join(skipped) if status == "skipped" else ""
    seconds = sum(result.seconds for result in results)
    yield f"{checked.number:<5} {checked.name:<24} {status:<8}{seconds:6.2f} s  {reason}".rstrip()
    shown: dict[str, list[str]] = {}
    for result in results:
        if result.status == "FAILED" or (verbose and result.text and status != "skipped"):
            shown.setdefault(result.text, []).append(result.model.removeprefix("tiny-"))
    for text, models in shown.items():
        yield f"      {', '.join(models)}: {text}"
