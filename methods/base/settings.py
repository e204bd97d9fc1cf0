"""Settings that families of methods share. No torch: the grid reads these to check a study."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearSettings:
    """sites: names of the linear maps to change; layers: indices of the blocks, all of them if None."""

    sites: tuple[str, ...] = ("attn.q", "attn.v")
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class WrapperSettings:
    """base: name of the method inside; base_settings: its settings, as (key, value) pairs or a mapping."""

    base: str = "lora"
    base_settings: dict | None = None
