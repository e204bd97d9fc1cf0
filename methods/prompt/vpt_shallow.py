"""VPT-shallow: Visual Prompt Tuning (Jia, Tang, Chen, Cardie, Belongie, Hariharan and Lim, 2022, arXiv:2203.12119).

    the first block reads [x_cls ; dropout(P) ; x_1 ... x_n]     P: (p, d), trained

P goes through all blocks as ordinary tokens do and is not read at the end. It is put in behind the class token after
positions were added to the image and has none of its own. P starts Uniform(-v, v), v = sqrt(6 / (3 P_h P_w + d)) with
patches of P_h x P_w pixels; dropout is drawn for each example. The output is changed from the start and nothing
merges. p d parameters, trained and stored.

On texts P stands as in prompt_tuning, behind [CLS] or in front, at the word embeddings, and does get positions there;
v is then that of patches of 16. Swin has windows into which no tokens fit (the paper's variant for it attends to P in
each window). Left out: the projection of P, off by default in the authors' code.

The paper searches p in 1 to 200 and trains with SGD at rates up to 50, a backbone without dropout and a head whose
bias starts at -4.6. The rate here is that of AdamW in comparisons on VTAB-1k. What one of these calls vpt_shallow drops
P after the first block: that is another method.

The encoder of a random T5 steers its decoder only little: the toy task takes it more than fifteen steps.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from methods.base import PromptMethod
from methods.base.prompts import token_bound


class VPTShallow(PromptMethod):
    name, family, paper = "vpt_shallow", "prompt", "2203.12119"
    title = "Visual Prompt Tuning"
    recipe = {"lr": 1e-2, "weight_decay": 1e-4}
    tiny = {"tokens": 40}
    patience = 100

    @dataclass(frozen=True)
    class Settings:
        tokens: int = 50
        dropout: float = 0.1

    def rows(self):
        prompt = self.parts["prompt"]
        rows = prompt().expand(len(self.backbone.state.batch), -1, -1)
        return F.dropout(rows, self.settings.dropout, prompt.training)

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        v, rows = token_bound(backbone), self.parts["prompt"].rows
        rows.copy_(torch.empty(rows.shape).uniform_(-v, v, generator=ctx.rng("init/prompt")))
