"""BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models
(Ben Zaken et al., 2022, arXiv:2106.10199).

    y = W x + b,  norm: w * x_hat + b        W and w stay frozen, every b is trained

All bias terms: linear maps, layer norms (embedding norm too), the pooler and the patch embedding. They start at
their pretrained values, so the output is unchanged; storing the new biases is the merge. A network without biases
(Llama, T5) has nothing to train. The key bias adds the same to every score of a query, so without a rotation its
gradient is zero up to rounding: it counts and never learns. Constant learning rate and no weight decay in the paper.
"""

from methods.base import Count, MergeReport, Method


class BitFit(Method):
    name, family, paper = "bitfit", "selective", "2106.10199"
    title = "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked Language-models"
    kinds = ("encoder", "decoder", "vision")
    mergeable = identity_at_init = True
    edits_base = "trained"
    vectors_only = True
    no_gradient = ("*attn.k.bias",)
    recipe = {"lr": 1e-3, "schedule": "constant", "warmup": 0.0}

    def supports(self, shape, task):
        reason = super().supports(shape, task)
        return reason or (None if shape.biases else f"{shape.architecture} has no bias terms")

    def attach(self, backbone, ctx):
        self.backbone = backbone
        self.train_base(backbone, backbone.biases())

    def merge(self):
        return MergeReport(tuple(self.backbone.shape.biases), 0.0)

    def unmerge(self):
        pass

    def expected_parameters(self, shape):
        return Count(sum(shape.biases.values()))
