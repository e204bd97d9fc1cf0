"""One cell of a grid: its identity, its content keys and where its result lies."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

KEY_DIGITS = 8  # of a config key


@dataclass(frozen=True)
class Cell:
    """(suite, task, model, method, settings, recipe, seed) with the versions that its number depends on.

    settings and recipe are complete, ready for JSON; plugin is the digest of the method's code. Label and division
    say how tables name and group the cell, source where its settings and recipe are from; they are no part of its
    identity. start is the config key of the cell whose trained method this one continues from, with the same seed.
    """

    suite: str
    task: str
    model: str
    method: str
    label: str
    division: str
    settings: dict
    recipe: dict
    seed: int
    protocol: dict
    model_revision: str
    plugin: str
    building_blocks: int
    training_loop: int
    start: str | None = None
    source: str | None = None

    def __hash__(self) -> int:
        return hash((self.config_key, self.seed))

    @cached_property
    def _digest(self) -> str:
        """sha256 (hex) over everything that can change the number, but for the seed."""
        identity = {
            "suite": self.suite,
            "task": self.task,
            "model": self.model,
            "method": self.method,
            "settings": self.settings,
            "recipe": self.recipe,
            "protocol": self.protocol,
            "model_revision": self.model_revision,
            "plugin": self.plugin,
            "building_blocks": self.building_blocks,
            "training_loop": self.training_loop,
        } | ({"start": self.start} if self.start else {})
        return hashlib.sha256(_canonical(identity).encode()).hexdigest()

    @property
    def config_key(self) -> str:
        """8 hex digits for everything that can change the number, but for the seed."""
        return self._digest[:KEY_DIGITS]

    @property
    def key(self) -> str:
        """16 hex digits for the same and the seed."""
        return hashlib.sha256(f"{self._digest}/{self.seed}".encode()).hexdigest()[:16]

    @property
    def grid_key(self) -> str:
        """CONFIG_KEY/SEED, which nearly always is enough to tell the cell from every other of a grid."""
        return f"{self.config_key}/{self.seed}"

    @property
    def start_key(self) -> str | None:
        """The `grid_key` of the cell that this one continues from."""
        return f"{self.start}/{self.seed}" if self.start else None

    @property
    def configuration(self) -> str:
        """Where its seeds' results lie: `glue/sst2/minilm-l6/lora-1a2b3c4d`. No other of a grid has the same."""
        return f"{self.suite}/{self.task}/{self.model}/{self.method}-{self.config_key}"

    def same_numbers(self, other: Cell) -> bool:
        """Whether everything that can change the number is the same, but for the seed."""
        return self._digest == other._digest

    def with_seed(self, seed: int) -> Cell:
        """The same configuration with another seed; its digest is not taken again."""
        other = replace(self, seed=seed)
        vars(other)["_digest"] = self._digest
        return other

    @property
    def name(self) -> str:
        """For messages: `sst2/minilm-l6/lora-1a2b3c4d/seed0`."""
        return f"{self.task}/{self.model}/{self.method}-{self.config_key}/seed{self.seed}"

    @property
    def path(self) -> Path:
        """The result file, relative to the working directory."""
        return Path(f"results/cells/{self.suite}/{self.name}.json")

    @property
    def state_dir(self) -> Path:
        """Where the cell keeps what it needs to resume; removed when it succeeds."""
        return Path("results/state", self.key)

    def to_json(self) -> dict:
        """Every field; `start` and `source` only where there is one."""
        document = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in document.items() if name not in _MAYBE or value is not None}

    @classmethod
    def from_json(cls, document: dict) -> Cell:
        known = {field.name: document[field.name] for field in fields(cls) if field.name not in _MAYBE}
        return cls(**known, **{name: document.get(name) for name in _MAYBE})


_MAYBE = ("start", "source")
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
