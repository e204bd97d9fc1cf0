"""VPT-deep: Visual Prompt Tuning (Jia, Tang, Chen, Cardie, Belongie, Hariharan and Lim, 2022, arXiv:2203.12119).

    block i reads [x_cls ; dropout(P_i) ; x_1 ... x_n]     P_i: (p, d), trained, one a block; its outputs are dropped

Each block's prompts replace what the block before made of its own, so only their keys and values matter:

    K_i = norm(P_i) W_k + b_k     V_i = norm(P_i) W_v + b_v     joined to the keys and values of the block's tokens

This is how it is computed, by the block's own norm and maps and the fused attention; neither queries nor feed-forward
of prompts are needed and the sequence keeps its length. Prompts have no position. P_i starts Uniform(-v, v),
v = sqrt(6 / (3 P_h P_w + d)) with patches of P_h x P_w pixels; dropout is drawn for each block and example. The output
is changed from the start and nothing merges. L p d parameters, trained and stored.

In Swin every window attends to the prompts (dropout is drawn for each window), and widths are those of the stages. On
texts the encoder gets them, or a decoder in front of the text: prompt keys are not rotated and text keeps its
positions; a post-norm network has no norm before its maps, and v is that of patches of 16. Networks that compute their
attention themselves (DeBERTa, Bloom) are refused. Left out: the projection of prompts and the ablations.

The paper searches p in 1 to 200 and trains with SGD, as vpt_shallow tells; the rate is that of AdamW in comparisons on
VTAB-1k.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from methods.base import Count, InputPrompt, Method
from methods.base.contract import key
from methods.base.prompts import token_bound
from models.shape import SiteId


class VPTDeep(Method):
    name, family, paper = "vpt_deep", "prompt", "2203.12119"
    title = "Visual Prompt Tuning"
    recipe = {"lr": 1e-2, "weight_decay": 1e-4}

    @dataclass(frozen=True)
    class Settings:
        tokens: int = 50
        dropout: float = 0.1

    def supports(self, shape, task):
        reason = super().supports(shape, task)
        return reason or (None if shape.dispatches else f"{shape.architecture} computes its attention itself")

    def sites(self, shape):
        """The attention of every block, an encoder-decoder's decoder left out."""
        return [SiteId(part, layer, "attn.core") for part, layer in shape.blocks if part != "decoder"]

    def attach(self, backbone, ctx):
        self.backbone = backbone
        for site in self.sites(backbone.shape):
            with torch.device(backbone.device_of(site)):
                self.parts[key(site)] = InputPrompt(self.settings.tokens, backbone.shape.block(site).width)
            norm = None if backbone.architecture.post_norm else backbone.norms().get(site._replace(name="norm.attn"))
            backbone.attention(site, self.attention(self.parts[key(site)], norm))

    def attention(self, prompt, norm):
        def attend(call, proceed):
            rows = prompt().to(call.q.dtype).expand(len(call.q) if prompt.training else 1, -1, -1)
            rows = F.dropout(rows, self.settings.dropout, prompt.training)
            rows = rows if norm is None else norm(rows)
            return call.attend_with(call.project("k", rows), call.project("v", rows))

        return attend

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        v = token_bound(backbone)
        for name, prompt in self.parts.items():
            prompt.rows.copy_(torch.empty(prompt.rows.shape).uniform_(-v, v, generator=ctx.rng(f"init/{name}")))

    def expected_parameters(self, shape):
        return Count(sum(self.settings.tokens * shape.block(site).width for site in self.sites(shape)))
