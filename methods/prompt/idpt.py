"""IDPT: Instance-aware Dynamic Prompt Tuning for Pre-trained Point Cloud Models
(Zha, Wang, Dai, Chen, Wang and Xia, 2023, arXiv:2304.07221).

    the last block reads [x_cls ; p ; Y]     Y: (n, d), its input tokens without x_cls     p = g(Y): (1, d)
    z_j = max over the k nearest tokens t of i of leaky(bn(W_j [y_t - y_i ; y_i]))     W_j: (d, 2 d), j = 1, 2, 3
    g(Y) = max over tokens of leaky(bn(W_4 [z_1 ; z_2 ; z_3]))                         W_4: (d, 3 d)
    the head reads [x_cls ; p ; max over tokens of Y] after the last block and the last norm

One prompt token for each input, made by three graph convolutions (the input of the next is z of the one before, and
its neighbours are found anew, by Euclidean distance, each token its own neighbour) and a pooling. leaky has slope 0.2.
All starts as torch starts it: W uniform within 1 / sqrt(fan in), batch norms at 1 and 0. The output is changed from the
start and nothing merges. 9 d^2 + 8 d trained; stored beside them are the 8 d running means and variances.

The paper is about point clouds (Point-MAE, d = 384): the use on images and texts is this file's. There no position is
added to p (the paper's is random and not trained). k is the number of tokens where those are fewer than 20; padding is
nobody's neighbour and enters no statistic and no maximum. The three parts of the head's features are mapped by one
linear map, the harness's head and weights beside it; the authors have three layers with batch norm and dropout. They
also train the class token and its position, which are frozen here, so no gradient passes the last block. Refused:
decoders (p would tell them what comes), encoder-decoders, Swin and rotary networks (p has no place in them). That
the class token is trained, which the paper's figure has frozen, the authors say in issue 10 of their repository; issue
4 gives the last block and these three features as the paper's, and they do not object.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from methods.base import Count, Method
from methods.base.contract import keep_stored
from models.shape import SiteId


class BatchNorm(nn.Module):
    """Batch norm of rows (n, d); its running mean and variance are stored."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.variance = nn.Parameter(torch.ones(width), requires_grad=False)
        keep_stored([self.mean, self.variance])

    def forward(self, rows, note):
        """note: whether the running statistics move, while training; not when a checkpointed block runs again."""
        running = self.mean.clone(), self.variance.clone()
        out = F.batch_norm(rows, *running, self.weight, self.bias, self.training, momentum=0.1)
        if note and self.training:
            with torch.no_grad():
                self.mean.copy_(running[0])
                self.variance.copy_(running[1])
        return out


class Pooled(nn.Module):
    """max over an axis of leaky(bn(y)), of the entries that count."""

    def __init__(self, inp, width):
        super().__init__()
        self.W, self.norm = nn.Parameter(torch.empty(width, inp)), BatchNorm(width)

    def pool(self, y, counts, dim, note):
        filled = torch.full_like(y, -torch.inf)
        filled[counts] = F.leaky_relu(self.norm(y[counts], note), 0.2)
        return filled.max(dim).values


class Generator(nn.Module):
    """g: tokens (B, n, d) -> (B, 1, d)."""

    def __init__(self, width, k):
        super().__init__()
        self.k = k
        self.edges = nn.ModuleList(Pooled(2 * width, width) for _ in range(3))
        self.last = Pooled(3 * width, width)

    def forward(self, y, real, note):
        """real: (B, n) true at tokens that count."""
        z = [y]
        for edge in self.edges:
            z.append(self.convolve(edge, z[-1], real, note).masked_fill(~real[..., None], 0))
        return self.last.pool(F.linear(torch.cat(z[1:], -1), self.last.W), real, 1, note)[:, None]

    def convolve(self, edge, y, real, note):
        """W [y_t - y_i ; y_i] as W_a y_t + (W_b - W_a) y_i."""
        with torch.no_grad():
            distance = torch.cdist(y, y).masked_fill(~real[:, None], torch.inf)
            near = distance.topk(min(self.k, y.shape[1]), largest=False).indices
        a, b = edge.W.chunk(2, 1)
        rows = torch.arange(len(y), device=y.device)[:, None, None]
        edges = F.linear(y, a)[rows, near] + F.linear(y, b - a)[:, :, None]
        return edge.pool(edges, real[rows, near] & real[..., None], 2, note)


class IDPT(Method):
    name, family, paper = "idpt", "prompt", "2304.07221"
    title = "Instance-aware Dynamic Prompt Tuning for Pre-trained Point Cloud Models"
    kinds = ("encoder", "vision")
    recipe = {"lr": 5e-4, "weight_decay": 0.05}

    @dataclass(frozen=True)
    class Settings:
        k: int = 20

    def supports(self, shape, task):
        reason = super().supports(shape, task)
        return reason or (
            None if shape.appendable else f"no token can be put between the blocks of {shape.architecture}"
        )

    def attach(self, backbone, ctx):
        self.backbone = backbone
        self.site = list(backbone.modules("block"))[-1]
        width = backbone.shape.block(self.site).width
        with torch.device(backbone.device_of(self.site)):
            self.parts["generator"] = Generator(width, self.settings.k)
        self.norm = backbone.norms().get(SiteId("", -1, "norm.final"), nn.Identity())
        backbone.around(self.site, self.block)
        self.weights = backbone.widen_head(2 * width, lambda pooled, state: (pooled, state.memory[self.site]))

    def block(self, call):
        hidden, mask, memory = call.hidden, call.state.mask, call.state.memory
        real = torch.ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask
        real = real.to(hidden.device)
        real = real & (real.cumsum(1) > self.backbone.shape.first_slot)
        prompt = self.parts["generator"](hidden.float(), real, note=self.site not in memory)
        out = call.proceed(extra=prompt.to(hidden.dtype))
        tokens, read = out[:, :-1], self.norm(out)
        largest = read[:, :-1].masked_fill(~real[..., None], -torch.inf).amax(1)
        memory[self.site] = torch.cat([read[:, -1], largest], 1)
        return tokens

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        weights = {f"init/{n}": p for n, p in self.parts.named_parameters() if n.endswith("W")}
        for name, parameter in (weights | {"init/head": self.weights}).items():
            bound = parameter.shape[1] ** -0.5 if name != "init/head" else (1.5 * parameter.shape[1]) ** -0.5
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=ctx.rng(name)))

    def expected_parameters(self, shape):
        d = list(shape.blocks.values())[-1].width
        return Count(9 * d**2 + 8 * d, stored=9 * d**2 + 16 * d, added=9 * d**2 + 16 * d)
