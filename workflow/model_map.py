"""The map of a model: its sizes, and where methods attach in it. Built without weights, from the YAML alone."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import TYPE_CHECKING, Any

from models.entries import ModelEntry
from models.shape import BackboneShape, BlockShape, SiteId
from workflow import text

if TYPE_CHECKING:
    from models.backbone import Backbone

COLUMNS = ("site", "class", "shape", "bias", "module")
Row = tuple[str, ...]


def describe(entry: ModelEntry) -> str:
    """The facts of a model, then the sites of its blocks and those outside of them, as text for a terminal."""
    from models.load import load

    generates = entry.kind in ("decoder", "encoder_decoder")
    backbone = load(entry, "generation" if generates else "classification", weights="meta")
    shape = backbone.shape
    blocks, inside, outside = _rows(backbone)
    paragraphs = [f"{entry.name}\n{text.figures(_facts(entry, shape))}"]
    for part, layers in _runs(shape.blocks):
        first, last = blocks[part, layers[0]], blocks[part, layers[-1]]
        where = f"{len(layers)} blocks, {first} to {last}" if len(layers) > 1 else f"1 block, {first}"
        counts = Counter(row for layer in layers for row in inside[part, layer])
        paragraphs.append(
            f"{where}: {_sizes(shape.blocks[part, layers[0]])}\n"
            + text.table([_shown(row) | {"blocks": count} for row, count in counts.items()])
        )
    paragraphs.append(f"outside the blocks\n{text.table([_shown(row) for row in outside])}")
    return "\n\n".join(paragraphs)


def _facts(entry: ModelEntry, shape: BackboneShape) -> dict[str, Any]:
    parts = " and ".join(f"{count} in the {part}" for part, count in shape.layers.items() if part)
    widths = sorted({block.width for block in shape.blocks.values()})
    heads = dict.fromkeys(_heads(block) for block in shape.blocks.values())
    facts = {
        "title": entry.title,
        "kind": entry.kind,
        "architecture": entry.architecture,
        "parameters": shape.parameters,
        "depth": f"{shape.depth} blocks" + (f", {parts}" if parts else ""),
        "width": ", ".join(f"{width:,}" for width in widths),
        "heads": "; ".join(heads),
        "vocabulary": f"{shape.vocab:,} tokens, embeddings of width {shape.embedding_width:,}" if shape.vocab else "",
        "longest input": f"{shape.tokens:,} {'patches' if entry.kind == 'vision' else 'tokens'}"
        if shape.tokens
        else "",
        "tied weights": ", ".join(f"{second} = {first}" for first, second in shape.tied),
        "type": entry.dtype,
        "licence": entry.licence,
        "source": " ".join(filter(None, (entry.source, entry.location, f"at {entry.revision}"))),
    }
    return {name: value for name, value in facts.items() if value}


def _heads(block: BlockShape) -> str:
    grouped = f", {block.kv_heads} for keys and values" if block.kv_heads != block.heads else ""
    return f"{block.heads} of width {block.head_dim}{grouped}"


def _sizes(block: BlockShape) -> str:
    return f"width {block.width:,}, heads {_heads(block)}, {block.units:,} feed-forward units"


def _runs(blocks: dict[tuple[str, int], BlockShape]) -> list[tuple[str, list[int]]]:
    """Neighbouring blocks of the same part and sizes: (part, layers)."""
    runs = groupby(blocks, key=lambda key: (key[0], blocks[key]))
    return [(part, [layer for _, layer in keys]) for (part, _), keys in runs]


def _rows(backbone: Backbone) -> tuple[dict[tuple[str, int], str], dict[tuple[str, int], list[Row]], list[Row]]:
    """Paths of the blocks, rows of each with paths that start at it, and rows outside; linear maps come first."""
    found = backbone.map_
    paths = {id(module): path for path, module in backbone.base.named_modules()}
    blocks = {(s.part, s.layer): paths[id(m)] for s, m in found.modules.items() if s.name == "block"}
    inside: dict[tuple[str, int], list[Row]] = {key: [] for key in blocks}
    outside: list[Row] = []
    modules = {site: place.module for site, place in found.linears.items()} | found.norms | found.modules
    for site, module in modules.items():
        path = paths[id(module)]
        block = blocks.get((site.part, site.layer), "")
        if block and (path == block or path.startswith(f"{block}.")):
            inside[site.part, site.layer].append(_row(backbone, site, site.name, path[len(block) + 1 :]))
        else:
            outside.append(_row(backbone, site, str(site), path))
    return blocks, inside, outside


def _row(backbone: Backbone, site: SiteId, name: str, path: str) -> Row:
    """Shapes are (out, in) of a linear map, else those of the module's own weight."""
    place = backbone.map_.linears.get(site)
    module = place.module if place else backbone.map_.modules[site]
    weight = getattr(module, "weight", None)
    bias = "" if weight is None else "no" if getattr(module, "bias", None) is None else "yes"
    sizes = place.shape[:2] if place else () if weight is None else weight.shape
    if place and place.fused.of > 1:
        of = "each head" if place.fused.layout == "heads" else f"its {place.fused.layout}"
        path += f", part {place.fused.index + 1} of {place.fused.of} of {of}"
    return name, type(module).__name__, " x ".join(f"{size:,}" for size in sizes), bias, path


def _shown(row: Row) -> dict[str, Any]:
    return dict(zip(COLUMNS, row, strict=True))
