"""Sizes of a backbone and the addresses of its sites. No tensors; safe to import anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

LINEAR_SITES = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
CROSS_SITES = ("cross.q", "cross.k", "cross.v", "cross.o")


class SiteId(NamedTuple):
    """Where a method attaches: `part` is "" or "encoder"/"decoder", `layer` is -1 outside the blocks."""

    part: str
    layer: int
    name: str

    def __str__(self) -> str:
        return ".".join(str(piece) for piece in self if piece not in ("", -1))


class LinearShape(NamedTuple):
    """A linear map y = W x + b with W of shape (out, in)."""

    out: int
    inp: int
    bias: bool


class BlockShape(NamedTuple):
    """One transformer block: width of its residual stream, attention heads and feed-forward units."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    units: int


@dataclass(frozen=True)
class BackboneShape:
    """Everything a method may count with.

    linears: (out, in, has bias) of every linear site; norms: (size, has bias) of every normalisation;
    biases: number of bias entries by site (linear, norm, convolution); parameters: size of the backbone.
    tokens: longest input in tokens (text) or number of patch tokens without specials (vision).
    first_slot: leading special tokens of an input, before which no prompt token goes; None: none fits.
    dispatches: the attention can be replaced. appendable: tokens without a position can be added between blocks.
    """

    kind: str
    architecture: str
    parts: tuple[str, ...]
    blocks: dict[tuple[str, int], BlockShape]
    linears: dict[SiteId, LinearShape]
    norms: dict[SiteId, tuple[int, bool]]
    biases: dict[SiteId, int]
    embedding_width: int
    vocab: int
    tokens: int
    parameters: int
    tied: tuple[tuple[str, str], ...] = ()
    layers: dict[str, int] = field(default_factory=dict)
    first_slot: int | None = 0
    dispatches: bool = True
    appendable: bool = True

    @property
    def depth(self) -> int:
        """Number of blocks over all parts."""
        return len(self.blocks)

    @property
    def width(self) -> int:
        """Width of the residual stream of the first block (Swin: doubles by stage, ask `blocks`)."""
        return next(iter(self.blocks.values())).width

    def at(self, sites: Iterable[str], layers: Iterable[int] | None = None) -> Iterator[LinearShape]:
        """Shapes of the linear sites with these names, in model order."""
        return (self.linears[site] for site in self.find(sites, layers))

    def find(self, sites: Iterable[str], layers: Iterable[int] | None = None, part: str | None = None) -> list[SiteId]:
        """Addresses of the linear sites with these names, in model order. A name without a match is skipped."""
        names, wanted = set(sites), None if layers is None else set(layers)
        return [
            s
            for s in self.linears
            if s.name in names and (wanted is None or s.layer in wanted) and (part is None or s.part == part)
        ]

    def block(self, site: SiteId) -> BlockShape:
        return self.blocks[site.part, site.layer]

    def heads(self, site: SiteId) -> list[slice]:
        """Rows (q, k, v) or columns (o) of the site's weight that belong to each head."""
        block = self.block(site)
        count = block.kv_heads if site.name.split(".")[-1] in ("k", "v") else block.heads
        return [slice(h * block.head_dim, (h + 1) * block.head_dim) for h in range(count)]

    def units(self, site: SiteId) -> int:
        """Feed-forward units: rows of mlp.up and mlp.gate, columns of mlp.down, belong to one unit each."""
        return self.block(site).units

    def coupled(self, site: SiteId) -> tuple[SiteId, ...]:
        """Sites that must change together with this one when heads or units are removed or permuted."""
        kind, _, name = site.name.partition(".")
        groups = {"q": "k", "k": "q", "v": "o", "o": "v"} if kind in ("attn", "cross") else {}
        others = [groups[name]] if name in groups else [n for n in ("up", "gate", "down") if n != name]
        found = (SiteId(site.part, site.layer, f"{kind}.{n}") for n in others)
        return tuple(s for s in found if s in self.linears)
