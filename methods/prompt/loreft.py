"""LoReFT: ReFT: Representation Finetuning for Language Models (Wu et al., 2024, arXiv:2404.03592, equation 2).

    h <- h + R^T (W h + b - R h)      R: (r, d), orthonormal rows    W: (r, d)    b: (r,)

on the output of a block, after its last residual, at the first `prefix` and the last `suffix` tokens of the prompt. A
prompt of n < prefix + suffix tokens is edited at its first min(prefix, floor(n / 2)) and last min(suffix, ceil(n / 2)).
`tied`: one (R, W, b) a block for all positions, else one for each end that has tokens. Dropout acts on the
edited states. W and b start uniform in [-1/sqrt(d), 1/sqrt(d)], R as random orthonormal rows, so the output is changed
from the start. 2 r d + r parameters a block and group; nothing merges, and with a cache a generated token costs nothing
more. Defaults are those of the commonsense runs (warm-up 0.1, no weight decay, for GLUE prefixes alone with r = 1).

R is the Gram-Schmidt form of a free (r, d) matrix, which is what is trained and stored. The authors' code has torch's
orthogonal parametrisation, with a (d, d) buffer a block: the same set of R, other steps through it. It also halves
prompts that are long enough, where one of the ends is longer than half of them, and by floor at both ends. AdapterHub
shortens neither end; the suffix has the tokens where they overlap. Images, which the paper leaves out, are prompts
whose tokens follow one another by rows, with the class token as the first.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, PositionMethod, places
from methods.base.factors import qr


class LoReFT(PositionMethod):
    name, family, paper = "loreft", "prompt", "2404.03592"
    title = "ReFT: Representation Finetuning for Language Models"
    recipe = {"lr": 9e-4, "warmup": 0.1}

    @dataclass(frozen=True)
    class Settings:
        rank: int = 8
        prefix: int = 7
        suffix: int = 7
        tied: bool = True
        dropout: float = 0.0
        layers: tuple[int, ...] | None = None

    class Edit(nn.Module):
        """What is added to h (..., d)."""

        def __init__(self, width, rank):
            super().__init__()
            self.R, self.W = nn.Parameter(empty(rank, width)), nn.Parameter(empty(rank, width))
            self.b = nn.Parameter(empty(rank))

        @torch.no_grad()
        def initialise(self, rng):
            bound = self.W.shape[1] ** -0.5
            self.R.copy_(nn.init.orthogonal_(empty(self.R.shape), generator=rng))
            for parameter in (self.W, self.b):
                parameter.copy_(empty(parameter.shape).uniform_(-bound, bound, generator=rng))

        def rows(self):
            """R, (r, d) with R R^T = I."""
            return qr(self.R.T)[0].T.to(self.R)

        def forward(self, h):
            R = self.rows()
            return F.linear(h, self.W - R, self.b) @ R

    class Edits(nn.ModuleList):
        def initialise(self, rng):
            for edit in self:
                edit.initialise(rng)

    def supports(self, shape, task):
        width = min(block.width for block in shape.blocks.values())
        too_high = f"rank {self.settings.rank} is more than the {width} entries of a hidden state"
        return super().supports(shape, task) or (too_high if self.settings.rank > width else None)

    @property
    def groups(self):
        """Sets of parameters a block: one, or one for each end of the prompt."""
        settings = self.settings
        return 1 if settings.tied else bool(settings.prefix) + bool(settings.suffix)

    def make(self, shape, width):
        return self.Edits(self.Edit(width, self.settings.rank) for _ in range(self.groups))

    def choose(self, state, hidden):
        """(B, L, 1), true at the tokens of each group."""
        prefix, suffix = self.settings.prefix, self.settings.suffix
        index, inside, n = places(state, hidden)
        short = n < prefix + suffix
        first = inside & (index < torch.where(short, (n // 2).clamp_max(prefix), prefix))
        last = inside & (index >= n - torch.where(short, ((n + 1) // 2).clamp_max(suffix), suffix))
        ends = [where for where, size in ((first, prefix), (last, suffix)) if size]
        return [where[..., None] for where in ((first | last,) if self.settings.tied else ends)]

    def edit(self, module, call, chosen):
        out = call.proceed()
        for edit, where in zip(module, chosen, strict=True):
            h = out.to(edit.b.dtype)
            edited = F.dropout(h + module.gate * edit(h), self.settings.dropout, module.training)
            out = torch.where(where, edited.to(out.dtype), out)
        return out

    def expected_parameters(self, shape):
        r, widths = self.settings.rank, [shape.block(site).width for site in self.plan(shape).sites]
        return Count(self.groups * sum(2 * r * d + r for d in widths))
