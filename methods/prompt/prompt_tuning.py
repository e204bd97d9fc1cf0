"""Prompt tuning: The Power of Scale for Parameter-Efficient Prompt Tuning (Lester, Al-Rfou and Constant, 2021,
arXiv:2104.08691).

    the network runs on [P ; X]     P: (p, d), trained     X: (n, d), the frozen embeddings of the text

Row i of P starts at the mean embedding of the sub-tokens of the i-th of `words` (the paper: the class labels, its
default), and the rows that are left at the embeddings of different tokens among the first 5,000 ids, which in T5 are
the most frequent ones. No words are given by default, so all rows are sampled. Embeddings are those that the network
reads: Gemma's are scaled. The output is changed from the start and nothing merges. p d parameters, trained and stored.

The paper has T5, whose encoder alone gets P (T-Few trains a second P in the decoder), and no scaling, network or
dropout of P; the dropout of the network acts on it. Where the input begins with a special token ([CLS]), P follows it
and the class is read from [CLS]; peft puts P first and reads the class of BERT from P's first row. In decoders P
precedes the whole text, which takes positions p, p + 1, ... Images have no vocabulary to start from: see vpt_shallow.
Left out: the uniform start, one of the three of the paper (its text has [-0.5, 0.5], its code [0, 0.5)).

AdapterHub puts P behind the whole embedding layer: in BERT without positions and norm, and text keeps its positions.

The paper trains with Adafactor at a constant 0.3 and weight decay 1e-5. T5's embeddings are large; with AdamW on BERT
and Llama, whose embeddings are a hundred times smaller, 1e-3 to 1e-2 work.

The encoder of a random T5 steers its decoder only little: the toy task takes it more than fifteen steps.
"""

from dataclasses import dataclass

import torch

from methods.base import PromptMethod
from methods.base.prompts import embedded, sampled


class PromptTuning(PromptMethod):
    name, family, paper = "prompt_tuning", "prompt", "2104.08691"
    title = "The Power of Scale for Parameter-Efficient Prompt Tuning"
    kinds = ("encoder", "decoder", "encoder_decoder")
    recipe = {"lr": 5e-3, "weight_decay": 1e-5}
    tiny = {"tokens": 40}
    patience = 100

    @dataclass(frozen=True)
    class Settings:
        tokens: int = 100
        words: tuple[str, ...] = ()
        vocabulary: int = 5000

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        settings, rows = self.settings, self.parts["prompt"].rows
        rows.copy_(sampled(backbone, settings.tokens, settings.vocabulary, ctx.rng("init/prompt")))
        for row, word in zip(rows, settings.words, strict=False):
            (ids,) = backbone.tokenizer([word], add_special_tokens=False)["input_ids"]
            row.copy_(embedded(backbone, torch.tensor(ids)).mean(0))
