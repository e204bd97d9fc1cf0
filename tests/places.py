"""Things to attach to a network in tests: prefixes, prompts, branches, weight deltas."""

from __future__ import annotations

import torch
from torch import nn

from methods.base import InputPrompt, KVPrefix
from methods.lowrank.lora import LoRA
from models.backbone import Backbone
from models.shape import SiteId
from tests.helpers import attach, lively

PREFIX = 3
PROMPT = 2
LINEARS = ("attn.q", "attn.k", "attn.v", "attn.o", "cross.q", "cross.v", "mlp.up", "mlp.gate", "mlp.down")


def prefixes(on: Backbone, attached: bool = True) -> dict[SiteId, KVPrefix]:
    """A prefix of three keys and values at every attention, values from a fixed seed."""
    rng, made = torch.Generator().manual_seed(1), {}
    for site in [s for s in on.map_.modules if s.name in ("attn.core", "cross.core")]:
        block = on.shape.block(site)
        made[site] = KVPrefix(block.kv_heads, PREFIX, block.head_dim)
        made[site].initialise(1.0, rng)
        if attached:
            made[site].attach(on, site)
    return made


def prompt(on: Backbone, attached: bool = True) -> InputPrompt:
    """Two prompt tokens at the input, values from a fixed seed."""
    made = InputPrompt(PROMPT, on.shape.embedding_width)
    made.initialise(1.0, torch.Generator().manual_seed(2))
    if attached:
        made.attach(on)
    return made


def lora(on: Backbone, sites: tuple[str, ...] = LINEARS) -> LoRA:
    """LoRA at these sites, far enough from its start that every factor matters."""
    made = LoRA.create({"sites": sites, "rank": 2})
    attach(made, on)
    lively(made.parts, seed=3)
    return made


def branches(on: Backbone) -> nn.ModuleList:
    """A small linear adapter of x, y and the residual at the end of every branch."""
    made = nn.ModuleList()
    for part, layer in on.shape.blocks:
        block = SiteId(part, layer, "block")
        for name in ("attn", "mlp"):
            adapter = nn.Linear(3 * on.shape.block(block).width, on.shape.block(block).width)
            made.append(adapter)
            on.branch(block, name, _joined(adapter))
    lively(made, seed=4, std=0.1)
    return made


def _joined(adapter: nn.Module):
    return lambda x, y, residual: y + adapter(torch.cat([x, y, residual], -1))
