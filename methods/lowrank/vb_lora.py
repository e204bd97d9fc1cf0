"""VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks (Li, Han and Ji, 2024, arXiv:2405.15179).

    h = W x + bias + B A dropout(x)      A: (r, in)    B: (out, r), both cut into sub-vectors of length b
    each sub-vector = the softmax over the k largest of its logits (h,), times those rows of the bank V (h, b)

Trained: V, one bank for the whole network, and all logits, (r, in / b, h) and (out / b, r, h) a site; a sub-vector
passes gradients to its k logits and rows only. V starts in U(-0.02, 0.02), logits from Normal(0, 0.01), 0.01 being
the standard deviation of the authors' code (the paper writes N(0, 0.01); peft takes 0.1). There is no alpha / r and
no zero factor: the output changes slightly, by about sqrt(r) * 7e-5 in each entry of B A. b must divide in and out.

The paper adapts query and value, or all linear maps of a block; V has a tenth of the logits' learning rate, and
neither is decayed. h b + r h (in + out) / b parameters are trained. Stored are V and, for each of the r (in + out) / b
sub-vectors, k indices (in one byte where h <= 256) and k - 1 weights: `state_dict` is that form, and what is loaded
from it computes the same but cannot be trained further, since the other logits are gone. Merges exactly up to rounding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import empty, nn

from methods.base import Count, LinearMap, LinearSettings, SharedMethod
from methods.base.contract import key


class VBLoRA(SharedMethod):
    name, family, paper = "vb_lora", "lowrank", "2405.15179"
    title = "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks"
    mergeable = True
    recipe = {"lr": 1e-2, "head_lr": 4e-3}
    tiny = {"vector_length": 8, "num_vectors": 16, "bank_lr_ratio": 1.0}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        rank: int = 4
        num_vectors: int = 90
        vector_length: int = 256
        topk: int = 2
        dropout: float = 0.0
        bank_bound: float = 0.02
        logits_std: float = 0.01
        bank_lr_ratio: float = 0.1

    class Map(LinearMap):
        def __init__(self, shape, settings, bank):
            super().__init__(shape, settings, bank)
            h, b = settings.num_vectors, settings.vector_length
            self.bank, self.topk, self.dropout, self.std = bank, settings.topk, settings.dropout, settings.logits_std
            self.logits_A = nn.Parameter(empty(settings.rank, shape.inp // b, h))
            self.logits_B = nn.Parameter(empty(shape.out // b, settings.rank, h))

        def initialise(self, W, b, rng, found):
            for logits in (self.logits_A, self.logits_B):
                logits.copy_(empty(logits.shape).normal_(0, self.std, generator=rng))

        def mixed(self, logits):
            """(..., h) -> (..., b)."""
            weights, indices = select(logits, self.topk)
            return (weights[..., None] * self.bank.V.to(logits)[indices]).sum(-2)

        def compose(self):
            """A (r, in) and B (out, r)."""
            return self.mixed(self.logits_A).flatten(1), self.mixed(self.logits_B).transpose(1, 2).flatten(0, 1)

        def delta(self):
            A, B = self.compose()
            return B @ A

        def forward(self, x, base):
            A, B = (factor.to(x.dtype) for factor in self.compose())
            return base(x) + F.linear(F.linear(F.dropout(x, self.dropout, self.training), A), B)

    def supports(self, shape, task):
        b = self.settings.vector_length
        sizes = shape.at(self.settings.sites, self.settings.layers)
        odd = [size for out, inp, _ in sizes for size in (inp, out) if size % b]
        return f"vector_length {b} does not divide a width of {odd[0]}" if odd else super().supports(shape, task)

    def make_map(self, site, shape):
        settings, bound = self.settings, self.settings.bank_bound
        bank = self.factors(
            site,
            "bank",
            lambda shape, rng: empty(shape).uniform_(-bound, bound, generator=rng),
            V=(settings.num_vectors, settings.vector_length),
        )
        return self.Map(shape, settings, bank)

    def parameter_groups(self, recipe):
        bank = self.parts["shared/bank"].V
        logits = [p for p in self.trained() if p is not bank]
        lr = recipe["lr"] * self.settings.bank_lr_ratio
        return [{"params": [bank], "lr": lr, "weight_decay": 0.0}, {"params": logits, "weight_decay": 0.0}]

    def logits_by_name(self):
        maps = self.maps().items()
        return {f"{key(site)}.{side}": getattr(m, f"logits_{side}") for site, m in maps for side in "AB"}

    def state_dict(self):
        h, state = self.settings.num_vectors, {"bank": self.parts["shared/bank"].V.detach().clone()}
        kind = torch.uint8 if h <= 2**8 else torch.int16 if h <= 2**15 else torch.int32
        for name, logits in self.logits_by_name().items():
            weights, indices = select(logits.detach(), self.settings.topk)
            state |= {f"{name}.weights": weights[..., :-1].contiguous(), f"{name}.indices": indices.to(kind)}
        return state

    @torch.no_grad()
    def load_state_dict(self, state):
        if wrong := self.state_dict().keys() ^ state.keys():
            raise KeyError(f"missing or unknown in the stored state: {', '.join(sorted(wrong))}")
        self.parts["shared/bank"].V.copy_(state["bank"])
        for name, logits in self.logits_by_name().items():
            weights, indices = (state[f"{name}.{what}"].to(logits.device) for what in ("weights", "indices"))
            last = (1 - weights.sum(-1, keepdim=True)).clamp_min(0)
            logits.fill_(-torch.inf).scatter_(-1, indices.long(), torch.cat([weights, last], -1).log())

    def expected_parameters(self, shape):
        r, h, b, k = (getattr(self.settings, n) for n in ("rank", "num_vectors", "vector_length", "topk"))
        pieces = sum(r * (out + inp) // b for out, inp, _ in shape.at(self.settings.sites, self.settings.layers))
        return Count(trained=h * b + h * pieces, stored=h * b + (2 * k - 1) * pieces)


def select(logits, k):
    """Weights and indices (..., k) of the k largest logits, the largest first."""
    largest, indices = logits.topk(k, dim=-1)
    return largest.softmax(-1), indices
