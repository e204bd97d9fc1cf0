"""VQT: Visual Query Tuning: Towards Effective Usage of Intermediate Representations for Parameter and Memory Efficient
Transfer Learning (Tu, Mai and Chao, 2022, arXiv:2212.03220).

    O_l = rows of block l for dropout(Q_l), whose keys and values come from the block's own tokens alone    Q_l: (T, d)
    features = [u(x_cls) ; u(O_1) ; ... ; u(O_L)]     u(z) = z / ||z||, of all T d numbers of an O_l together

Query rows go through norms, attention, residuals and feed-forward of the block and are then taken out, so the network
computes for its tokens what it always did, and no block sees another's queries. A linear head reads d (1 + L T)
features: the harness's head reads the first d, and weights that belong to the head read the rest. Q_l starts
Uniform(-v, v), v = sqrt(6 / (3 P_h P_w + d)) with patches of P_h x P_w pixels, the further weights of the head
Normal(0, 2 / classes). Nothing merges. L T d parameters, trained and stored, beside the larger head.

Tokens run without a graph and are never followed back: only the T rows of each block are (the authors' code has all
rows in one tensor, which gives the same numbers at the memory of the whole network). x_cls is what the head of the
harness pools, after the last norm; O_l is not normed. Encoders of text are read in the same way. Refused: generators
(the method is its head), Swin (its blocks see windows), networks with rotary positions (a query has none) and those
that compute their attention themselves. Left out: pooling over T and the stages that keep a part of the features.

The paper trains with Adam at 0.025 to 0.5, and T is 1, 10 or 20 by task.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from methods.base import Count, InputPrompt, Method
from methods.base.contract import key
from methods.base.prompts import token_bound
from models.shape import SiteId


class VQT(Method):
    name, family, paper = "vqt", "prompt", "2212.03220"
    title = (
        "Visual Query Tuning: Towards Effective Usage of Intermediate Representations for Parameter and Memory "
        "Efficient Transfer Learning"
    )
    kinds = ("encoder", "vision")
    recipe = {"lr": 2.5e-2, "weight_decay": 1e-4}

    @dataclass(frozen=True)
    class Settings:
        tokens: int = 1
        dropout: float = 0.1

    def supports(self, shape, task):
        reason = super().supports(shape, task)
        if reason is None and not (shape.appendable and shape.dispatches):
            return f"{shape.architecture} takes no tokens that only ask"
        return reason

    def attach(self, backbone, ctx):
        self.backbone, width = backbone, 0
        for part, layer in backbone.shape.blocks:
            site = SiteId(part, layer, "block")
            width += self.settings.tokens * backbone.shape.block(site).width
            with torch.device(backbone.device_of(site)):
                self.parts[key(site)] = InputPrompt(self.settings.tokens, backbone.shape.block(site).width)
            backbone.attention(site._replace(name="attn.core"), self.attention(site))
            backbone.around(site, self.block(site, self.parts[key(site)]))
        self.weights = backbone.widen_head(width, self.features)

    def block(self, site, prompt):
        """Runs the tokens alone, then the queries on the keys and values that the tokens left."""

        def run(call):
            memory = call.state.memory
            memory[site, "keys"] = None
            with torch.no_grad():
                tokens = call.proceed()
            rows = prompt().to(tokens.dtype).expand(len(tokens), -1, -1)
            memory[site] = call.proceed(F.dropout(rows, self.settings.dropout, prompt.training)).flatten(1)
            return tokens

        return run

    def attention(self, site):
        def attend(call, proceed):
            memory, real = call.state.memory, call.state.mask
            if memory[site, "keys"] is None:
                memory[site, "keys"] = call.k, call.v
                return proceed()
            mask = None if real is None else real[:, None, None, :].to(call.q.device)
            return call.attend(call.q, *memory[site, "keys"], mask)

        return attend

    def features(self, pooled, state):
        """What the head reads in the place of the pooled vector (B, d), and the further L T d features."""
        blocks = [state.memory[SiteId(part, layer, "block")] for part, layer in self.backbone.shape.blocks]
        return F.normalize(pooled, dim=1), torch.cat([F.normalize(b.to(pooled), dim=1) for b in blocks], 1)

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        v = token_bound(backbone)
        for name, prompt in self.parts.items():
            prompt.rows.copy_(torch.empty(prompt.rows.shape).uniform_(-v, v, generator=ctx.rng(f"init/{name}")))
        std = (2 / len(self.weights)) ** 0.5
        self.weights.copy_(torch.empty(self.weights.shape).normal_(0, std, generator=ctx.rng("init/head")))

    def expected_parameters(self, shape):
        return Count(sum(self.settings.tokens * block.width for block in shape.blocks.values()))
