"""LayerNorm tuning: Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning
(Zhao et al., 2023, arXiv:2312.11420).

    y = w * (x - mean) / sqrt(var + eps) + b      RMS norms: y = w * x / rms(x)      w, b: (d,), trained

Nothing is added: the norms' own w, and b where there is one, start at their pretrained values and are trained in fp32.
Keeping them is the merge. 2 d parameters a layer norm, d an RMS norm. This is the paper's "LayerNorm-simple"; its main
setting also trains the connector of images and text, the word embeddings and the output layer.

The norms are all that act on the residual stream: at the input of attention and feed-forward (and at their output in
Gemma 3), the final one, and those of embeddings and of Swin's merging of patches. Norms of queries and keys are left
out. The paper speaks of the norms of the blocks; that the final one counts is peft's reading, and its count for
LLaMA-7B agrees with the paper's 0.004 %. The paper's learning rate was not found: the recipe's is a value for small
tasks. Vectors are never decayed. peft keeps the norms in the type of the network, where small steps are lost in bf16.
"""

from dataclasses import dataclass

from methods.base import Count, MergeReport, Method


class LNTuning(Method):
    name, family, paper = "ln_tuning", "selective", "2312.11420"
    title = "Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning"
    mergeable = identity_at_init = True
    edits_base = "trained"
    vectors_only = True
    recipe = {"lr": 1e-3}

    @dataclass(frozen=True)
    class Settings:
        sites: tuple[str, ...] = (
            "norm.attn",
            "norm.attn.out",
            "norm.cross",
            "norm.mlp",
            "norm.mlp.out",
            "norm.final",
            "norm.downsample",
            "norm.conv",
            "embed.norm",
        )

    def supports(self, shape, task):
        none = f"{shape.architecture} has none of the norms {', '.join(self.settings.sites)}"
        return super().supports(shape, task) or (None if self.norms(shape) else none)

    def norms(self, shape):
        """(size, has a bias) of the chosen norms by site."""
        return {site: norm for site, norm in shape.norms.items() if site.name in self.settings.sites}

    def attach(self, backbone, ctx):
        self.backbone = backbone
        modules = backbone.norms()
        chosen = ((site, modules[site].named_parameters()) for site in self.norms(backbone.shape))
        self.train_base(backbone, {f"{site}.{name}": p for site, named in chosen for name, p in named})

    def merge(self):
        return MergeReport(tuple(self.norms(self.backbone.shape)), 0.0)

    def unmerge(self):
        pass

    def expected_parameters(self, shape):
        return Count(sum(size * (1 + bias) for size, bias in self.norms(shape).values()))
