"""Changes of the hidden states at some positions of the prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from methods.base.contract import Context, Method, Plan, key
from models.backbone import Backbone, BlockCall
from models.batch import ForwardState
from models.shape import BackboneShape, SiteId


class Places(NamedTuple):
    """index (B, L): place of each token among the real ones of its row; inside (B, L): it is a real token of the
    prompt; length (B, 1): tokens of the prompt. Without a prompt the whole text is one; an image is, with its specials.
    """

    index: Tensor
    inside: Tensor
    length: Tensor


def places(state: ForwardState, hidden: Tensor) -> Places:
    """Where the tokens of hidden (B, L, d) stand, whatever the padding."""
    rows, length, _ = hidden.shape
    if state.mask is None:
        index = torch.arange(length, device=hidden.device).expand(rows, -1)
        return Places(index, torch.ones_like(index, dtype=torch.bool), torch.full_like(index[:, :1], length))
    index, real = state.positions, state.mask[:, state.start :]
    prompt = real.sum(1) if state.prompt_length is None else state.prompt_length
    inside = real & (index < prompt[:, None])
    return Places(*(t.to(hidden.device) for t in (index, inside, prompt[:, None])))


class PositionMethod(Method):
    """A method with one module at each block that changes the hidden states of some tokens of the prompt.

    Nothing is changed at tokens that are generated, so that with a cache they cost nothing more. In an
    encoder-decoder the prompt is what the encoder reads. A subclass makes the module of a block (`make`), says which
    tokens it is about (`choose`) and what becomes of the block's hidden states (`edit`).
    """

    def make(self, shape: BackboneShape, width: int) -> nn.Module:
        """The module of one block; it has `initialise(rng)`."""
        raise NotImplementedError

    def choose(self, state: ForwardState, hidden: Tensor) -> Any:
        """Masks or indices of the tokens of hidden (B, L, d) that are changed; worked out once a pass."""
        raise NotImplementedError

    def edit(self, module: nn.Module, call: BlockCall, chosen: Any) -> Tensor:
        """Around a block: its output (B, L, d), with the module's contribution scaled by `module.gate`."""
        raise NotImplementedError

    def plan(self, shape: BackboneShape) -> Plan:
        layers = self.settings.layers
        wanted = [(p, i) for p, i in shape.blocks if p != "decoder" and (layers is None or i in layers)]
        return Plan(tuple(SiteId(part, layer, "block") for part, layer in wanted))

    def attach(self, backbone: Backbone, ctx: Context | None) -> None:
        self.backbone = backbone
        self.planned = self.planned if self.planned.sites else self.plan(backbone.shape)
        for site in self.planned.sites:
            with torch.device(backbone.device_of(site)):
                module = self.make(backbone.shape, backbone.shape.block(site).width)
            module.site, module.gate = site, 1.0
            self.parts[key(site)] = module
            backbone.around(site, self._function(module))

    def _function(self, module: nn.Module) -> Callable[[BlockCall], Tensor]:
        def edited(call: BlockCall) -> Tensor:
            state, hidden = call.state, call.hidden
            if state.phase == "decode":
                return call.proceed()
            kept = (self, hidden.device, hidden.shape[1])
            if kept not in state.memory:
                state.memory[kept] = self.choose(state, hidden)
            return self.edit(module, call, state.memory[kept])

        return edited

    def initialise(self, backbone: Backbone, ctx: Context) -> None:
        for site in self.planned.sites:
            self.parts[key(site)].initialise(ctx.rng(f"init/{site}"))
