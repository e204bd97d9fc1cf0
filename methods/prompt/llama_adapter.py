"""LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention
(Zhang et al., 2024, arXiv:2303.16199).

    head h:   softmax(Q_h K_h^T / sqrt(d_h)) V_h + tanh(g_h) softmax(Q_h K_a^T / sqrt(d_h)) V_a
              K_a = A W_k    V_a = A W_v    A: (K, d) a block, trained    g: (H,) a block, trained

The prompt A passes the block's own frozen projections (with their biases, where there are any) but neither its norm nor
a rotation; every query sees all of it, and text keeps its own softmax and positions. Only the top `layers` blocks have
one. A starts from Normal(0, 1), g at zero, so the output is unchanged and A learns from the second step on.
layers * (K d + H) numbers: trained, stored and kept. The second attention is another call of the fused kernel. Not
mergeable.

tanh, one gate a head and d_h are those of the authors' code (the paper has neither the tanh nor d_h). peft has one
gate a block and no tanh: the same where all tanh(g_h) of a block are its gate. Where queries and keys are normed, so
are K_a. Self-attention only; encoders, grouped heads and images are as the formula says (the authors' image prompt
belongs to another method). The authors decay the gates too; here vectors are not decayed. Their rate is 9e-3 for a
batch of 256, in proportion: 1.1e-3 at the recipe's 32. A and g stay in fp32.
"""

from dataclasses import dataclass

from torch import empty, nn

from methods.base import Count, Plan
from methods.base.prefix import AttentionMethod, attentions, prompt_attention


class ZeroInitAttention(nn.Module):
    def __init__(self, block, length):
        super().__init__()
        self.A, self.g = nn.Parameter(empty(length, block.width)), nn.Parameter(empty(block.heads))

    def initialise(self, rng):
        self.A.copy_(empty(self.A.shape).normal_(generator=rng))
        self.g.zero_()

    def forward(self, call, proceed):
        return proceed() + prompt_attention(call, self.A, self.g.tanh())


class LLaMAAdapter(AttentionMethod):
    name, family, paper = "llama_adapter", "prompt", "2303.16199"
    title = "LLaMA-Adapter: Efficient Fine-tuning of Language Models with Zero-init Attention"
    identity_at_init = True
    recipe = {"lr": 1.125e-3, "schedule": "cosine", "warmup": 0.4, "weight_decay": 0.02}

    @dataclass(frozen=True)
    class Settings:
        tokens: int = 10
        layers: int = 30

    def plan(self, shape):
        low = {part: count - self.settings.layers for part, count in shape.layers.items()}
        return Plan(tuple(site for site in attentions(shape) if site.layer >= low[site.part]))

    def make(self, site, block):
        return ZeroInitAttention(block, self.settings.tokens)

    def expected_parameters(self, shape):
        blocks = map(shape.block, self.plan(shape).sites)
        return Count(sum(self.settings.tokens * block.width + block.heads for block in blocks))
