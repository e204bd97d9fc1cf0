"""Linear probe: the backbone is frozen and only the task head is trained. The lower control of a table."""

from methods.base import Method


class Head(Method):
    name, family = "head", "control"
    title = "Task head only (linear probe)"
    kinds = ("encoder", "decoder", "vision")
    identity_at_init = True
    recipe = {"lr": 1e-2}

    def supports(self, shape, task):
        if getattr(task, "kind", None) == "generation":
            return "a generation task has no head of its own to train"
        return super().supports(shape, task)

    def attach(self, backbone, ctx):
        self.backbone = backbone
