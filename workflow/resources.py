"""What a cell's job asks of the scheduler, from an estimate of its memory. The grid's `resources` win over these.

A job that does not know its device may train on the CPU, so `mem_mb` is for that. Where the grid tells the memory of a
GPU, training is on GPUs and `mem_mb` is for loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.entries import ModelEntry
from workflow import estimate, sizes
from workflow.cells import Cell
from workflow.registry import MethodInfo

MARGIN = 1.15  # the error that the estimate may have
HEAP = 2.0  # the heap of glibc keeps freed blocks between live ones: resident over live bytes of activations
DATA = 1_000_000_000  # data sets, tokens, predictions
COPIES = 8  # bytes a trained number of the best weights so far, while newer ones take their place
BASE_MINUTES = 60
EXAMPLES = 10_000  # in an epoch, where the number of steps is not given
SPEED = 2e13  # operations a second
MEGA = 1_000_000


def estimated(
    cell: Cell, entry: ModelEntry, info: MethodInfo, task: Any, methods: Mapping[str, MethodInfo], gpu_mb: int | None
) -> dict[str, int]:
    """mem_mb and runtime (minutes) of a first attempt at a cell; also gpu, where the memory of one (`gpu_mb`) is known.

    task: the facts of the cell's task (`tasks.base.TaskInfo`); methods: by name, for one that wraps another.
    """
    network = sizes.of(entry)
    learned = learned_of(info, cell.settings, methods, network)
    setting = setting_of(cell.recipe, task, gpu_mb is not None)
    found = estimate.estimate(network, learned, setting)
    copies = COPIES * learned.parameters + DATA
    if gpu_mb is None:
        host = found.total + (HEAP - 1) * (found.activations + found.logits) + copies
        needs = {"mem_mb": round(MARGIN * host / MEGA)}
    else:
        host = estimate.WORD[cell.recipe["dtype"]] * network.parameters + estimate.BASE + copies
        needs = {"mem_mb": round(MARGIN * host / MEGA), "gpu": found.gpus(gpu_mb / 1000)}
    return needs | {"runtime": BASE_MINUTES + round(_operations(cell.recipe, network, learned, setting) / SPEED / 60)}


def setting_of(recipe: Mapping[str, Any], task: Any, on_gpu: bool) -> estimate.Setting:
    """How the recipe trains a task. The answers of a text may be as long as the whole of it, and texts are padded."""
    batch, micro = recipe["batch_size"], recipe["micro_batch_size"]
    return estimate.Setting(
        batch=min(batch, micro or batch),
        length=recipe["max_length"] or task.max_length,
        dtype=recipe["dtype"],
        optimizer=recipe["optimizer"],
        generation=task.kind == "generation",
        labels=max(1, len(task.labels)),
        checkpointing=recipe["gradient_checkpointing"],
        quantize=recipe.get("quantize"),
        accumulated=bool(micro) and micro < batch,
        padded=task.modality == "text",
        device="cuda" if on_gpu else "cpu",
    )


def learned_of(
    info: MethodInfo, settings: Mapping[str, Any], methods: Mapping[str, MethodInfo], network: sizes.Sizes
) -> estimate.Learned:
    """What a method trains, guessed from its source; of a wrapper, the method inside."""
    if settings.get("base") in methods and "base_settings" in info.settings:
        base = methods[settings["base"]]
        inner = {name: setting.default for name, setting in base.settings.items()} | (settings["base_settings"] or {})
        return learned_of(base, inner, methods, network)
    everything = _literal(info, "edits_base", "no") == "trained" and not _literal(info, "vectors_only", False)
    return estimate.guessed(everything, _literal(info, "trains", True), settings, network)


def _literal(info: MethodInfo, name: str, default: Any) -> Any:
    """A class attribute of the plugin; where it is not literal, the first value that costs most."""
    try:
        return info.source.classes[info.class_name].attribute(name, default)
    except ValueError:
        return {"edits_base": "trained", "trains": True, "vectors_only": False}[name]


def _operations(
    recipe: Mapping[str, Any], network: sizes.Sizes, learned: estimate.Learned, setting: estimate.Setting
) -> float:
    """Operations of the training: 2 a weight and token forwards, 2 backwards, 2 for the gradient of the weight."""
    length = network.stacks[0].tokens or setting.length
    steps = recipe["max_steps"] or recipe["epochs"] * EXAMPLES / recipe["batch_size"]
    weights = network.linear_parameters
    each = 2 + 2 * setting.checkpointing + (4 if learned.everything else 2)
    return each * weights * steps * recipe["batch_size"] * length
