"""Replaced attention, once for all architectures, through transformers' registry of attention functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

from models.batch import ForwardState

NAME = "atlas"


@dataclass
class AttentionCall:
    """One attention: q (B, H, L, D), k and v (B, KV heads, S, D), rotated and cached already.

    mask: bool (true = attend) or additive float, broadcastable to (B, H, L, S), or None; bias: additive position
    bias or None; causal: whether position i sees no later one when there is no mask.
    """

    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    bias: Tensor | None
    scale: float
    causal: bool
    dropout: float
    state: ForwardState
    hidden: Tensor | None = None
    projections: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def project(self, name: str, x: Tensor) -> Tensor:
        """x (B or 1, P, d) through the layer's own q, k or v projection, split in heads: (B or 1, heads, P, D).

        Normed where the layer norms queries and keys, never rotated.
        """
        y = self.projections[name](x)
        y = y.unflatten(-1, (-1, self.q.shape[-1]))
        norm = getattr(self.module, f"{name}_norm", None)
        return (y if norm is None else norm(y)).transpose(1, 2)

    def full_mask(self) -> Tensor | None:
        """The mask with causality written out, so that keys may be added; None if everything is visible."""
        if self.mask is not None or not self.causal or self.q.shape[2] == 1:
            return self.mask
        queries, keys = self.q.shape[2], self.k.shape[2]
        return torch.ones(queries, keys, dtype=torch.bool, device=self.q.device).tril(keys - queries)[None, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """softmax(scale q k^T + mask + bias) v by the fused kernel: (B, H, L, D). Grouped heads are repeated."""
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        if bias is not None:
            if mask is None:
                mask = bias
            elif mask.dtype == torch.bool:
                mask = torch.where(mask, bias, torch.finfo(bias.dtype).min)
            else:
                mask = mask + bias
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout, scale=self.scale)

    def attend_with(self, keys: Tensor, values: Tensor) -> Tensor:
        """Joint attention over extra keys and values (B or 1, KV heads, P, D), visible to every query."""
        batch, extra = self.q.shape[0], keys.shape[2]
        k = torch.cat([keys.to(self.k.dtype).expand(batch, -1, -1, -1), self.k], dim=2)
        v = torch.cat([values.to(self.v.dtype).expand(batch, -1, -1, -1), self.v], dim=2)
        mask, bias = self.full_mask(), self.bias
        if mask is not None:
            mask = F.pad(mask, (extra, 0), value=True if mask.dtype == torch.bool else 0.0)
        if bias is not None:
            bias = F.pad(bias, (extra, 0))
        return self.attend(self.q, k, v, mask, bias)

    def scores(self) -> Tensor:
        """Explicit scores before the softmax (B, H, L, S): not fused, memory grows with L times S."""
        k = self.k.repeat_interleave(self.q.shape[1] // self.k.shape[1], 1)
        scores = self.q @ k.transpose(-1, -2) * self.scale
        if self.bias is not None:
            scores = scores + self.bias
        mask = self.full_mask()
        if mask is None:
            return scores
        return scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask

    def proceed(self) -> Tensor:
        """The attention of the pretrained network: (B, H, L, D)."""
        out, _ = sdpa_attention_forward(
            self.module,
            self.q,
            self.k,
            self.v,
            self.mask,
            dropout=self.dropout,
            scaling=self.scale,
            position_bias=self.bias,
            **self.extra,
        )
        return out.transpose(1, 2)


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs):
    replaced = module.__dict__.get("_attention")
    if replaced is None or not replaced.switch.on:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    causal = kwargs.pop("is_causal", None)
    scale = kwargs.pop("scaling", None)
    call = AttentionCall(
        module,
        query,
        key,
        value,
        attention_mask,
        kwargs.pop("position_bias", None),
        query.shape[-1] ** -0.5 if scale is None else scale,
        getattr(module, "is_causal", True) if causal is None else causal,
        kwargs.pop("dropout", 0.0),
        replaced.backbone.state,
        projections=replaced.projections,
        extra={**kwargs, "is_causal": causal},
    )
    return replaced(call).transpose(1, 2), None


class ReplacedAttention:
    """The functions at one attention core, innermost first; each is `fn(call, proceed) -> (B, H, L, D)`."""

    def __init__(self, backbone, projections: dict[str, Callable]):
        self.backbone, self.projections, self.functions = backbone, projections, []
        self.switch = backbone.switch

    def __call__(self, call: AttentionCall) -> Tensor:
        run = call.proceed
        for function in self.functions:
            run = _bind(function, call, run)
        return run()


def _bind(function, call, inner):
    return lambda: function(call, inner)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
