"""E^2VPT: An Effective and Efficient Approach for Visual Prompt Tuning (Han et al., 2023, arXiv:2307.13770).

    block i reads [x_cls ; dropout(P_i) * M ; x_1 ... x_n]      P_i: (m, d)    M = rho * [zeta ... zeta]: (m, d)
    each attention: softmax(Q [S ; K]^T / sqrt(d_h)) [S ; V]    S: (KV heads, n, d_h)    rho: (m, 1)    zeta: (m, R)

Visual prompts are those of `vpt_deep`, computed as there, as keys and values of the block's own norm and maps. One
tensor S an attention is both keys and values and passes neither. All stays in the fused kernel. The masks rho and zeta
are one for all blocks; zeta is repeated d / R times, so segment k of a token is its entries k, k + R, k + 2 R, ... . A
first training has open masks. Then gradients of the loss by rho and zeta tell what matters: the least tokens are
masked, and the least segments of every token (one token and four segments stay at least), and a second training
rewinds to the start with masks fixed. Both have the recipe's length. P_i starts as in vpt_deep, S uniform in
+-sqrt(6 / (n d_h)). L (m d + n H d_h) numbers trained and kept; stored are S, what the masks left of P and their m R
bits. The output changes at once and nothing merges.

Departures. The paper chooses the two shares among 10 to 90 percent on validation data, with a training for each pair;
here a pair is a setting, for a study to search (which ones the paper found is not known; 50 is the middle). The code
averages gradients with their signs; here absolute values are averaged, over the batches of one epoch without dropout.
Its masks are trained before they are read, so it counts 17 m numbers more; here they stay at one. As there, what is
masked is zero, and a masked token stays in the sequence. An encoder-decoder gets all of it in the encoder, texts as in
vpt_deep. The paper searches rates of SGD. The formula is from the code; of the paper's text only the abstract was read.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn, ones

from methods.base import Count, Phase, Plan, kaiming_uniform
from methods.base.contract import key
from methods.base.prefix import AttentionMethod, attentions
from methods.base.prompts import token_bound


class Prompts(nn.Module):
    def __init__(self, block, length, kv_length):
        super().__init__()
        self.P = nn.Parameter(empty(length, block.width))
        self.S = nn.Parameter(empty(block.kv_heads, kv_length, block.head_dim))

    def initialise(self, rng):
        self.P.copy_(empty(self.P.shape).uniform_(-1, 1, generator=rng))
        self.S.copy_(kaiming_uniform(self.S.shape, rng))


class Masks(nn.Module):
    def __init__(self, length, segments):
        super().__init__()
        self.register_buffer("rho", ones(length, 1))
        self.register_buffer("zeta", ones(length, segments))

    def initialise(self, rng):
        self.set(1.0, 1.0)

    def set(self, rho, zeta):
        for mask, value in ((self.rho, rho), (self.zeta, zeta)):
            mask.copy_(torch.as_tensor(value))

    def forward(self):
        return self.rho * self.zeta


class E2VPT(AttentionMethod):
    name, family, paper = "e2vpt", "prompt", "2307.13770"
    title = "E^2VPT: An Effective and Efficient Approach for Visual Prompt Tuning"
    recipe = {"lr": 1e-2, "weight_decay": 1e-4}
    tiny = {"tokens": 40, "kv_tokens": 30}

    @dataclass(frozen=True)
    class Settings:
        tokens: int = 10
        kv_tokens: int = 5
        dropout: float = 0.1
        segments: int = 16
        token_percent: int = 50
        segment_percent: int = 50

    def __init__(self, settings=None):
        super().__init__(settings)
        self.chosen = None

    def supports(self, shape, task):
        R = self.settings.segments
        if any(block.width % R for block in shape.blocks.values()):
            return f"the width of {shape.architecture} does not divide into {R} segments"
        return super().supports(shape, task)

    def plan(self, shape):
        return Plan(tuple(site for site in attentions(shape) if site.part != "decoder"))

    def make(self, site, block):
        self.shared("masks", lambda: Masks(self.settings.tokens, self.settings.segments))
        return Prompts(block, self.settings.tokens, self.settings.kv_tokens)

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        super().initialise(backbone, ctx)
        for site in self.planned.sites:
            self.parts[key(site)].P.mul_(token_bound(backbone))

    def attend(self, site, call, proceed):
        module, mask, batch = self.parts[key(site)], self.parts["shared/masks"](), len(call.q)
        P = module.P * mask.repeat(1, module.P.shape[1] // mask.shape[1]).to(module.P.device)
        rows = F.dropout(P.expand(batch, -1, -1), self.settings.dropout, module.training).to(call.q.dtype)
        norm = self.backbone.norms().get(site._replace(name="norm.attn"))
        rows = rows if norm is None or self.backbone.architecture.post_norm else norm(rows)
        S = module.S.to(call.q.dtype).expand(batch, -1, -1, -1)
        return call.attend_with(*(torch.cat([S, call.project(name, rows)], 2) for name in "kv"))

    def phases(self, recipe):
        return Phase("open"), Phase("pruned", rewind=True)

    def between(self, done, ctx):
        if done.name == "open":
            with ctx.measure("importance"):
                self.chosen = self.choose(*self.importance(ctx))

    @torch.no_grad()
    def on_step_start(self, step, ctx):
        if step.phase.name == "pruned" and step.index == 0:
            self.parts["shared/masks"].set(*self.chosen)

    def importance(self, ctx):
        masks, sums = list(self.parts["shared/masks"].buffers()), (0, 0)
        ctx.backbone.train(False)
        self.parts.train(False)
        for mask in masks:
            mask.requires_grad_(True)
        for batch in ctx.batches():
            with ctx.autocast():
                loss = ctx.loss(ctx.forward(batch), batch)
            sums = [s + g.abs() for s, g in zip(sums, torch.autograd.grad(loss, masks), strict=True)]
        for mask in masks:
            mask.requires_grad_(False)
        return sums

    def masked(self):
        """Tokens, and segments of a token, that end masked."""
        s = self.settings
        tokens = min(s.tokens * s.token_percent // 100, s.tokens - 1)
        return tokens, max(0, min(s.segments * s.segment_percent // 100, s.segments - 4))

    def choose(self, tokens, segments):
        least = tokens.argsort(dim=0, stable=True), segments.argsort(dim=1, stable=True)
        count = self.masked()
        rho = torch.ones_like(tokens).scatter(0, least[0][: count[0]], 0.0)
        return rho, torch.ones_like(segments).scatter(1, least[1][:, : count[1]], 0.0)

    def state_dict(self):
        state = super().state_dict()
        if self.chosen is not None:
            state["masks"] = self.parts["shared/masks"]().bool()
            for name in filter(is_table, state):
                state[name] = state[name].unflatten(1, (-1, self.settings.segments)).transpose(1, 2)[state["masks"]]
        return state

    @torch.no_grad()
    def load_state_dict(self, state):
        state = dict(state)
        if (mask := state.pop("masks", None)) is not None:
            self.chosen = mask.any(1, keepdim=True).float(), mask.float()
            self.parts["shared/masks"].set(*self.chosen)
            for name in filter(is_table, state):
                rows = state[name].new_zeros(*mask.shape, state[name].shape[1])
                rows[mask] = state[name]
                state[name] = rows.transpose(1, 2).flatten(1)
        super().load_state_dict(state)

    def expected_parameters(self, shape):
        s, blocks = self.settings, [shape.block(site) for site in self.plan(shape).sites]
        width, (tokens, segments) = sum(block.width for block in blocks), self.masked()
        prefixes = sum(s.kv_tokens * block.kv_heads * block.head_dim for block in blocks)
        whole = s.tokens * width + prefixes
        left = (s.tokens - tokens) * (s.segments - segments) * width // s.segments + prefixes
        return Count(whole, stored=tuple(sorted((whole, left + s.tokens * s.segments))))


def is_table(name):
    return name.endswith(".P")
