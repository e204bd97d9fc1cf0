"""Matrices of which only some entries are trained and stored, the others being zero."""

from __future__ import annotations

import torch
from torch import Size, Tensor, nn
from torch.nn.utils import parametrize


class Entries(nn.Module):
    """Makes a matrix of its kept entries, a column (k, 1); the others are zero. index: (k,), counted along the rows.

    A column and not a vector, since weight decay acts on matrices.
    """

    def __init__(self, shape: Size, index: Tensor):
        super().__init__()
        self.shape = shape
        self.register_buffer("index", index, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.shape.numel()).index_copy(0, self.index, values[:, 0]).view(self.shape)

    def right_inverse(self, matrix: Tensor) -> Tensor:
        return matrix.flatten()[self.index, None]

    def packed(self) -> Tensor:
        """The mask, a bit an entry, the first of eight in the lowest bit of a byte: (ceil(entries / 8),)."""
        bits = torch.zeros(-(-self.shape.numel() // 8) * 8, dtype=torch.uint8, device=self.index.device)
        bits[self.index] = 1
        place = torch.arange(8, dtype=torch.uint8, device=bits.device)
        return (bits.view(-1, 8) << place).sum(1).to(torch.uint8)


def matrices(parts: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Every trained matrix by name: its module and the attribute."""
    return {
        f"{path}.{attribute}": (module, attribute)
        for path, module in parts.named_modules()
        for attribute, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 2 and parameter.requires_grad
    }


def keep_entries(module: nn.Module, attribute: str, index: Tensor) -> None:
    """From now on the parameter holds these entries (k, 1) of the matrix; reading the attribute gives the matrix."""
    matrix = getattr(module, attribute)
    parametrize.register_parametrization(module, attribute, Entries(matrix.shape, index.to(matrix.device)))


def entries(module: nn.Module, attribute: str) -> Entries:
    """What `keep_entries` put there."""
    return module.parametrizations[attribute][0]


@torch.no_grad()
def unpack(module: nn.Module, attribute: str, packed: Tensor) -> None:
    """Keep the entries of this mask instead; their values are still to be given."""
    kept, values = entries(module, attribute), module.parametrizations[attribute].original
    bits = (packed.to(values.device)[:, None] >> torch.arange(8, dtype=torch.uint8, device=values.device)) & 1
    kept.index = bits.flatten()[: kept.shape.numel()].nonzero()[:, 0]
    values.data = values.new_zeros(len(kept.index), 1)
