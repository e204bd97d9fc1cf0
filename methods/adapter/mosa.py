"""MoSA: Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training
(Zhang et al., 2023, arXiv:2312.02923; first named Mixture of Sparse Adapters).

    training:  y' = y + s [U_i dropout(gelu(D LN(x) + b_D)) + b_i]      D: (r, d)    U_i: (d, r)    x, y: (d,)
    else:      the same with the mean of the U_i and b_i over the N modules

An adapter beside the feed-forward branch (y) reads the residual stream x before the norm, through a layer norm of its
own. Each entry of U belongs to one of N modules, drawn once; U_i has the entries of module i and zero elsewhere, so the
mean is U / N. In each step every adapter runs one module, drawn at random. Every module has the whole bias, and D is
trained whole, as in nearly all of the authors' runs (their multi-task runs split D too, one data set D alone).

A batch passes twice, with other modules: loss = task loss of the first pass + w [KL(p2 | p1) + KL(p1 | p2)] / 2, each
KL a mean over examples (generation: over tokens that are learned) that moves its second argument alone. D starts
Kaiming-uniform in [-1/sqrt(d), 1/sqrt(d)], all else but the norm at zero, so the output is unchanged. Trained: D, U,
the norm, and N copies of b. Stored, and left at inference: the adapter alone, 2 r d + r + d and a norm of 2 d a block.
It does not merge into the network. The formulas are those of the authors' code.

Here the modules share one matrix U that is seen through masks, and the two passes are one of a doubled batch; the draw
holds for all of a step. As in the authors' code under its torch 1.11, Adam's momentum also moves entries of modules
that do not run. Left out: their Pfeiffer and Houlsby positions, the Swin and LoRA forms, the deep regularisation (off
there), and a second task loss (weight 0 there). r = 64 is theirs for FGVC (VTAB-1k: 16) and the rate that of VTAB-1k
(FGVC 5e-4 to 5e-3), with a weight decay of 0.01.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, empty, nn

from methods.base import Count, ParallelBottleneckMethod


class Up(nn.Module):
    """The up-projection in n modules. owner (out, in): whose an entry is; runs: which module sees the first half of a
    batch in training, and which the second."""

    def __init__(self, inp, out, n):
        super().__init__()
        self.weight, self.biases, self.runs = nn.Parameter(empty(out, inp)), nn.Parameter(empty(n, out)), (0, n - 1)
        self.register_buffer("owner", empty(out, inp, dtype=torch.uint8), persistent=False)

    def initialise(self, rng):
        self.weight.zero_()
        self.biases.zero_()
        turns = torch.arange(self.owner.numel()) * len(self.biases) // self.owner.numel()
        self.owner.copy_(turns[torch.randperm(len(turns), generator=rng)].view_as(self.owner))

    def module(self, i):
        """U_i and b_i."""
        return self.weight * (self.owner == i), self.biases[i]

    def merged(self):
        return self.weight / len(self.biases), self.biases.mean(0)

    def forward(self, x):
        if not self.training:
            return F.linear(x, *self.merged())
        halves = zip(x.chunk(2), self.runs, strict=True)
        return torch.cat([F.linear(half, *self.module(i)) for half, i in halves])


class Adapter(nn.Module):
    def __init__(self, width, settings):
        super().__init__()
        self.norm, self.down = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, settings.size)
        self.up = Up(settings.size, width, settings.modules)
        self.scale, self.dropout = settings.scale, settings.dropout

    def forward(self, x):
        hidden = F.gelu(self.down(self.norm(x.to(self.norm.weight.dtype))))
        return (self.scale * self.up(F.dropout(hidden, self.dropout, self.training))).to(x.dtype)


class MoSA(ParallelBottleneckMethod):
    name, family, paper = "mosa", "adapter", "2312.02923"
    title = "Split & Merge: Unlocking the Potential of Visual Adapters via Sparse Training"
    identity_at_init = True
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True)
    class Settings:
        size: int = 64
        modules: int = 4
        scale: float = 0.1
        dropout: float = 0.1
        consistency: float = 1.0
        layers: tuple[int, ...] | None = None

    def supports(self, shape, task):
        if getattr(task, "kind", None) == "regression":
            return "the two passes are compared by their class probabilities, which a regression has not"
        return super().supports(shape, task)

    def make(self, width):
        return Adapter(width, self.settings)

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            rng, bound = ctx.rng(f"init/{name}"), 1 / math.sqrt(module.down.in_features)
            module.down.weight.copy_(empty(module.down.weight.shape).uniform_(-bound, bound, generator=rng))
            module.down.bias.zero_()
            module.up.initialise(rng)

    def on_step_start(self, step, ctx):
        draws = torch.randint(self.settings.modules, (len(self.parts), 2), generator=ctx.rng("modules")).tolist()
        for module, runs in zip(self.parts.values(), draws, strict=True):
            module.up.runs = runs

    def forward(self, batch, call):
        if not self.parts.training:
            return call(batch)

        def twice(values):
            return torch.cat([values, values]) if isinstance(values, Tensor) else values

        inputs = {name: twice(values) for name, values in batch.inputs.items()}
        return call(replace(batch, inputs=inputs, labels=twice(batch.labels), prompt_length=twice(batch.prompt_length)))

    def loss(self, outputs, batch, task_loss):
        if not self.parts.training:
            return super().loss(outputs, batch, task_loss)
        targets = outputs.targets(batch).chunk(2)[0]
        one, two = outputs.logits.chunk(2)
        total = super().loss(replace(outputs, logits=one, labels=targets), batch, task_loss)
        if targets.dim() == 2:
            one, two = one[targets != -100], two[targets != -100]
        p, q = (logits.float().log_softmax(-1) for logits in (one, two))
        divergence = sum(F.kl_div(a, b.detach(), reduction="batchmean", log_target=True) for a, b in ((p, q), (q, p)))
        return total + self.settings.consistency * divergence / 2

    def kept(self):
        return [p[0] if name.endswith("biases") else p for name, p in self.parts.named_parameters()]

    def state_dict(self):
        state = super().state_dict()
        return {name: value.mean(0) if name.endswith("biases") else value for name, value in state.items()}

    def load_state_dict(self, state):
        places = self._places()
        super().load_state_dict({name: value.expand(places[name].shape) for name, value in state.items()})

    def expected_parameters(self, shape):
        r, widths = self.settings.size, [shape.block(site).width for site in self.plan(shape).sites]
        adapter = sum(2 * r * d + r + d + 2 * d for d in widths)
        return Count(adapter + (self.settings.modules - 1) * sum(widths), adapter, adapter)
