"""p-Adapter: p-Laplacian Adaptation for Generative Pre-trained Vision-Language Models
(Wu et al., 2023, arXiv:2312.10613).

    nodes of an attention, of each head:   F_q = W_i (W_o Q + b_o) + b_i    F_v = W_i (W_o V + b_o) + b_i    W_i: (r, d)
    edges from queries i to values j:      w_ij = ||sqrt(A_ij + e) (F_v,j - F_q,i)||^(p - 2)      A: attention's weights
    F = alpha ((A * w) F_v + (2 mu / p) F_q)      alpha_i = 1 / (sum_j A_ij w_ij + 2 mu / p)
    o <- o + W_u (gelu(W_g o + b_g) * F) + b_u    W_g: (r, d)    W_u: (d, r)    o: the attention's output

W_o is the network's own output projection, frozen; F is split into H heads of r / H. r = d / 8. p is trained from 1.25,
mu = mu_0 (2 + tanh m) with m trained from zero. Beside the feed-forward, with u the residual: + W_2 relu(W_1 u + b_1) +
b_2 of the same r. All matrices start from Normal(0, 0.02), biases at zero, so the output is only nearly unchanged.
Trained and stored: 3 d r + 2 r + d + 2 an attention, 2 d r + r + d a feed-forward. Not mergeable.

The attention's own output keeps the fused kernel; its weights A are computed a second time, explicitly and before
dropout, (H, L, S) a text. Distances are taken without the tensor of all differences: e = 1e-8 is added to the norm
instead of to each entry. In rotary networks Q is taken before the rotation (V has none), before a norm of queries too;
values shared by several heads are repeated. An attention that computes itself (DeBERTa, Bloom) cannot be had.

Departures of the authors' code from this, all from its treatment of one joint matrix of queries and values: in
cross-attention and in decoding it loses the term mu F_q (a block of zeros is read), and self-attention in training has
the values alone as nodes, where w_ii of about 5e5 leaves F = F_v. Here every attention has queries and values as nodes.
It also pools the keys of an image to 16 or 24. The degrees of the nodes (2111.07337) are left out in the code and here:
those of queries are one. Of the paper only the abstract was at hand; whether it divides by degrees is not confirmed.
p and mu_0 are those of its visual question answering (visual entailment: 1.5 and 10; captions: 1.75 and 0.1).
An encoder-decoder gets them in its decoder, self- and cross-attention, as BLIP does; other networks in every block.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Bottleneck, BottleneckMethod, Count, LinearMap, Plan
from methods.base.contract import key


class Message(nn.Module):
    """The adapter of one attention. Tensors of nodes are (B, H, tokens, r / H)."""

    def __init__(self, width, size, heads, mu):
        super().__init__()
        self.inp, self.gating, self.up = nn.Linear(width, size), nn.Linear(width, size), nn.Linear(size, width)
        self.p, self.m = nn.Parameter(empty(1)), nn.Parameter(empty(1))
        self.heads, self.mu, self.gate = heads, mu, 1.0

    def nodes(self, projected):
        """Tokens behind W_o, (B, tokens, d)."""
        projected = projected.to(self.p.dtype)
        return self.inp(projected).to(self.p.dtype).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def propagate(self, A, F_q, F_v):
        """F (B, L, r) for A (B, H, L, S)."""
        e, mu = 1e-8, self.mu * (2 + torch.tanh(self.m))
        distance = torch.cdist(F_q, F_v, compute_mode="donot_use_mm_for_euclid_dist")
        A = A * ((A + e).sqrt() * distance + e) ** (self.p - 2)
        stay = 2 * mu / self.p
        messages = (A @ F_v + stay * F_q) / (A.sum(-1, keepdim=True) + stay)
        return messages.transpose(1, 2).flatten(2)

    def forward(self, o, messages):
        change = self.up(F.gelu(self.gating(o.to(self.p.dtype))) * messages)
        return o + (self.gate * change).to(o.dtype)


class Queries(LinearMap):
    """Notes y = W_q x + b_q in the state of the pass."""

    def __init__(self, backbone):
        super().__init__(None, None, None)
        self.backbone = backbone

    def forward(self, x, base):
        self.backbone.state.memory[self.site] = y = base(x)
        return y


class PAdapter(BottleneckMethod):
    name, family, paper = "p_adapter", "adapter", "2312.10613"
    title = "p-Laplacian Adaptation for Generative Pre-trained Vision-Language Models"
    recipe = {"lr": 5e-4}

    @dataclass(frozen=True)
    class Settings:
        reduction: int = 8
        p: float = 1.25
        mu: float = 0.1
        std: float = 0.02
        layers: tuple[int, ...] | None = None

    def branches(self):
        return ("attn", "cross", "mlp")

    def supports(self, shape, task):
        if not shape.dispatches:
            return f"{shape.architecture} computes its attention itself: its weights cannot be had"
        for block in shape.blocks.values():
            if (r := block.width // self.settings.reduction) == 0 or r % block.heads:
                return f"{block.width} / {self.settings.reduction} = {r} units cannot be shared by {block.heads} heads"
        return super().supports(shape, task)

    def plan(self, shape):
        sites = [site for site in super().plan(shape).sites if site.part == shape.parts[-1]]
        return Plan(tuple(s for s in sites if s.name != "cross" or s._replace(name="cross.q") in shape.linears))

    def make_at(self, site, block):
        size = block.width // self.settings.reduction
        if site.name == "mlp":
            return Bottleneck(block.width, size, "relu")
        return Message(block.width, size, block.heads, self.settings.mu)

    def attach(self, backbone, ctx):
        self.backbone = backbone
        self.planned = self.planned if self.planned.sites else self.plan(backbone.shape)
        for site in self.planned.sites:
            with torch.device(backbone.device_of(site)):
                module = self.parts[key(site)] = self.make_at(site, backbone.shape.block(site))
            module.site = site
            if site.name != "mlp":
                backbone.map(backbone.site(site._replace(name=f"{site.name}.q")), Queries(backbone))
                backbone.attention(site._replace(name=f"{site.name}.core"), self._attention(module))
            backbone.branch(site, site.name, self._function(module))

    def _attention(self, module):
        branch = module.site.name
        queries, output = (module.site._replace(name=f"{branch}.{n}") for n in "qo")

        def run(call, proceed):
            memory, site = self.backbone.state.memory, self.backbone.site(output)
            values = call.v.repeat_interleave(call.q.shape[1] // call.v.shape[1], 1).transpose(1, 2).flatten(2)
            F_q, F_v = (module.nodes(F.linear(t, site.weight(), site.bias())) for t in (memory[queries], values))
            scores = call.scores().to(F_v.dtype)
            A = scores.clamp_min(torch.finfo(scores.dtype).min).softmax(-1)  # finite where a padded query sees no key
            memory[module.site] = module.propagate(A, F_q, F_v)
            return proceed()

        return run

    def combine(self, module, x, y, residual):
        if module.site.name == "mlp":
            return y + module(residual)
        return module(y, self.backbone.state.memory[module.site])

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        for part, module in self.parts.items():
            rng = ctx.rng(f"init/{part}")
            for name, parameter in module.named_parameters():
                std = 0.0 if name.endswith("bias") else self.settings.std
                parameter.copy_(empty(parameter.shape).normal_(generator=rng) * std)
            if isinstance(module, Message):
                module.p.fill_(self.settings.p)
                module.m.zero_()

    def expected_parameters(self, shape):
        count = 0
        for site in self.plan(shape).sites:
            d = shape.block(site).width
            r = d // self.settings.reduction
            count += 2 * d * r + r + d if site.name == "mlp" else 3 * d * r + 2 * r + d + 2
        return Count(count)
