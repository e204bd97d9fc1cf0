"""Factors of a pretrained weight W (out, in), and methods that are made of them; k = min(out, in).

All are computed in float64 and made unique, with fixed signs and orders, so that factors which are not stored for a
task come back from W.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, empty, nn

from methods.base.contract import Context
from methods.base.maps import LinearMap, LinearMethod
from models.backbone import Backbone, Unsupported
from models.shape import BackboneShape

EPS = torch.finfo(torch.float64).eps
NOTHING = 1e-6  # singular values below this share of the largest one are zeros that were rounded to fp32


def svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, k), S (k,) from large to small, V (k, in): W = U diag(S) V. The largest entry of a column of U is > 0."""
    U, S, V = torch.linalg.svd(W.double(), full_matrices=False)
    sign = U.gather(0, U.abs().argmax(0, keepdim=True)).sign()
    return U * sign, S, V * sign.T


def fast_svd(W: Tensor, rank: int, niter: int, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The first `rank` of U, S and V, nearly: `niter` rounds of subspace iteration from a random start
    (Halko et al., 2011, arXiv:0909.4061)."""
    W = W.double()
    start = empty(W.shape[1], rank, dtype=W.dtype).normal_(generator=rng).to(W.device)
    Q = qr(W @ start)[0]
    for _ in range(niter):
        Q = qr(W @ qr(W.T @ Q)[0])[0]
    U, S, V = svd(Q.T @ W)
    return Q @ U, S, V


def minor(W: Tensor, rank: int, name: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The last `rank` of U, S and V. Warns where S ends in zeros: factors of size zero have no gradients."""
    U, S, V = svd(W)
    if S[-1] <= NOTHING * S[0]:
        warnings.warn(f"{name} has fewer than {len(S)} singular values: minor factors start at zero", stacklevel=2)
    return U[:, -rank:], S[-rank:], V[-rank:]


def qr(W: Tensor) -> tuple[Tensor, Tensor]:
    """Q (out, k) with orthonormal columns, R (k, in) upper trapezoidal with a diagonal >= 0: W = Q R."""
    Q, R = torch.linalg.qr(W.double())
    sign = torch.where(R.diagonal() < 0, -1.0, 1.0).to(R)
    return Q * sign, sign[:, None] * R


def pivoted_qr(W: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The first `count` steps of QR with column pivoting: Q (out, count), Q^T W (count, in) and the chosen columns.

    Q^T W is the factor R in the column order of W: in the order of choice it is upper trapezoidal, and its diagonal
    falls. Of a W of lower rank there are fewer than `count`.
    """
    W = W.double()
    rest, Q, chosen, first = W.clone(), W.new_empty(len(W), count), [], None
    for i in range(count):
        j = int(rest.square().sum(0).argmax())
        q = rest[:, j] - Q[:, :i] @ (Q[:, :i].T @ rest[:, j])
        norm = q.norm()
        first = norm if first is None else first
        if norm <= EPS * max(W.shape) * first:
            break
        Q[:, i] = q / norm
        rest -= torch.outer(Q[:, i], Q[:, i] @ rest)
        chosen.append(j)
    Q = Q[:, : len(chosen)]
    return Q, Q.T @ W, torch.tensor(chosen, device=W.device)


def ldu(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P L (out, k), D (k,), U (k, in), on the CPU: W = P L diag(D) U by partial pivoting. P permutes the rows of L,
    which is unit lower triangular and has no entry above 1; U is unit upper triangular. Raises Unsupported where a
    pivot is zero, since U would be infinite."""
    P, L, U = torch.linalg.lu(W.double().cpu())
    D = U.diagonal()
    if D.abs().min() <= 1e-12 * D.abs().max():
        raise Unsupported("a weight matrix is singular: it has no factors L D U with unit diagonals")
    return L[P.argmax(1)], D, U / D[:, None]


def frozen(*size: int) -> nn.Parameter:
    """A factor that is never trained and not stored."""
    return nn.Parameter(empty(*size), requires_grad=False)


class FactorMethod(LinearMethod):
    """A method with at most k factors at a site: `settings.rank` of them."""

    def supports(self, shape: BackboneShape, task: Any) -> str | None:
        reason = super().supports(shape, task)
        for site in self.plan(shape).sites if reason is None else ():
            out, inp, _ = shape.linears[site]
            if self.settings.rank > min(out, inp):
                return f"rank {self.settings.rank} is more than {site} has: its weight is {out} x {inp}"
        return reason


class SplitMap(LinearMap):
    """y = W_res x + b + s B A x with s B A taken out of W at the start: A (r, in), B (out, r)."""

    scale: float = 1.0

    def __init__(self, shape, settings, shared):
        super().__init__(shape, settings, shared)
        self.A = nn.Parameter(empty(settings.rank, shape.inp))
        self.B = nn.Parameter(empty(shape.out, settings.rank))

    def split(self, U: Tensor, S: Tensor, V: Tensor) -> None:
        """s B A = U diag(S) V, with the singular values shared evenly: U (out, r), S (r,), V (r, in)."""
        root = (S / self.scale).sqrt()
        self.B.copy_(U * root)
        self.A.copy_(root[:, None] * V)

    def delta(self) -> Tensor:
        return self.scale * self.B @ self.A

    def forward(self, x, base):
        return base(x) + F.linear(F.linear(x, self.A.to(x.dtype)), self.B.to(x.dtype)) * self.scale


class OffsetMethod(FactorMethod):
    """A method that takes the start of ΔW out of W: W_res = W - ΔW, so that the function is unchanged but for rounding
    to the type of W. W_res is rebuilt from W and not stored; W itself comes back with `detach`."""

    edits_base = "offset"

    @torch.no_grad()
    def initialise(self, backbone: Backbone, ctx: Context) -> None:
        super().initialise(backbone, ctx)
        for site_id, module in self.maps().items():
            site = backbone.site(site_id)
            backbone.write(site, site.weight().float() - module.delta(), None)
