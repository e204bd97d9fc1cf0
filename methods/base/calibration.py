"""What a method may look at before it is attached: gradients of W, inputs of sites, principal components of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, empty, nn

from methods.base.contract import Context, Method, keep_stored
from methods.base.factors import OffsetMethod, SplitMap, fast_svd
from models.backbone import Backbone
from models.batch import Batch
from models.shape import SiteId

SAME_INPUT = {"attn.q": "attn", "attn.k": "attn", "attn.v": "attn", "cross.k": "cross", "cross.v": "cross"} | {
    "mlp.up": "mlp",
    "mlp.gate": "mlp",
}


def first_learning_rate(ctx: Context) -> float:
    """The learning rate of the recipe's first step, warm-up included."""
    from workflow.train import learning_rate_factor

    recipe = ctx.recipe
    return recipe["lr"] * learning_rate_factor(recipe["schedule"], 0, ctx.total_steps, recipe["warmup"])


def examples(ctx: Context, count: int) -> Iterator[Batch]:
    """The first `count` training examples in the order of training, one at a time (all of them if there are fewer)."""
    for batch in ctx.batches():
        for row in range(min(count, len(batch))):
            yield batch.rows_slice(slice(row, row + 1))
        count -= len(batch)
        if count <= 0:
            return


@contextmanager
def looking(backbone: Backbone, ctx: Context, training: bool) -> Iterator[None]:
    """The network in training or evaluation mode. Its dropout is drawn from a named generator, and neither the mode
    nor the global random state is different afterwards."""
    before, devices = backbone.model.training, range(torch.cuda.device_count())
    seed = int(torch.randint(2**62, (), generator=ctx.rng("calibrate")))
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        backbone.train(training)
        try:
            yield
        finally:
            backbone.train(before)


def gradients(method: Method, backbone: Backbone, ctx: Context, count: int) -> dict[SiteId, Tensor]:
    """Mean over `count` training examples of the gradient of the loss with respect to W (out, in) at the planned
    sites, in training mode and in fp32."""
    method.backbone = backbone  # its loss reads the penalties of the forward state
    with looking(backbone, ctx, training=True):
        sites = [backbone.site(site) for site in method.planned.sites]
        return backbone.weight_gradients(sites, examples(ctx, count), ctx.loss)


def first_with_input(sites: Iterable[SiteId]) -> dict[SiteId, SiteId]:
    """For each site the first of those that read the same tensor: q, k and v of an attention, up and gate."""
    first: dict[tuple, SiteId] = {}
    return {s: first.setdefault((s.part, s.layer, SAME_INPUT.get(s.name, s.name)), s) for s in sites}


class PrincipalComponents:
    """Principal components of rows (N, in) that come in batches, with their mean taken off (Ross et al., 2008).

    components: (k, in), orthonormal rows, the largest entry of each positive, those of the largest variance first;
    singular: (k,), singular values of all centred rows so far; ratio: (k,), their share of the variance; change: (k,),
    cosine of the angle to the component of the batch before (-inf before there is one). Rows wait until there are k.
    """

    components: Tensor | None = None

    def __init__(self, k: int, rng: torch.Generator):
        self.k, self.rng = k, rng
        self.waiting: list[Tensor] = []
        self.count, self.variation = 0, 0.0
        self.change = torch.full((k,), -torch.inf)

    def add(self, rows: Tensor) -> None:
        self.waiting.append(rows.double())
        if sum(map(len, self.waiting)) < self.k:
            return
        rows, self.waiting = torch.cat(self.waiting), []
        mean = rows.mean(0)
        centred = rows - mean
        self.variation += centred.square().sum()
        if self.components is None:
            self.mean, known = mean, centred
        else:
            total = self.count + len(rows)
            shift = (self.count * len(rows) / total) ** 0.5 * (self.mean - mean)
            self.variation += shift.square().sum()
            self.mean = (self.count * self.mean + len(rows) * mean) / total
            known = torch.cat([self.singular[:, None] * self.components, centred, shift[None]])
        self.count += len(rows)
        self._decompose(known)

    def _decompose(self, known: Tensor) -> None:
        before = self.components
        _, S, V = fast_svd(known, min(2 * self.k, *known.shape), 4, self.rng)
        sign = V.gather(1, V.abs().argmax(1, keepdim=True)).sign()
        self.components, self.singular = (sign * V)[: self.k], S[: self.k]
        self.ratio = self.singular.square() / self.variation
        if before is not None:
            self.change = torch.cosine_similarity(before, self.components)


class CalibratedSplitMap(SplitMap):
    """A split whose start s B0 A0 comes from data. A0 and B0 are not trained, but stored beside A and B: what is
    learned is s (B A - B0 A0), and another machine may find factors of another sign or order."""

    def __init__(self, shape, settings, shared):
        super().__init__(shape, settings, shared)
        self.A0 = nn.Parameter(empty(self.A.shape), requires_grad=False)
        self.B0 = nn.Parameter(empty(self.B.shape), requires_grad=False)
        keep_stored([self.A0, self.B0])

    def start(self) -> Tensor:
        """What was taken out of W."""
        return self.scale * self.B0 @ self.A0


class CalibratedOffsetMethod(OffsetMethod):
    """W_res = W - s B0 A0 with factors from data. W_res follows where other factors are loaded."""

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        super().initialise(backbone, ctx)
        for module in self.maps().values():
            module.A0.copy_(module.A)
            module.B0.copy_(module.B)
        self.found.clear()

    @torch.no_grad()
    def load_state_dict(self, state):
        starts = {site: module.start() for site, module in self.maps().items()}
        super().load_state_dict(state)
        for site_id, module in self.maps().items():
            site, moved = self.backbone.site(site_id), starts[site_id] - module.start()
            if moved.any():
                self.backbone.write(site, site.weight().float() + moved, None)

    def training_state(self):
        return self.state_dict()

    def load_training_state(self, state):
        self.load_state_dict(state)
