"""DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning (Shi and Lipani, 2023, arXiv:2309.05173).

    the network runs on [P ; X + c A B]     P: (m, d)    A: (s, r)    B: (r, d)    c = alpha / sqrt(r)

A long prompt (l, d) is replaced by a short one and by a low-rank offset of the frozen embeddings X (n, d) of the text:
row i of A B is added to token i of every text, whatever the token is. A starts Kaiming-uniform, within 1 / sqrt(r), B
at zero, so at first this is prompt tuning with P, not the bare network. P and the pair have learning rates of their
own, the recipe's and `low_rank_lr`. m d + r (s + d) parameters, trained and stored; settings are meant to hold this at
l d (T5-base, l = 100: m 60, s 256, r 30). A position decides what is added, so nothing merges.

P starts at the embeddings of `text`, repeated or cut to m tokens, or without one at those of sampled tokens, as in
prompt_tuning; the authors' code has one sentence for all tasks. The factor c is that of their code. i counts the real
tokens of a text from its start, [CLS] included and P left out; the code counts places of a text padded to s, the same
for padding on the right. Tokens from s on are not shifted, nor are those of a decoder's completion: the code shifts
what it is given before it generates, and here training does as generation. T5's encoder alone is changed.

On T5-base the authors' rates are 0.3 or 0.4 for P and 1e-4 to 5e-3 for the pair, AdamW without weight decay; smaller
embeddings (BERT, Llama) want less for P.

The encoder of a random T5 steers its decoder only little: the toy task takes it more than fifteen steps.
"""

from dataclasses import dataclass

import torch
from torch import nn

from methods.base import Count, PromptMethod
from methods.base.prompts import embedded, sampled


class Offset(nn.Module):
    """c A B by row: (..., d) for indices (...) of tokens."""

    def __init__(self, length, rank, width, alpha):
        super().__init__()
        self.A = nn.Parameter(torch.empty(length, rank))
        self.B = nn.Parameter(torch.empty(rank, width))
        self.scale = alpha / rank**0.5

    def forward(self, index):
        return self.scale * self.A[index] @ self.B


class DePT(PromptMethod):
    name, family, paper = "dept", "prompt", "2309.05173"
    title = "DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning"
    kinds = ("encoder", "decoder", "encoder_decoder")
    recipe = {"lr": 5e-3}
    tiny = {"tokens": 40}
    patience = 100

    @dataclass(frozen=True)
    class Settings:
        tokens: int = 60
        length: int = 256
        rank: int = 30
        alpha: float = 8.0
        low_rank_lr: float = 5e-4
        text: str = ""
        vocabulary: int = 5000

    def attach(self, backbone, ctx):
        super().attach(backbone, ctx)
        settings = self.settings
        with torch.device(backbone.device):
            width = backbone.shape.embedding_width
            self.parts["offset"] = Offset(settings.length, settings.rank, width, settings.alpha)
        part = "encoder" if backbone.kind == "encoder_decoder" else ""
        for table in backbone.modules("embed.token", part).values():
            backbone.intercept(table, self.shifted)

    def shifted(self, proceed, ids):
        """Embeddings (B, L, d), those of the text shifted by token."""
        embeddings, state = proceed(ids), self.backbone.state
        if state.slots is None:  # a token that was generated
            return embeddings
        text = state.mask & ~state.slots
        index = text.cumsum(1) - 1
        last = self.settings.length
        if state.prompt_length is not None:
            last = (state.prompt_length - self.backbone.slot_count).clamp_max(last)[:, None].to(ids.device)
        offset = self.parts["offset"](index.clamp(0, self.settings.length - 1)).to(embeddings.dtype)
        return embeddings + torch.where((text & (index < last))[..., None], offset, 0)

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        settings, offset, rng = self.settings, self.parts["offset"], ctx.rng("init/prompt")
        rows = sampled(backbone, settings.tokens, settings.vocabulary, rng)
        if settings.text:
            (ids,) = backbone.tokenizer([settings.text])["input_ids"]
            rows = embedded(backbone, torch.tensor(ids))[torch.arange(settings.tokens) % len(ids)]
        self.parts["prompt"].rows.copy_(rows)
        bound = settings.rank**-0.5
        offset.A.copy_(torch.empty(offset.A.shape).uniform_(-bound, bound, generator=ctx.rng("init/offset")))
        offset.B.zero_()

    def parameter_groups(self, recipe):
        pair = {"params": list(self.parts["offset"].parameters()), "lr": self.settings.low_rank_lr}
        return [{"params": [self.parts["prompt"].rows]}, pair]

    def expected_parameters(self, shape):
        settings, d = self.settings, shape.embedding_width
        return Count(settings.tokens * d + settings.rank * (settings.length + d))
