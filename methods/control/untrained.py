"""Untrained: the pretrained backbone with a fresh head (classification) or as it is (generation). Where zero is."""

from methods.base import Method


class Untrained(Method):
    name, family = "untrained", "control"
    title = "No training"
    identity_at_init = True
    trains = learns = False

    def attach(self, backbone, ctx):
        self.backbone = backbone
