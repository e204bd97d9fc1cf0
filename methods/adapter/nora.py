"""NoRA: Don't Forget the Nonlinearity: Unlocking Activation Functions in Efficient Fine-Tuning
(Yin, Yang and Wang, 2025, arXiv:2509.13240).

    y = act(x) + phi(x; a, b) - phi(x; a_0, b_0)        phi(x; a, b) = sum_i a_i x^i / (1 + |sum_j b_j x^j|)
    a = a_0 + s B_a A_a,  b = b_0 + s B_b A_b           A_a: (r, 6)   A_b: (r, 4)   B_a, B_b: (G, r)   s = alpha / r

The activation of each feed-forward (in a gated one that of the gate) becomes a rational function of degrees 5 and 4.
Its channels are cut into G groups of neighbours. Each has coefficients a (i = 0..5) and b (j = 1..4) of its own, with
updates of low rank across the groups. a_0 and b_0 are one frozen rational function, close to act. A_a and A_b
start Kaiming-uniform, B_a and B_b at zero, so the output is unchanged. r (2 G + 10) parameters a block are trained and
stored. They are no weights, so nothing merges. Powers up to the fifth are taken in fp32.

The paper puts phi in the place of act. Such a fit holds on [-3, 3] and is far off beyond, where pretrained networks
have values too; so here the learned change of phi is added to act, which starts exactly. (a_0, b_0) is fitted to
the network's own act by weighted least squares on [-3, 3], where the authors read presets for that range. Only even
powers are in b_0: act(x) - x / 2 is even for GELU, SiLU and ReLU, and its denominator needs no absolute value there.
The formula is the paper's as a review of it gives it; the kernel in the part of the authors' code that is public has
1 + sum_j |b_j| |x|^j below instead. Initialisation, r = 3, alpha = 6, G = 8 and the rate are those of that code; it
adds 1e-6 to b besides, and its training also marks biases and norms, which its optimiser never gets. With these
settings ViT-Tiny has 936 parameters, and with the head of CIFAR-100 the 0.02M of the paper, which confirms neither.
NoRA++ is this beside LoRA. Two other methods share the name (arXiv:2408.10280, arXiv:2602.22911).
"""

import math
from dataclasses import dataclass

import torch
from torch import empty, nn

from methods.base import Count, Method, Plan
from methods.base.contract import key
from models.shape import SiteId

NUMERATOR, DENOMINATOR, EDGE = 6, 4, 3.0


def poly(x, c):
    """sum_i c_i x^i of x (..., G, n) with coefficients c (G or 1, degree + 1)."""
    value = torch.addcmul(c[:, -2:-1], c[:, -1:], x)
    for i in reversed(range(c.shape[1] - 2)):
        value = torch.addcmul(c[:, i : i + 1], value, x)
    return value


def rational(x, a, b):
    """x (..., G, c), a (G or 1, 6), b (G or 1, 4) -> (..., G, c)."""
    return poly(x, a) / (1 + (x * poly(x, b)).abs())


def slope(x, a, b):
    """d phi / dx; with S = sum_j b_j x^j also d phi / dP = 1 / (1 + |S|) and d phi / dS = -P sign(S) / (1 + |S|)^2."""
    powers, S = torch.arange(a.shape[1], device=a.device), x * poly(x, b)
    by_P = 1 / (1 + S.abs())
    by_S = -poly(x, a) * by_P.square() * S.sign()
    dP, dS = poly(x, (a * powers)[:, 1:]), poly(x, b * powers[1 : 1 + b.shape[1]])
    return dP * by_P + dS * by_S, by_P, by_S


class Change(torch.autograd.Function):
    """phi(x; a, b) - phi(x; a_0, b_0), of which autograd keeps x alone rather than every power."""

    @staticmethod
    def forward(ctx, x, a, b, a_0, b_0):
        ctx.save_for_backward(x, a, b, a_0, b_0)
        return rational(x, a, b) - rational(x, a_0, b_0)

    @staticmethod
    def backward(ctx, grad):
        x, a, b, a_0, b_0 = ctx.saved_tensors
        rise, by_P, by_S = slope(x, a, b)
        d_x = grad * (rise - slope(x, a_0, b_0)[0]) if ctx.needs_input_grad[0] else None
        summed = [d for d in range(x.dim()) if d != x.dim() - 2]
        power, d_a, d_b = grad * by_P, [], []
        for _ in range(a.shape[1]):
            d_a.append(power.sum(summed))
            power = power * x
        power = grad * by_S
        for _ in range(b.shape[1]):
            power = power * x
            d_b.append(power.sum(summed))
        return d_x, torch.stack(d_a, 1), torch.stack(d_b, 1), None, None


