"""Tensors that several sites use: frozen random bases and trained factors, each in memory once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from methods.base.contract import Context
from methods.base.maps import LinearMethod
from models.backbone import Backbone
from models.shape import LinearShape, SiteId

Draw = Callable[[torch.Size, torch.Generator], Tensor]


def kaiming_uniform(shape: torch.Size, rng: torch.Generator, a: float = 0.0) -> Tensor:
    """U(-b, b) with b = sqrt(6 / ((1 + a^2) fan in)); the fan in is every dimension but the first."""
    return nn.init.kaiming_uniform_(torch.empty(shape), a=a, generator=rng)


def constant(value: float) -> Draw:
    return lambda shape, rng: torch.full(shape, value)


class Common(nn.Module):
    """Named tensors that sites share; `draw(shape, rng)` gives the values of each, in fp32 and on the CPU."""

    def __init__(self, name: str, draw: Draw, shapes: dict[str, tuple[int, ...]]):
        super().__init__()
        self.name, self.draw = name, draw
        for key, shape in shapes.items():
            self.add(key, torch.empty(shape))

    def add(self, key: str, tensor: Tensor) -> None:
        raise NotImplementedError

    def initialise(self, rng: torch.Generator) -> None:
        for tensor in (*self.parameters(), *self.buffers()):
            tensor.copy_(self.draw(tensor.shape, rng))


class Bases(Common):
    """Frozen: buffers that are in no file and no checkpoint, because they come back from the seed."""

    def add(self, key: str, tensor: Tensor) -> None:
        self.register_buffer(key, tensor, persistent=False)


class Factors(Common):
    """Trained: parameters that are stored once and get the sum of the gradients of their sites."""

    def add(self, key: str, tensor: Tensor) -> None:
        self.register_parameter(key, nn.Parameter(tensor))


class SharedMethod(LinearMethod):
    """A linear method whose maps share tensors: its `make_map` asks for `bases` and `factors` by name.

    The first site that asks for a name makes the tensors; those of one name are drawn from one named generator.
    """

    @property
    def widest(self) -> LinearShape:
        """The largest out and the largest in over all sites; a smaller site reads leading rows and columns."""
        shapes = [self.backbone.shape.linears[site] for site in self.planned.sites]
        return LinearShape(max(s.out for s in shapes), max(s.inp for s in shapes), any(s.bias for s in shapes))

    def bases(self, site: SiteId, name: str, draw: Draw, **shapes: tuple[int, ...]) -> Bases:
        """Frozen tensors beside the site: where a network is spread out, every device has the same ones."""
        place = f"{name}@{self.backbone.device_of(site)}"
        return self.shared(place, lambda: Bases(name, draw, shapes))

    def factors(self, site: SiteId, name: str, draw: Draw, **shapes: tuple[int, ...]) -> Factors:
        """Trained tensors; where a network is spread out, maps fetch them from the device of the first site."""
        return self.shared(name, lambda: Factors(name, draw, shapes))

    @torch.no_grad()
    def initialise(self, backbone: Backbone, ctx: Context) -> None:
        for module in self.parts.values():
            if isinstance(module, Common):
                module.initialise(ctx.rng(f"init/{module.name}").clone_state())
        super().initialise(backbone, ctx)
