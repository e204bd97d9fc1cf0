"""A method around another one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from methods.base.contract import Method
from methods.base.settings import WrapperSettings
from models.shape import SiteId


@cache
def _plugin(name: str) -> type[Method]:
    """The method of this name; looking for it reads every plugin file."""
    from workflow.registry import load_method, methods

    return load_method(methods()[name])


class Wrapper(Method):
    """Runs all steps of the method inside (`self.child`); a subclass adds its own before or after `super()`.

    The child's modules are reached through `attached`, each with a `gate` that multiplies its contribution.
    """

    Settings = WrapperSettings

    def __init__(self, settings: Any = None):
        super().__init__(settings)
        self.child = _plugin(self.settings.base).create(dict(self.settings.base_settings or {}))
        self.edits_base, self.trains = self.child.edits_base, self.child.trains
        self.mergeable, self.kinds = self.child.mergeable, self.child.kinds
        self.identity_at_init = self.child.identity_at_init
        self.no_gradient = (*type(self).no_gradient, *self.child.no_gradient)

    @property
    def attached(self) -> Mapping[SiteId, nn.Module]:
        """The child's modules by site."""
        return {site: self.child.parts[str(site).replace(".", "/")] for site in self.child.planned.sites}

    def supports(self, shape, task):
        return self.child.supports(shape, task)

    def plan(self, shape):
        return self.child.plan(shape)

    def training_data(self, data, ctx):
        return self.child.training_data(data, ctx)

    def calibrate(self, backbone, ctx):
        self.child.planned = self.planned
        self.child.calibrate(backbone, ctx)
        self.planned = self.child.planned

    def attach(self, backbone, ctx):
        self.backbone = backbone
        self.child.attach(backbone, ctx)
        self.parts, self.base_parameters = self.child.parts, self.child.base_parameters
        self.planned = self.child.planned

    def initialise(self, backbone, ctx):
        self.child.initialise(backbone, ctx)

    def parameter_groups(self, recipe):
        return self.child.parameter_groups(recipe)

    def optimizer(self, groups):
        return self.child.optimizer(groups)

    def phases(self, recipe):
        return self.child.phases(recipe)

    def between(self, done, ctx):
        self.child.between(done, ctx)

    def on_step_start(self, step, ctx):
        self.child.on_step_start(step, ctx)

    def on_gradients(self, step, ctx):
        self.child.on_gradients(step, ctx)

    def on_step(self, step, ctx):
        self.child.on_step(step, ctx)

    def forward(self, batch, call):
        return self.child.forward(batch, call)

    def loss(self, outputs, batch, task_loss):
        return self.child.loss(outputs, batch, task_loss)

    def training_step(self, batch, ctx):
        return self.child.training_step(batch, ctx)

    def logits(self, logits: Tensor, state) -> Tensor:
        return self.child.logits(logits, state)

    def training_state(self):
        return self.child.training_state()

    def load_training_state(self, state):
        self.child.load_training_state(state)

    def prepare_inference(self):
        self.child.prepare_inference()

    def kept(self):
        return self.child.kept()

    def merge(self):
        return self.child.merge()

    def unmerge(self):
        self.child.unmerge()

    def detach(self):
        self.child.detach()
        super().detach()

    def state_dict(self):
        return self.child.state_dict()

    def load_state_dict(self, state):
        self.child.load_state_dict(state)

    def expected_parameters(self, shape):
        return self.child.expected_parameters(shape)
