"""Towards Infinite-Long Prefix in Transformer (Liang et al., 2025, arXiv:2406.14036).

    head h of each attention:   (E V + phi(Q) Z) / (E 1 + phi(Q) |k|)     E = exp(Q K^T / sqrt(d_h)), masked
                                phi(x) = ELU(x / d_h^(1/4)) + 1           Z: (H, d_h, d_h)    k: (H, d_h), trained

An endless prefix of keys k_i and values v_i enters an attention only through sums; with exp(q k_i) taken as
phi(q) phi(k_i) they become Z = sum phi(k_i) v_i^T and k = sum phi(k_i), of a fixed size and trained in the place of the
prefix. phi and |k| are positive, so the denominator is. Every query, rotated where there is a rotation, sees the
prefix; the text is masked as ever. d_h^2 + d_h numbers a head: trained, stored, kept. Not mergeable.

Z starts at zero and k from 1e-4 |Normal(0, 1)|. The authors start both at zero in their ViT script, where |k| has no
gradient and never moves, and both from 1e-4 Normal(0, 1) for ChatGLM; the output is unchanged but for 1e-4. The row's
maximum M is taken out of the exponentials as in their code, but over visible keys and not below -60, so that nothing
overflows; the result does not depend on it. All is in fp32, but for autocast. The scale of a network stands for
1 / sqrt(d_h) where it differs. Their ViT script has a dropout of 0.2 on phi(Q) that stays on in evaluation, ChatGLM's
none: none here; the network's own attention dropout acts on the text's part. A position bias is the text's alone.
Self-attention only.

The sum of E is wanted beside the attention, with a gradient, which fused kernels do not give: scores are explicit, and
memory grows with the square of the length. The formula is from the code; of the paper's text only parts were read.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count
from methods.base.prefix import AttentionMethod


class NTKPrefix(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.Z = nn.Parameter(empty(block.heads, block.head_dim, block.head_dim))
        self.k = nn.Parameter(empty(block.heads, block.head_dim))

    def initialise(self, rng):
        self.Z.zero_()
        self.k.copy_(1e-4 * empty(self.k.shape).normal_(generator=rng).abs())

    def forward(self, call, proceed):
        dtype = call.q.dtype
        call = replace(call, **{name: getattr(call, name).to(self.Z.dtype) for name in "qkv"})
        scores = call.scores()
        M = scores.amax(-1, keepdim=True).clamp_min(-60.0).detach()
        E = (scores - M).exp()
        phi = (F.elu(call.q * call.scale**0.5) + 1) * (-M).exp()
        total = E.sum(-1, keepdim=True) + phi @ self.k.abs()[..., None]
        total = total.clamp_min(torch.finfo(total.dtype).tiny)  # padding may see nothing at all
        V = call.v.repeat_interleave(E.shape[1] // call.v.shape[1], 1)
        return ((F.dropout(E, call.dropout) @ V + phi @ self.Z) / total).to(dtype)


class NTKAttention(AttentionMethod):
    name, family, paper = "ntk_attention", "prompt", "2406.14036"
    title = "Towards Infinite-Long Prefix in Transformer"
    recipe = {"lr": 1e-3, "warmup": 0.0}

    @dataclass(frozen=True)
    class Settings:
        pass

    def make(self, site, block):
        return NTKPrefix(block)

    def expected_parameters(self, shape):
        blocks = map(shape.block, self.plan(shape).sites)
        return Count(sum(block.heads * block.head_dim * (block.head_dim + 1) for block in blocks))
