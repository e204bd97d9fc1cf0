"""A batch on its way to a backbone, what comes back, and the state of one forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

Phase = Literal["train", "evaluate", "prefill", "decode"]


@dataclass
class Batch:
    """inputs: keyword arguments of the network, `input_ids` (B, L) with `attention_mask` (B, L), or
    `pixel_values` (B, C, H, W). labels: (B,) classes or scores, or (B, L) token ids with -100 where nothing is
    learned. tokens, padded: real tokens (pixels: images) and tensor places, counted on the host.
    unpadded and left_padded are known on the host too, so that nothing waits for the device.
    prompt_length: (B,) real tokens before a completion, where there is one. learned_from: no place before this one
    has a label in any row, so that a decoder need not score them.
    """

    inputs: dict[str, Tensor]
    labels: Tensor | None = None
    tokens: int = 0
    padded: int = 0
    unpadded: bool = False
    left_padded: bool = False
    prompt_length: Tensor | None = None
    learned_from: int = 0
    rows: Any = None

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def mask(self) -> Tensor | None:
        """(B, L) true at real tokens; None for images."""
        mask = self.inputs.get("attention_mask")
        return None if mask is None else mask.bool()

    def to(self, device: torch.device) -> Batch:
        def move(x):
            return x.to(device, non_blocking=True) if isinstance(x, Tensor) else x

        inputs = {k: move(v) for k, v in self.inputs.items()}
        return replace(self, inputs=inputs, labels=move(self.labels), prompt_length=move(self.prompt_length))

    def pin(self) -> Batch:
        """In page-locked memory, so that `to` can copy while the device computes."""
        inputs = {k: v.pin_memory() for k, v in self.inputs.items()}
        return replace(self, inputs=inputs, labels=None if self.labels is None else self.labels.pin_memory())

    def rows_slice(self, rows: slice) -> Batch:
        """A micro-batch: these rows only. Token counts are shared out in proportion."""
        share = len(range(*rows.indices(len(self)))) / len(self)

        def cut(x):
            return x[rows] if isinstance(x, Tensor) else x

        return replace(
            self,
            inputs={k: cut(v) for k, v in self.inputs.items()},
            labels=cut(self.labels),
            prompt_length=cut(self.prompt_length),
            tokens=round(self.tokens * share),
            padded=round(self.padded * share),
        )


@dataclass
class Outputs:
    """logits: (B, classes), or (B, L, vocabulary) with a decoder's prompt slots among L; hidden: last state (B, L, d).

    labels: the batch's, with -100 at prompt slots. Where nothing is learned before some place of a decoder's batch
    (`Batch.learned_from`), logits and labels are those from that place on.
    """

    logits: Tensor
    hidden: Tensor | None = None
    cache: Any = None
    labels: Tensor | None = None

    def targets(self, batch: Batch) -> Tensor | None:
        """The labels that the logits belong to, beside them, also where whoever made these outputs did not say."""
        labels = batch.labels if self.labels is None else self.labels
        if labels is None:
            return None
        if self.labels is None and labels.dim() == 2:
            labels = labels[:, -self.logits.shape[1] :]
        return labels.to(self.logits.device)


@dataclass
class ForwardState:
    """What a method may ask about the forward pass that is running; a new object for each pass.

    mask: (B, L) true at real tokens, slots included, None for images. slots: (B, L) true at prompt slots, or
    None. memory, penalties, taps: one entry a site, assigned and never appended to, so that a recomputation
    under gradient checkpointing writes the same values again.
    """

    batch: Batch | None = None
    mask: Tensor | None = None
    slots: Tensor | None = None
    phase: Phase = "evaluate"
    prompt_length: Tensor | None = None
    start: int = 0
    memory: dict[Any, Any] = field(default_factory=dict)
    penalties: dict[Any, Tensor] = field(default_factory=dict)
    taps: dict[Any, Tensor] = field(default_factory=dict)

    @property
    def positions(self) -> Tensor:
        """(B, L) position of each token of this pass in its sequence; padding counts as 0."""
        positions = (self.mask.long().cumsum(1) - 1).clamp_min(0)
        return positions[:, self.start :]
