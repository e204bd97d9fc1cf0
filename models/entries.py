"""The models that a grid may name: one YAML a family, one entry a size. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import yaml

from models.architectures import ARCHITECTURES
from workflow import names
from workflow.errors import AtlasError, suggest

FOLDER = Path(__file__).parent
SOURCES = ("hub", "package", "local", "project", "random", "none")


@dataclass(frozen=True)
class ModelEntry:
    """One backbone size.

    source: where the weights come from (hub, package, local, project, random), or none where only the sizes are
    known; location: hub id, import name of the package with the folder inside it, or a path; revision: pinned hub
    commit or package version; parts: where the pieces of a GGUF file are that several packages hold, in order;
    architecture: transformers' model_type; config: its configuration, enough to build it without weights;
    parameters: how many the network has without a task head (decoders with their output layer).
    """

    name: str
    family: str
    kind: str
    architecture: str
    source: str
    location: str
    revision: str
    licence: str
    dtype: str
    config: dict = field(default_factory=dict)
    pooling: str | None = None
    title: str = ""
    parameters: int | None = None
    parts: tuple[str, ...] = ()

    @property
    def file(self) -> Path:
        """Where the entry is written."""
        return FOLDER / f"{self.family}.yaml"

    @property
    def size(self) -> str:
        """The number of parameters to three digits: 86.4M, 1.24B; empty where the entry does not tell."""
        if self.parameters is None:
            return ""
        rounded = float(f"{self.parameters:.2e}")
        unit, letter = (1e9, "B") if rounded >= 1e9 else (1e6, "M") if rounded >= 1e6 else (1e3, "k")
        return f"{rounded / unit:#.3g}".rstrip(".") + letter

    @property
    def identity(self) -> str:
        """What enters a cell's key: the weights' source and revision; of a random network its sizes."""
        pooled = f"+{self.pooling}" if self.pooling else ""
        sizes = (
            ",".join(f"{k}={v}" for k, v in sorted(self.config.items())) if self.source == "random" else self.location
        )
        return f"{self.source}:{sizes}@{self.revision}{pooled}"

    def with_random_weights(self) -> ModelEntry:
        """The same network without what it has learned, for measuring costs."""
        return replace(self, source="random", revision="1")


_REQUIRED = {"architecture", "source", "revision", "licence"}
_OPTIONAL = {"location", "dtype", "config", "pooling", "title", "kind", "parameters", "parts"}


def _read(path: Path) -> list[ModelEntry]:
    try:
        data = yaml.safe_load(path.read_text())
        common = {k: v for k, v in data.items() if k not in ("sizes", "family")}
        rows = [(name, common | (size or {})) for name, size in data["sizes"].items()]
    except (yaml.YAMLError, KeyError, AttributeError, TypeError) as problem:
        raise AtlasError(f"model file cannot be read: {problem}", file=path, mend="see docs/models.md") from problem
    return [_entry(name, path, values) for name, values in rows]


def _entry(name: str, path: Path, values: dict) -> ModelEntry:
    if not names.is_part(name):
        raise AtlasError(f"{name!r} cannot be a model's name", file=path, key="sizes", mend=f"use {names.RULE}")
    for key in values:
        if key not in _REQUIRED | _OPTIONAL:
            raise AtlasError(
                f"unknown key '{key}' in model '{name}'",
                file=path,
                key=f"sizes.{name}.{key}",
                mend=suggest(key, _REQUIRED | _OPTIONAL),
            )
    for key in sorted(_REQUIRED - values.keys()):
        raise AtlasError(f"model '{name}' lacks '{key}'", file=path, key=f"sizes.{name}", mend=f"add {key}: ...")
    if values["source"] not in SOURCES:
        mend = suggest(values["source"], SOURCES)
        raise AtlasError(f"unknown source of '{name}'", file=path, key="source", mend=mend)
    counted = values.get("parameters", 1)
    if type(counted) is not int or counted < 1:
        mend = f"give what `python -m workflow count --method full --model {name}` prints as `backbone`"
        raise AtlasError(
            f"'{counted}' is no number of parameters", file=path, key=f"sizes.{name}.parameters", mend=mend
        )
    architecture = ARCHITECTURES.get(values["architecture"])
    if architecture is None:
        mend = suggest(values["architecture"], ARCHITECTURES)
        raise AtlasError(f"unknown architecture of '{name}'", file=path, key="architecture", mend=mend)
    return ModelEntry(
        name=name,
        family=path.stem,
        kind=values.get("kind", architecture.kind),
        location=values.get("location", ""),
        dtype=values.get("dtype", "float32"),
        config=values.get("config", {}),
        pooling=values.get("pooling"),
        title=values.get("title", name),
        parameters=values.get("parameters"),
        parts=tuple(values.get("parts", ())),
        **{k: str(values[k]) for k in sorted(_REQUIRED)},
    )


@cache
def models(folder: Path = FOLDER) -> dict[str, ModelEntry]:
    """Every entry by name, from all `*.yaml` in the folder."""
    entries: dict[str, ModelEntry] = {}
    for path in sorted(folder.glob("*.yaml")):
        for entry in _read(path):
            if entry.name in entries:
                raise AtlasError(f"model '{entry.name}' is defined twice", file=path, mend="rename one of them")
            entries[entry.name] = entry
    return entries


def model(name: str) -> ModelEntry:
    """The entry with this name, or one clear error."""
    known = models()
    if name not in known:
        raise AtlasError(f"unknown model '{name}'", file=FOLDER, mend=suggest(name, known))
    return known[name]
