"""Stand between a module and its callers, without a wrapper module.

A module's class is swapped for a subclass with the same name whose `forward` runs a chain of functions
`fn(proceed, *args, **kwargs)`. Parameter names, attributes, isinstance checks and gradient checkpointing stay
as they were; the chain runs inside the checkpointed region. Removing the last function restores the class.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from torch import nn


class Switch:
    """Shared by all chains of one backbone: off means the pretrained function itself."""

    def __init__(self):
        self.on = True


class Chain(list):
    """The functions at one module, innermost first."""

    def __init__(self, switch: Switch):
        super().__init__()
        self.switch = switch


@cache
def _chained(cls: type) -> type:
    def forward(self, *args, **kwargs):
        chain = self.__dict__["_chain"]
        run = partial(cls.forward, self)
        if chain.switch.on:
            for function in chain:
                run = partial(function, run)
        return run(*args, **kwargs)

    body = {"forward": forward, "__module__": cls.__module__, "__qualname__": cls.__qualname__, "_plain": cls}
    return type(cls.__name__, (cls,), body)


class Handle:
    """One function in one chain; `remove()` is idempotent."""

    def __init__(self, module: nn.Module, function: Callable):
        self.module, self.function = module, function

    def remove(self) -> None:
        chain = self.module.__dict__.get("_chain")
        if chain is None or self.function not in chain:
            return
        chain.remove(self.function)
        if not chain:
            self.module.__class__ = type(self.module)._plain
            del self.module.__dict__["_chain"]


def intercept(module: nn.Module, function: Callable, switch: Switch) -> Handle:
    """Put `function(proceed, *args, **kwargs)` around `module.forward`, outside those already there."""
    if "_chain" not in module.__dict__:
        module.__dict__["_chain"] = Chain(switch)
        module.__class__ = _chained(type(module))
    module.__dict__["_chain"].append(function)
    return Handle(module, function)
