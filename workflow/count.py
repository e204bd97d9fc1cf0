"""Count a method's parameters on a model without weights: the network is built on the meta device."""

from __future__ import annotations

from typing import Any

from models.entries import model as model_entry
from workflow import registry
from workflow.errors import AtlasError


def attached(method: str, model: str, settings: dict[str, Any], labels: int = 2) -> tuple[Any, Any]:
    """The backbone on the meta device and the method attached to it.

    A classifier with `labels` classes is assumed where the model has no output layer of its own. Raises AtlasError if
    the method does not support the model.
    """
    import torch

    from models.load import load
    from tasks.base import TaskInfo

    entry = model_entry(model)
    plugin = registry.load_method(registry.methods()[method])
    chosen = plugin.create(settings)
    kind = "generation" if entry.kind in ("decoder", "encoder_decoder") else "classification"
    backbone = load(entry, kind, labels, weights="meta")
    names = tuple(str(i) for i in range(labels))
    modality = "image" if entry.kind == "vision" else "text"
    task = TaskInfo("none", "none", kind, modality, ("text",), names, ("accuracy",), "accuracy", 128, "count")
    if reason := chosen.supports(backbone.shape, task):
        raise AtlasError(f"method '{method}' does not support model '{model}': {reason}", mend="choose another model")
    chosen.planned = chosen.plan(backbone.shape)
    with torch.device("meta"):
        chosen.attach(backbone, None)
    return backbone, chosen


def count(method: str, model: str, settings: dict[str, Any], labels: int = 2) -> dict[str, Any]:
    """Trained, stored and added parameters: what is attached, beside the closed form of the paper.

    The head is counted apart. Raises AtlasError if the method does not support the model.
    """
    backbone, chosen = attached(method, model, settings, labels)
    expected = chosen.expected_parameters(backbone.shape).resolved(chosen.mergeable)
    trained = sum(p.numel() for p in chosen.trained())
    stored = sum(t.numel() for t in chosen.state_dict().values())
    total = backbone.shape.parameters
    found: dict[str, Any] = {
        "method": method,
        "model": model,
        "backbone": total,
        "head": sum(p.numel() for p in backbone.head.parameters()) if backbone.head is not None else 0,
        "trained": trained,
        "trained_percent": round(100 * trained / total, 4),
        "stored": stored,
        "added_at_inference": sum(p.numel() for p in chosen.kept()),
        "expected": {n: _range(getattr(expected, n)) for n in ("trained", "stored", "added")},
    }
    found["agrees"] = _agrees(trained, expected.trained) and _agrees(stored, expected.stored)
    return found


def _range(value):
    return list(value) if isinstance(value, tuple) else value


def _agrees(value: int, expected) -> bool:
    low, high = expected if isinstance(expected, tuple) else (expected, expected)
    return low <= value <= high
