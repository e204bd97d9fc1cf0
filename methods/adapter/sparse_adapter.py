"""SparseAdapter: An Easy Approach for Improving the Parameter-Efficiency of Adapters
(He et al., 2022, Findings of EMNLP, arXiv:2210.04284).

    W' = M * W for each weight matrix of the adapters       M: 0 or 1, with ceil(q N) zeros among all N entries
    SNIP: the entries with the least |w * dL/dw| go, L the loss over some training examples

Adapters are pruned once, before training, all of their matrices in one ranking, to a share 1 - q; biases, norms and
scales stay. What is left keeps its start and is trained; the rest is zero. The method around which it goes is `base`
(Houlsby's adapters by default). Pruners: snip; mag, the least |w|; rand. Gradients are those without dropout, added up
over `examples` training examples. Large-Sparse is a setting: a bottleneck c times as large with q = 1 - 1 / c. Trained:
the kept entries and what is not pruned. Stored: the same and the masks, eight entries a byte. Merging, and whether the
output starts unchanged, are the base's.

Exactly ceil(q N) entries go; the authors' code also prunes all that tie with the last. A matrix that starts at zero
(LoRA's B, an up-projection) has no magnitude, and SNIP scores of zero on both sides; a ranking of zeros is refused
with its reason, where that code would prune everything. Kept entries are stored as such and not as a masked matrix,
which trains the same. Not here: GraSP and SynFlow, which the paper finds no better. q = 40 % with SNIP is the paper's
advice; the authors' scripts have a bottleneck of 64, weights from Normal(0, 0.02), ReLU, the rate below, a weight decay
of 0.1 and pruning off: their `sparsity` is the share that is kept. The base's settings stay its own here.
"""

import math
from dataclasses import dataclass

import torch

from methods.base import BottleneckMethod, LinearMethod, SharedMethod, Wrapper, WrapperSettings
from methods.base.calibration import looking
from methods.base.contract import Count
from methods.base.masked import entries, keep_entries, matrices, unpack
from models.backbone import Unsupported


class SparseAdapter(Wrapper):
    name, family, paper = "sparse_adapter", "adapter", "2210.04284"
    title = "SparseAdapter: An Easy Approach for Improving the Parameter-Efficiency of Adapters"
    recipe = {"lr": 1e-4}
    tiny = {"examples": 16}

    @dataclass(frozen=True)
    class Settings(WrapperSettings):
        base: str = "houlsby"
        q: float = 0.4
        pruner: str = "snip"
        examples: int = 320

    def supports(self, shape, task):
        if not isinstance(self.child, (BottleneckMethod, LinearMethod)) or isinstance(self.child, SharedMethod):
            return f"{self.child.name} has no matrices of its own at each site to prune"
        return super().supports(shape, task)

    def attach(self, backbone, ctx):
        super().attach(backbone, ctx)
        self.matrices = matrices(self.parts)
        if ctx is None:  # nothing is initialised then, and any mask of the right size will do
            left = self.left([getattr(*place).numel() for place in self.matrices.values()])
            for module, attribute in self.matrices.values():
                n = min(left, getattr(module, attribute).numel())
                keep_entries(module, attribute, torch.arange(n))
                left -= n

    def left(self, sizes):
        """How many entries of matrices of these sizes are kept."""
        return sum(sizes) - math.ceil(self.settings.q * sum(sizes))

    def initialise(self, backbone, ctx):
        super().initialise(backbone, ctx)
        weights = [getattr(*place) for place in self.matrices.values()]
        if self.settings.pruner == "rand":
            scores = [torch.empty(w.shape).normal_(generator=ctx.rng("prune")) for w in weights]
        elif self.settings.pruner == "mag":
            scores = [w.detach().abs() for w in weights]
        elif self.settings.pruner == "snip":
            gradients = self.gradients(weights, backbone, ctx)
            scores = [(g * w.detach()).abs() for g, w in zip(gradients, weights, strict=True)]
        else:
            raise ValueError(f"there is no pruner '{self.settings.pruner}'; choose snip, mag or rand")
        if not any(s.any() for s in scores):
            raise Unsupported(f"all {self.settings.pruner} scores of {self.child.name} are zero: choose pruner rand")
        self.prune(scores)

    def gradients(self, weights, backbone, ctx):
        """Sum over batches of the gradient of the mean loss, without dropout, by micro-batches as in training."""
        rows, total = ctx.recipe["batch_size"], [torch.zeros_like(w) for w in weights]
        micro = ctx.recipe["micro_batch_size"] or rows
        with looking(backbone, ctx, training=False):
            self.parts.train(False)
            for batch in ctx.batches(n=math.ceil(self.settings.examples / rows)):
                for first in range(0, len(batch), micro):
                    part = batch.rows_slice(slice(first, min(first + micro, len(batch))))
                    loss = ctx.loss(ctx.forward(part), part) * len(part) / len(batch)
                    for t, g in zip(total, torch.autograd.grad(loss, weights), strict=True):
                        t += g
            self.parts.train(True)
        return total

    def prune(self, scores):
        """Keep the entries with the largest scores, over all matrices; among equal ones the first."""
        order = torch.cat([s.flatten().cpu() for s in scores]).argsort(descending=True, stable=True)
        kept = torch.zeros(len(order), dtype=torch.bool)
        kept[order[: self.left([len(order)])]] = True
        masks = kept.split([s.numel() for s in scores])
        for place, mask in zip(self.matrices.values(), masks, strict=True):
            keep_entries(*place, mask.nonzero()[:, 0])

    def masks(self):
        return {f"{name}.mask": entries(*place).packed() for name, place in self.matrices.items()}

    def set_masks(self, state):
        for name, place in self.matrices.items():
            unpack(*place, state[f"{name}.mask"])

    def state_dict(self):
        return super().state_dict() | self.masks()

    def load_state_dict(self, state):
        self.set_masks(state)
        super().load_state_dict({name: value for name, value in state.items() if not name.endswith(".mask")})

    def training_state(self):
        return super().training_state() | self.masks()

    def load_training_state(self, state):
        self.set_masks(state)
        super().load_training_state({name: value for name, value in state.items() if not name.endswith(".mask")})

    def expected_parameters(self, shape):
        child = self.child.expected_parameters(shape).resolved(self.child.mergeable)
        sizes = self.sizes(shape)
        pruned, masks = sum(sizes) - self.left(sizes), sum(-(-n // 8) for n in sizes)
        return Count(child.trained - pruned, child.stored - pruned + masks, max(0, child.added - pruned))

    def sizes(self, shape):
        """Entries of each matrix of the base, from a module of each site without values."""
        found = []
        with torch.device("meta"):
            for site in self.child.plan(shape).sites:
                if isinstance(self.child, LinearMethod):
                    module = self.child.make_map(site, shape.linears[site])
                else:
                    module = self.child.make(shape.block(site).width)
                found += [p.numel() for p in module.parameters() if p.dim() == 2 and p.requires_grad]
        return found
