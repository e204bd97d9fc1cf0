"""DiReFT: ReFT: Representation Finetuning for Language Models (Wu et al., 2024, arXiv:2404.03592, equation 3).

    h <- h + W2^T (W1 h + b)      W1, W2: (r, d)    b: (r,)

LoReFT without orthogonal rows and without the term that is taken away: a low-rank residual on the hidden state itself.
Places, positions, truncation for short prompts, tying and dropout are those of LoReFT. All three start uniform in
[-1/sqrt(d), 1/sqrt(d)], so the output is changed from the start. 2 r d + r parameters a block and group; nothing
merges. In the authors' code this is NodireftIntervention; its DireftIntervention keeps orthogonal rows.

The paper searched a weight decay of up to 0.06 for it; 0.06, a dropout of 0.05 and no warm-up are in the README's
example for GSM8K. Which of them its final tables were made with could not be confirmed, so the defaults have none.
"""

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.prompt.loreft import LoReFT


class DiReFT(LoReFT):
    name, family, paper = "direft", "prompt", "2404.03592"
    title = "ReFT: Representation Finetuning for Language Models"
    recipe = {"lr": 9e-4}

    class Edit(nn.Module):
        """What is added to h (..., d)."""

        def __init__(self, width, rank):
            super().__init__()
            self.W1, self.W2 = nn.Parameter(empty(rank, width)), nn.Parameter(empty(rank, width))
            self.b = nn.Parameter(empty(rank))

        @torch.no_grad()
        def initialise(self, rng):
            bound = self.W1.shape[1] ** -0.5
            for parameter in self.parameters():
                parameter.copy_(empty(parameter.shape).uniform_(-bound, bound, generator=rng))

        def forward(self, h):
            return F.linear(h, self.W1, self.b) @ self.W2

    def supports(self, shape, task):
        return super(LoReFT, self).supports(shape, task)
