"""Compacter++, the smaller form of Compacter: Efficient Low-Rank Hypercomplex Adapter Layers
(Karimi Mahabadi, Henderson and Ruder, 2021, arXiv:2106.04647).

    y <- y + gelu(y H_down + b_down) H_up + b_up      on the output y of the feed-forward branch only

One adapter a block instead of two; projections, shared rule, start, trained norms and recipe are those of `compacter`.
Trained and stored: 2 rank (d + m) + d + m a block, n^3 once, and the layer norms. Not mergeable.
"""

from methods.adapter.compacter import Compacter


class CompacterPlusPlus(Compacter):
    name, family, paper = "compacter_pp", "adapter", "2106.04647"
    title = "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers: Compacter++"
    recipe = {"lr": 3e-3}
    tiny = {"reduction": 4}

    def branches(self):
        return ("mlp",)