def fit(act):
    """a_0 (6,) and b_0 (4,) = (0, b_2, 0, b_4), fp64: P - act (b_2 x^2 + b_4 x^4) = act by least squares, weighted with
    the denominator of the round before."""
    x = torch.linspace(-EDGE, EDGE, 1201, dtype=torch.float64)
    y, below = act(x), torch.ones_like(x)
    columns = torch.stack([x**i for i in range(NUMERATOR)] + [-y * x**2, -y * x**4], 1)
    for _ in range(20):
        found = torch.linalg.lstsq(columns / below[:, None], (y / below)[:, None]).solution[:, 0]
        b2, b4 = found[NUMERATOR:]
        below = 1 + b2 * x**2 + b4 * x**4
    return found[:NUMERATOR], torch.stack([torch.zeros_like(b2), b2, torch.zeros_like(b2), b4])


class Activation(nn.Module):
    def __init__(self, settings):
        super().__init__()
        r, G = settings.rank, settings.groups
        self.A_a, self.B_a = nn.Parameter(empty(r, NUMERATOR)), nn.Parameter(empty(G, r))
        self.A_b, self.B_b = nn.Parameter(empty(r, DENOMINATOR)), nn.Parameter(empty(G, r))
        self.register_buffer("a_0", empty(NUMERATOR), persistent=False)
        self.register_buffer("b_0", empty(DENOMINATOR), persistent=False)
        self.scale = settings.alpha / r

    def forward(self, x, act):
        z = x.to(self.a_0.dtype).unflatten(-1, (len(self.B_a), -1))
        a = self.a_0 + self.scale * self.B_a @ self.A_a
        b = self.b_0 + self.scale * self.B_b @ self.A_b
        change = Change.apply(z, a, b, self.a_0[None], self.b_0[None])
        return act(x) + change.flatten(-2).to(x.dtype)


class NoRA(Method):
    name, family, paper = "nora", "adapter", "2509.13240"
    title = "Don't Forget the Nonlinearity: Unlocking Activation Functions in Efficient Fine-Tuning"
    identity_at_init = True
    recipe = {"lr": 5e-3}

    @dataclass(frozen=True)
    class Settings:
        rank: int = 3
        alpha: float = 6.0
        groups: int = 8
        layers: tuple[int, ...] | None = None

    def supports(self, shape, task):
        G = self.settings.groups
        for site in self.plan(shape).sites:
            if shape.units(site) % G:
                return f"the {shape.units(site)} feed-forward units of a block cannot be cut into {G} groups"
        return super().supports(shape, task)

    def plan(self, shape):
        layers = self.settings.layers
        blocks = [(part, layer) for part, layer in shape.blocks if layers is None or layer in layers]
        return Plan(tuple(SiteId(part, layer, "mlp.act") for part, layer in blocks))

    def attach(self, backbone, ctx):
        self.backbone, activations = backbone, backbone.modules("mlp.act")
        for site in self.planned.sites:
            with torch.device(backbone.device_of(site)):
                self.parts[key(site)] = module = Activation(self.settings)
            backbone.intercept(activations[site], lambda act, x, module=module: module(x, act))

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        with backbone.disabled():
            found = {site: fit(act) for site, act in backbone.modules("mlp.act").items()}
        for site in self.planned.sites:
            module, rng = self.parts[key(site)], ctx.rng(f"init/{site}")
            module.a_0.copy_(found[site][0])
            module.b_0.copy_(found[site][1])
            for A, B in ((module.A_a, module.B_a), (module.A_b, module.B_b)):
                bound = 1 / math.sqrt(A.shape[1])
                A.copy_(empty(A.shape).uniform_(-bound, bound, generator=rng))
                B.zero_()

    def expected_parameters(self, shape):
        r, G = self.settings.rank, self.settings.groups
        return Count(len(self.plan(shape).sites) * (r * (NUMERATOR + G) + r * (DENOMINATOR + G)))
