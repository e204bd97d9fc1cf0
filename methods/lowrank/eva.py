"""EVA: One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation
(Paischer et al., 2024, arXiv:2410.07170).

    h = W x + b + (alpha / r) B A dropout(x)      A: (r, in)    B: (out, r), zeros    r: the site's own rank

A starts with the first r principal components of the site's inputs x over the training data, so that it keeps most of
their variance. Each site may have up to rho * rank of them; all components of all sites compete by the share of the
variance that they explain, and the rank * (number of sites) best are kept. A site that wins none is left alone. Then
plain LoRA training. B is zero, so the output is unchanged. Merges exactly up to rounding.

Components are those of the centred inputs at real tokens (network in evaluation mode), updated with each batch of
training data until the ones in use turn by less than arccos(tau) or `max_batches` have passed (the authors go on for
ever; a batch of fewer tokens than components is kept for the next, where they skip it). Sites that read the same
tensor share their components, and the first of them gets the most.

alpha / r follows the site's rank as in the authors' code; huggingface/peft multiplies alpha by r / rank unless
`adjust_scaling_factors` is off. alpha is 1, since inputs lie along the components: 16 would diverge. `whiten` divides
each row by the root of its singular value, as in their language code and in peft; their vision code takes the root of
the explained share. Output layers are not adapted (they adapt lm_head), and answers are not told from prompts.

Parameters: the sum of r (in + out), known only from data unless rho = 1, where it is LoRA's.
"""

from collections import Counter
from dataclasses import dataclass, replace

import torch

from methods.base import Count, LinearSettings, Plan
from methods.base.calibration import PrincipalComponents, first_with_input, looking
from methods.lowrank.lora import LoRA


class EVA(LoRA):
    name, family, paper = "eva", "lowrank", "2410.07170"
    title = "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation"
    recipe = {"lr": 5e-4, "schedule": "cosine", "warmup": 0.03}
    tiny = {"rank": 3, "alpha": 3.0, "max_batches": 6}

    @dataclass(frozen=True)
    class Settings(LinearSettings):
        sites: tuple[str, ...] = ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down")
        rank: int = 16
        alpha: float = 1.0
        rho: float = 2.0
        tau: float = 0.99
        max_batches: int = 200
        whiten: bool = False
        dropout: float = 0.0

    class Map(LoRA.Map):
        def initialise(self, W, b, rng, found):
            self.A.copy_(found)
            self.B.zero_()

    @property
    def most(self):
        """The largest rank of a site."""
        return round(self.settings.rank * self.settings.rho)

    def supports(self, shape, task):
        reason = super().supports(shape, task)
        for site in self.plan(shape).sites if reason is None else ():
            if self.most > shape.linears[site].inp:
                return f"rank {self.most} is more than the {shape.linears[site].inp} inputs of {site}"
        return reason

    def plan(self, shape):
        sites = super().plan(shape).sites
        return Plan(sites, dict.fromkeys(sites, self.settings.rank))

    @torch.no_grad()
    def calibrate(self, backbone, ctx):
        first = first_with_input(self.planned.sites)
        pca = {site: PrincipalComponents(self.most, ctx.rng(f"calibrate/{site}")) for site in first.values()}
        ranks = dict.fromkeys(first, self.most)
        with looking(backbone, ctx, training=False):
            for batch in ctx.batches("train", self.settings.max_batches):
                turning = [s for s in pca if (pca[s].change[: ranks[s]] < self.settings.tau).any()]
                if not turning:
                    break
                with backbone.inputs(map(backbone.site, turning), lambda site, rows: pca[site].add(rows)):
                    backbone.forward(batch)
                if all(p.components is not None for p in pca.values()):
                    ranks = self.share_out(pca, first)
        if short := [str(site) for site, p in pca.items() if p.components is None]:
            raise ValueError(f"fewer than {self.most} tokens in {self.settings.max_batches} batches at {short[0]}")
        for site, r in ranks.items():
            found = pca[first[site]]
            rows = found.components[:r]
            self.found[site] = rows / found.singular[:r, None].sqrt() if self.settings.whiten else rows
        self.planned = Plan(tuple(site for site in ranks if ranks[site]), ranks)

    def share_out(self, pca, first):
        """Ranks by site: the budget goes to the largest shares of variance."""
        shares = [(share, site) for site in first for share in pca[first[site]].ratio.tolist()]
        best = sorted(shares, key=lambda pair: -pair[0])[: self.settings.rank * len(first)]
        wins = Counter(site for _, site in best)
        ranks = {site: wins[site] for site in first}
        for site, owner in first.items():
            if ranks[site] > ranks[owner]:
                ranks[site], ranks[owner] = ranks[owner], ranks[site]
        return ranks

    def make_map(self, site, shape):
        return self.Map(shape, replace(self.settings, rank=self.planned.ranks[site]), self.shared)

    def expected_parameters(self, shape):
        costs = sorted(i + o for o, i, _ in shape.at(self.settings.sites, self.settings.layers))
        ranks, budget = [cost for cost in costs for _ in range(self.most)], self.settings.rank * len(costs)
        return Count((sum(ranks[:budget]), sum(ranks[-budget:])))
