"""The task head: pools the last hidden state and maps it to classes or to one score."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.batch import ForwardState

POOLINGS = ("pooler", "cls", "mean", "last")


class Head(nn.Module):
    """logits = W dropout(pool(h)) [+ b], or with `dense`, W dropout(tanh(V dropout(pool(h)) + c)) + b.

    pooling: `pooler` (the network's own pooled output), `cls` (first real token), `mean` (real tokens, prompt
    slots left out), `last` (last real token). Padding may be on either side.
    """

    def __init__(self, width: int, labels: int, pooling: str, dense: bool, bias: bool, dropout: float):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling '{pooling}', known: {', '.join(POOLINGS)}")
        self.pooling = pooling
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(width, width) if dense else None
        self.out = nn.Linear(width, labels, bias=bias)

    @torch.no_grad()
    def initialise(self, rng: torch.Generator, std: float = 0.02) -> None:
        """Normal(0, 0.02) weights and zero biases, as transformers starts a new head; drawn on the CPU."""
        for linear in filter(None, (self.dense, self.out)):
            linear.weight.copy_(torch.empty(linear.weight.shape).normal_(0, std, generator=rng))
            if linear.bias is not None:
                linear.bias.zero_()

    def forward(self, hidden: Tensor, state: ForwardState) -> Tensor:
        """hidden: (B, L, d), or (B, d) if pooled already -> (B, labels)."""
        pooled = hidden if hidden.dim() == 2 else self.pool(hidden, state)
        pooled = pooled.to(self.out.weight.dtype)
        if self.dense is not None:
            pooled = torch.tanh(self.dense(self.dropout(pooled)))
        return self.out(self.dropout(pooled))

    def pool(self, hidden: Tensor, state: ForwardState) -> Tensor:
        mask, batch = state.mask, state.batch
        if self.pooling == "mean":
            keep = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device) if mask is None else mask
            if state.slots is not None:
                keep = keep & ~state.slots.to(keep.device)
            keep = keep[..., None].to(hidden)
            return (hidden * keep).sum(1) / keep.sum(1)
        if self.pooling == "last":
            if mask is None or batch.unpadded or batch.left_padded:
                return hidden[:, -1]
            return _row(hidden, mask.sum(1) - 1)
        return hidden[:, 0] if mask is None or not batch.left_padded else _row(hidden, mask.int().argmax(1))


def _row(hidden: Tensor, index: Tensor) -> Tensor:
    """hidden (B, L, d), index (B,) -> (B, d)"""
    index = index.to(hidden.device)
    return hidden.take_along_dim(index[:, None, None].expand(-1, 1, hidden.shape[-1]), dim=1)[:, 0]
