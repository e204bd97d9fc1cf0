"""P-tuning: GPT Understands, Too (Liu, Zheng, Du, Ding, Qian, Yang and Tang, 2021, arXiv:2103.10385).

    H = W2 relu(W1 BiLSTM(E) + b1) + b2     the network runs on [H ; X]
    E: (m, d)    BiLSTM: two layers, h units in each direction    W1: (2 h, 2 h)    W2: (d, 2 h)    h = d / 2

E, LSTM and MLP are trained, the network is frozen, as in the paper's knowledge probing (in its few-shot SuperGLUE the
network is trained too). All start as torch starts them: E ~ Normal(0, 1), the LSTM uniform within 1 / sqrt(h), linear
maps uniform within 1 / sqrt(fan in). The output is changed from the start and nothing merges. H depends on no input:
inference keeps H alone and so does the file, m d numbers. A stored H does not tell E, LSTM and MLP: training that goes
on from it starts a new encoder, shifted so that it gives this H.

The paper puts the m vectors at places of a template (3 before, 3 after the blank, 3 after the subject); tasks here have
no templates, and they stand together in front as in peft, behind [CLS] where there is one. `encoder: mlp` is peft's
other form, W3 relu(W2 relu(W1 E + b1) + b2) + b3 with h hidden units, d by default, which most published runs used;
peft's LSTM has twice the paper's width by default (hidden: d). A dropout between LSTM layers, 0 in the paper, is left
out. Rates: 1e-5 in probing, 1e-4 for the encoder in SuperGLUE and in peft's runs.

The encoder of a random T5 steers its decoder only little: the toy task takes it more than fifteen steps.
"""

from dataclasses import dataclass

import torch
from torch import nn

from methods.base import Count, PromptMethod


class PromptEncoder(nn.Module):
    """H (m, d), from the encoder while it is trained and from memory afterwards."""

    def __init__(self, tokens, width, encoder, hidden):
        super().__init__()
        self.E = nn.Parameter(torch.empty(tokens, width))
        self.H = nn.Parameter(torch.empty(tokens, width), requires_grad=False)
        self.register_buffer("shift", torch.zeros(tokens, width, dtype=torch.float64))
        self.ready = False
        if encoder == "lstm":
            h = hidden or width // 2
            self.lstm = nn.LSTM(width, h, num_layers=2, bidirectional=True, batch_first=True)
            self.mlp = nn.Sequential(nn.Linear(2 * h, 2 * h), nn.ReLU(), nn.Linear(2 * h, width))
        else:
            h = hidden or width
            linears = nn.Linear(width, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, width)
            self.lstm, self.mlp = None, nn.Sequential(*linears)

    @torch.no_grad()
    def initialise(self, rng):
        self.E.copy_(torch.empty(self.E.shape).normal_(generator=rng))
        self.shift.zero_()
        bounds = [(p, self.lstm.hidden_size**-0.5) for p in self.lstm.parameters()] if self.lstm is not None else []
        linears = [module for module in self.mlp if isinstance(module, nn.Linear)]
        bounds += [(p, linear.in_features**-0.5) for linear in linears for p in linear.parameters()]
        for parameter, bound in bounds:
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=rng))
        self.bake()

    def encode(self):
        """In fp32: in bf16 some devices have no LSTM."""
        with torch.autocast(self.E.device.type, enabled=False):
            x = self.E if self.lstm is None else self.lstm(self.E[None])[0][0]
            return (self.mlp(x) + self.shift).to(x.dtype)

    @torch.no_grad()
    def bake(self):
        self.H.copy_(self.encode())

    def forward(self):
        return self.H if self.ready and not self.training else self.encode()


class PTuning(PromptMethod):
    name, family, paper = "p_tuning", "prompt", "2103.10385"
    title = "GPT Understands, Too"
    recipe = {"lr": 1e-4}
    tiny = {"tokens": 40, "hidden": 128}
    patience = 40

    @dataclass(frozen=True)
    class Settings:
        tokens: int = 9
        encoder: str = "lstm"
        hidden: int | None = None

    def supports(self, shape, task):
        if self.settings.encoder not in ("lstm", "mlp"):
            return f"the encoder of p_tuning is lstm or mlp, not {self.settings.encoder}"
        return super().supports(shape, task)

    def make(self, width):
        return PromptEncoder(self.settings.tokens, width, self.settings.encoder, self.settings.hidden)

    def initialise(self, backbone, ctx):
        self.parts["prompt"].initialise(ctx.rng("init/prompt"))

    def on_step_start(self, step, ctx):
        self.parts["prompt"].ready = False

    def prepare_inference(self):
        self.parts["prompt"].bake()
        self.parts["prompt"].ready = True

    def kept(self):
        return [self.parts["prompt"].H]

    def _stored_names(self):
        return ["prompt.H"]

    @torch.no_grad()
    def load_state_dict(self, state):
        super().load_state_dict(state)
        prompt = self.parts["prompt"]
        prompt.shift += prompt.H.double() - prompt.encode().double()

    def expected_parameters(self, shape):
        settings, d = self.settings, shape.embedding_width
        m, h = settings.tokens, settings.hidden or (d // 2 if settings.encoder == "lstm" else d)
        lstm = sum(2 * (4 * h * (inp + h) + 8 * h) for inp in (d, 2 * h)) + (2 * h + 1) * 2 * h + (2 * h + 1) * d
        mlp = (d + 1) * h + (h + 1) * h + (h + 1) * d
        return Count(m * d + (lstm if settings.encoder == "lstm" else mlp), stored=m * d, added=m * d)
