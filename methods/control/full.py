"""Full fine-tuning: every parameter of the backbone is trained. The upper control of a table.

Key biases never learn where keys are not rotated: they add the same to every score of a query.
"""

from methods.base import Count, MergeReport, Method


class Full(Method):
    name, family = "full", "control"
    title = "Full fine-tuning"
    mergeable = identity_at_init = True
    edits_base = "trained"
    no_gradient = ("*.key.bias", "*.k_proj.bias")
    recipe = {"lr": 5e-5, "weight_decay": 0.01}

    def attach(self, backbone, ctx):
        self.backbone = backbone
        self.train_base(backbone, dict(backbone.model.named_parameters()))

    def merge(self):
        return MergeReport((), 0.0)

    def unmerge(self):
        pass

    def expected_parameters(self, shape):
        return Count(shape.parameters)
