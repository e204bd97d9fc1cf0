"""P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks
(Liu et al., 2022, arXiv:2110.07602).

    head h of each attention:   softmax(Q [P_k ; K]^T / sqrt(d_h)) [P_v ; V]     P_k, P_v: (KV heads, p, d_h), trained

Every attention of every block gets p keys and values of its own, past the projections and any rotation; only real
tokens ask. P starts from Normal(0, 0.02), the start that the authors' released class ends up with (peft: Normal(0, 1)),
so the output changes. Dropout acts on P, drawn for each example, at the authors' 0.1. The fused kernel stays.
2 p d numbers a block, with d = KV heads * d_h; trained, stored and kept at inference. Not mergeable.

Departures. The papers put P in front of the text through the key/value cache, which moves the text to positions p, p +
1, ...; here text stays where it is. With learned positions the text reads other rows of the table; with rotary ones the
two differ by a fixed rotation of P_k, which training may undo. Their optional reparametrisation by an MLP is the method
`prefix_tuning`. In encoder-decoders the cross-attention has a prefix too, as there. p and rate vary much by task: 8 to
128 and 5e-3 to 1e-2 on SuperGLUE. Their figures take the best epoch on the development set; here the protocol decides.
"""

from dataclasses import dataclass

from methods.base import Count, Plan
from methods.base.prefix import AttentionMethod, Prefix, attentions


class PTuningV2(AttentionMethod):
    name, family, paper = "p_tuning_v2", "prompt", "2110.07602"
    title = "P-Tuning v2: Prompt Tuning Can Be Comparable to Fine-tuning Universally Across Scales and Tasks"
    recipe = {"lr": 5e-3, "warmup": 0.0}
    tiny = {"std": 1.0}

    @dataclass(frozen=True)
    class Settings:
        tokens: int = 20
        dropout: float = 0.1
        std: float = 0.02

    def plan(self, shape):
        return Plan(tuple(attentions(shape, ("attn", "cross"))))

    def make(self, site, block):
        settings = self.settings
        return Prefix(block, settings.tokens, settings.std, settings.dropout)

    def expected_parameters(self, shape):
        blocks = map(shape.block, self.plan(shape).sites)
        return Count(sum(2 * self.settings.tokens * block.kv_heads * block.head_dim for block in blocks))
