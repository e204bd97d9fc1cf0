"""PASTA: Parameter-Efficient Tuning with Special Token Adaptation (Yang et al., 2023, arXiv:2210.04382).

    h_k <- h_k + dropout(v_k)      v_k: (d,), one for each block and special token

on the input of a block, so that attention and residual both see it; h_k is the state of the k-th special token of the
text, in order of occurrence, and all other states stay. A single text of BERT has two of them ([CLS], [SEP]), a pair
three; RoBERTa's pairs have four. `specials` is how many have a vector, later ones have none. Vectors start from
Normal(0, 0.02^2), as transformers starts what a checkpoint lacks in the authors' code, so the output changes slightly.
L * specials * d parameters and the head; nothing merges. Dropout acts on single entries, anew at each place.

Special tokens are found by their ids, and the first and last token of the prompt always count: in BERT they are [CLS]
and [SEP]. The code takes ids 101 and 102, and their number from the first text of a batch; here each row has its own.
Elsewhere, which the paper leaves out: a decoder's last prompt token counts although it may be an ordinary word, and
generated tokens have no vector. Images have the class token alone (and DeiT's distillation token); Swin has neither and
is refused, like T5, whose one special token ends what the encoder reads. Learning rates in the code are 2.5e-4 for GLUE
(up to 150 epochs) and 3e-3 for CoNLL; the second is the recipe's. No weight decay and no warm-up.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, PositionMethod, places


class PASTA(PositionMethod):
    name, family, paper = "pasta", "prompt", "2210.04382"
    title = "Parameter-Efficient Tuning with Special Token Adaptation"
    kinds = ("encoder", "decoder", "vision")
    recipe = {"lr": 3e-3, "warmup": 0.0}

    @dataclass(frozen=True)
    class Settings:
        specials: int = 3
        dropout: float = 0.1
        std: float = 0.02
        layers: tuple[int, ...] | None = None

    class Vectors(nn.Module):
        def __init__(self, count, width, std):
            super().__init__()
            self.v, self.std = nn.Parameter(empty(count, width)), std

        @torch.no_grad()
        def initialise(self, rng):
            self.v.copy_(empty(self.v.shape).normal_(0, self.std, generator=rng))

    def supports(self, shape, task):
        none = f"{shape.architecture} has no class token"
        return super().supports(shape, task) or (none if shape.kind == "vision" and not shape.first_slot else None)

    def count(self, shape):
        """Special tokens that have a vector."""
        return min(self.settings.specials, shape.first_slot) if shape.kind == "vision" else self.settings.specials

    def make(self, shape, width):
        return self.Vectors(self.count(shape), width, self.settings.std)

    def choose(self, state, hidden):
        """k (B, L), the number of a token's vector, and (B, L, 1), true where there is one."""
        index, inside, n = places(state, hidden)
        shape = self.backbone.shape
        if state.mask is None:
            special = index < shape.first_slot
        else:
            special = (index == 0) | (index == n - 1)
            for token in self.backbone.special_ids():
                special |= state.batch.inputs["input_ids"].to(index.device) == token
            special &= inside
        k = special.cumsum(1) - 1
        return k.clamp(0, self.count(shape) - 1), (special & (k < self.count(shape)))[..., None]

    def edit(self, module, call, chosen):
        k, there = chosen
        v = F.dropout(F.embedding(k, module.v), self.settings.dropout, module.training)
        return call.proceed(call.hidden + module.gate * (there * v).to(call.hidden.dtype))

    def expected_parameters(self, shape):
        return Count(self.count(shape) * sum(shape.block(site).width for site in self.plan(shape).sites))
