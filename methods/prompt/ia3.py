"""(IA)^3: Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning
(Liu et al., 2022, arXiv:2205.05638).

    keys and values:   k' = l_k * (W_k x + b_k)     v' = l_v * (W_v x + b_v)     l_k, l_v: (out,)
    feed-forward:      y = W_down (l_ff * u) + b    u: (d_ff,) activated units   l_ff: (d_ff,)

Every l starts at one, so the output is unchanged; keys are scaled before any rotation. In a gated feed-forward
l_ff on the input of W_down equals the paper's scaling of the linear branch. Self- and cross-attention both get
vectors. Merges exactly: rows of W_k, W_v and their biases times l, columns of W_down times l_ff. Weight decay must
not pull l towards zero; vectors are never decayed here. The optimiser is the recipe's; the paper used Adafactor.
AdapterHub scales the output of the first map, before the activation: the same under ReLU with l > 0, not under GELU.
"""

from dataclasses import dataclass

from torch import empty, nn

from methods.base import Count, LinearMap, LinearMethod, LinearSettings


class IA3(LinearMethod):
    name, family, paper = "ia3", "prompt", "2205.05638"
    title = "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning"
    mergeable = identity_at_init = True
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.k", "attn.v", "cross.k", "cross.v", "mlp.down")

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.l = nn.Parameter(empty(shape.out))

        def initialise(self, W, b, rng, found):
            self.l.fill_(1.0)

        def forward(self, x, base):
            return base(x) * self.l.to(x.dtype)

        def weight(self, W, b):
            return self.l[:, None] * W, None if b is None else self.l * b

    class InputMap(Map):
        """Scales the input of a site instead of its output."""

        def __init__(self, shape, settings, shared):
            super().__init__(shape._replace(out=shape.inp), settings, shared)

        def forward(self, x, base):
            return base(x * self.l.to(x.dtype))

        def weight(self, W, b):
            return W * self.l, b

    def make_map(self, site, shape):
        kind = self.InputMap if site.name == "mlp.down" else self.Map
        return kind(shape, self.settings, self.shared)

    def expected_parameters(self, shape):
        sites = shape.find(self.settings.sites, self.settings.layers)
        sizes = (shape.linears[s].inp if s.name == "mlp.down" else shape.linears[s].out for s in sites)
        return Count(sum(sizes))
