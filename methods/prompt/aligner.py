"""Aligner: One Global Token is Worth Millions of Parameters When Aligning Large Language Models
(Ziheng et al., 2023, arXiv:2312.05503).

    head h:   softmax(Q_h K_h^T / sqrt(d_h)) V_h + g_h softmax(Q_h K_p^T / sqrt(d_h)) V_p
              K_p = E W_k    V_p = E W_v    E: (N, d), one for all blocks, trained    g: (H,) a block, trained

E passes each block's own frozen projections (with their biases, where there are any) but neither a norm nor a rotation.
E starts from Normal(0, 1), g at zero, so the output is unchanged and E learns from the second step on. The first
`start` blocks have none, as in the authors' code (2 of 32, although every layer is said to have one). N d + H numbers a
block: trained, stored (E once) and kept. The second attention is another call of the fused kernel.

With the paper's single token the softmax is 1 and the term is g_h V_p whatever the input: a bias of the output
projection, W_o concat_h(g_h V_p), into which it merges (a network without that bias gains one); W_k plays no part. With
more tokens it does not merge.

The gate is used as it is, one a head, as the code and its count of 5,056 have it; the paper speaks of one a layer.
Self-attention only. Blocks of different widths (Swin) cannot share E. The formula is from the code; of the paper's text
only parts were read. Recipe: batches of 64 and a rate of 9e-3, but the authors' warm-up never ends, because it counts
micro-batches, so their rate climbs to 4.5e-3, the rate taken here. Theirs decays every trained tensor by 0.02 and runs
in bf16; here gates are not decayed, and E and gates are fp32.
"""

from dataclasses import dataclass

import torch
from torch import empty, nn

from methods.base import Count, MergeReport, Plan
from methods.base.contract import key
from methods.base.prefix import AttentionMethod, attentions, prompt_attention


class Tokens(nn.Module):
    def __init__(self, length, width):
        super().__init__()
        self.E = nn.Parameter(empty(length, width))

    def initialise(self, rng):
        self.E.copy_(empty(self.E.shape).normal_(generator=rng))


class GatedAttention(nn.Module):
    merged = False

    def __init__(self, block, tokens):
        super().__init__()
        self.g, self.tokens = nn.Parameter(empty(block.heads)), tokens

    def initialise(self, rng):
        self.g.zero_()

    def forward(self, call, proceed):
        return proceed() if self.merged else proceed() + prompt_attention(call, self.tokens.E, self.g)


class Aligner(AttentionMethod):
    name, family, paper = "aligner", "prompt", "2312.05503"
    title = "Aligner: One Global Token is Worth Millions of Parameters When Aligning Large Language Models"
    mergeable = identity_at_init = True
    recipe = {"lr": 4.5e-3, "weight_decay": 0.02}
    tiny = {"start": 0}

    @dataclass(frozen=True)
    class Settings:
        tokens: int = 1
        start: int = 2

    def __init__(self, settings=None):
        super().__init__(settings)
        self.mergeable = self.settings.tokens == 1

    def supports(self, shape, task):
        reason = super().supports(shape, task)
        if reason is None and len({block.width for block in shape.blocks.values()}) > 1:
            reason = f"the blocks of {shape.architecture} differ in width, so they cannot share a token"
        if reason is None and not self.plan(shape).sites:
            reason = f"start = {self.settings.start} leaves none of the blocks"
        return reason

    def plan(self, shape):
        return Plan(tuple(site for site in attentions(shape) if site.layer >= self.settings.start))

    def make(self, site, block):
        return GatedAttention(block, self.shared("tokens", lambda: Tokens(self.settings.tokens, block.width)))

    @torch.no_grad()
    def merge(self):
        if not self.mergeable:
            return super().merge()
        error, E = 0.0, self.parts["shared/tokens"].E.float()
        for place in self.planned.sites:
            module = self.parts[key(place)]
            o, v = (self.backbone.site(place._replace(name=f"attn.{n}")) for n in "ov")
            W, b, heads = o.weight().float(), o.bias(), len(module.g)
            token = v.weight().float() @ E[0].to(v.weight().device)
            token = token if v.bias() is None else token + v.bias().float()
            values = token.unflatten(0, (self.backbone.shape.block(place).kv_heads, -1))
            values = values.repeat_interleave(heads // len(values), 0)
            added = W @ (module.gate * module.g.float()[:, None] * values).flatten()
            wanted = added if b is None else b.float() + added
            self.backbone.write(o, W, wanted, merging=True)
            error, module.merged = max(error, (o.bias().float() - wanted).abs().max().item()), True
        return MergeReport(self.planned.sites, error)

    def unmerge(self):
        self.backbone.unmerge()
        for place in self.planned.sites:
            self.parts[key(place)].merged = False

    def expected_parameters(self, shape):
        heads = sum(shape.block(site).heads for site in self.plan(shape).sites)
        return Count(self.settings.tokens * shape.width + heads)
