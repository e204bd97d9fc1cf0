"""Plugins for testing the checks: three that conform, and what goes wrong when one of their lines does.

A mutant is a sound plugin with an edit or two. `fails` names every rule that it breaks on its network, and no other
rule may complain: a failure should point at the fault.
"""

from __future__ import annotations

from dataclasses import dataclass

from workflow.registry import ROOT

LORA = (ROOT / "methods/lowrank/lora.py").read_text().replace('"lora", "lowrank"', '"mutant", "lowrank"')

PREFIX = '''
"""Prefix-tuning (Li and Liang, 2021, arXiv:2101.00190): trained keys and values (KV heads, 4, D) in every attention."""

from methods.base import Count, KVPrefix, Method


class Prefix(Method):
    name, family, paper = "mutant", "prompt", "2101.00190"
    title = "Prefix-Tuning"

    def attach(self, backbone, ctx):
        self.backbone = backbone
        for site in backbone.modules("attn.core"):
            block = backbone.shape.block(site)
            prefix = KVPrefix(block.kv_heads, 4, block.head_dim).to(backbone.device)
            self.parts[str(site).replace(".", "/")] = prefix
            prefix.attach(backbone, site)

    def initialise(self, backbone, ctx):
        for name, prefix in self.parts.items():
            prefix.initialise(0.5, ctx.rng(f"init/{name}"))

    def expected_parameters(self, shape):
        return Count(sum(2 * 4 * block.kv_heads * block.head_dim for block in shape.blocks.values()))
'''

PARALLEL = '''
"""Parallel adapter (He et al., 2022, arXiv:2110.04366): y + s W2 relu(W1 x) beside each feed-forward branch."""

from methods.base import Bottleneck, BottleneckMethod, Count


class Parallel(BottleneckMethod):
    name, family, paper = "mutant", "adapter", "2110.04366"
    title = "Towards a Unified View of Parameter-Efficient Transfer Learning"

    def branches(self):
        return ("mlp",)

    def make(self, width):
        return Bottleneck(width, 8, "relu")

    def combine(self, module, x, y, residual):
        return y + module(x)

    def initialise(self, backbone, ctx):
        for name, module in self.parts.items():
            module.initialise(0.1, ctx.rng(f"init/{name}"))

    def expected_parameters(self, shape):
        return Count(sum(2 * 8 * b.width + 8 + b.width for b in shape.blocks.values()))
'''

SOUND = {"lora": LORA, "prefix": PREFIX, "parallel": PARALLEL}


@dataclass(frozen=True)
class Mutant:
    """edits: (old, new) pairs; each old text must be there. model: the network it is tried on."""

    name: str
    fails: set[str]
    edits: list[tuple[str, str]]
    source: str = LORA
    model: str = "tiny-bert"

    @property
    def text(self) -> str:
        text = self.source
        for old, new in self.edits:
            assert old in text, f"{self.name}: the plugin no longer has {old!r}"
            text = text.replace(old, new)
        return text


def method(code: str) -> tuple[str, str]:
    """An edit that adds a method to the plugin class."""
    last = "    def expected_parameters(self, shape):"
    body = "\n".join(f"    {line}" if line else "" for line in code.strip().splitlines())
    return last, f"{body}\n\n{last}"


def in_map(code: str) -> tuple[str, str]:
    """An edit that adds a method to the map of a site."""
    place = "        def delta(self):"
    body = "\n".join(f"        {line}" if line else "" for line in code.strip().splitlines())
    return place, f"{body}\n\n{place}"


def on_input(code: str) -> tuple[str, str]:
    """An edit of z, the input of A."""
    line = "            z = F.dropout(x, self.dropout, self.training)\n"
    return line, line + "".join(f"            {added}\n" for added in code.strip().splitlines())


NOT_MERGEABLE = ("mergeable = identity_at_init = True", "identity_at_init = True")

MUTANTS = [
    Mutant("no paper", {"metadata"}, [('"2106.09685"', '""')]),
    Mutant("recipe with a misspelt key", {"metadata"}, [('{"lr": 1e-3}', '{"learning_rate": 1e-3}')]),
    Mutant("default of a setting is computed", {"settings_are_strict"}, [("rank: int = 8", 'rank: int = int("8")')]),
    Mutant(
        "unknown settings are swallowed",
        {"settings_are_strict"},
        [method("@classmethod\ndef create(cls, values=None):\n    return cls()")],
    ),
    Mutant(
        "a bias is trained too and nobody is told",
        {"gradients"},
        [
            method(
                "def attach(self, backbone, ctx):\n"
                "    super().attach(backbone, ctx)\n"
                "    backbone.site(self.planned.sites[0]).module.bias.requires_grad_(True)"
            )
        ],
    ),
    Mutant(
        "W decays while training",
        {"backbone_unchanged", "detach", "save_and_load", "bf16"},
        [
            method(
                "def on_step(self, step, ctx):\n"
                "    for site in self.planned.sites:\n"
                "        self.backbone.site(site).module.weight.data.mul_(0.98)"
            )
        ],
    ),
    Mutant(
        "detach leaves a hook",
        {"detach"},
        [
            method(
                "def attach(self, backbone, ctx):\n"
                "    super().attach(backbone, ctx)\n"
                "    backbone.site(self.planned.sites[0]).module.register_forward_hook(lambda *_: None)"
            )
        ],
    ),
    Mutant(
        "detach leaves an attribute",
        {"detach"},
        [
            method(
                "def attach(self, backbone, ctx):\n"
                "    super().attach(backbone, ctx)\n"
                "    backbone.model.rank = self.settings.rank"
            )
        ],
    ),
    Mutant(
        "count off by one",
        {"count", "count_on_meta", "count_in_optimizer", "stored_bytes"},
        [("Count(sum(", "Count(1 + sum(")],
    ),
    Mutant(
        "attach looks at values",
        {"count_on_meta"},
        [("            self.scale, ", "            assert self.A.sum().item() is not None\n            self.scale, ")],
    ),
    Mutant(
        "the optimiser never gets A",
        {"count_in_optimizer"},
        [
            method(
                "def parameter_groups(self, recipe):\n"
                "    return [{'params': [module.B for module in self.parts.values()]}]"
            )
        ],
    ),
    Mutant("B does not start at zero", {"identity"}, [("self.B.zero_()", "self.B.fill_(0.01)")]),
    Mutant(
        "a trained parameter that nothing uses",
        {"every_parameter_learns"},
        [
            (
                "            self.scale, ",
                "            self.C = nn.Parameter(empty(1).fill_(0.0))\n            self.scale, ",
            ),
            ("* (i + o) for", "* (i + o) + 1 for"),
        ],
    ),
    Mutant(
        "gradients come to nothing",
        {"loss_falls"},
        [
            ("mergeable = identity_at_init = True", "mergeable = True"),
            ("self.B.zero_()", "self.B.fill_(0.1)"),
            method(
                "def on_gradients(self, step, ctx):\n"
                "    for parameter in self.trained():\n"
                "        parameter.grad.zero_()"
            ),
        ],
    ),
    Mutant(
        "a tensor is forgotten when saving",
        {"save_and_load", "stored_bytes"},
        [method("def state_dict(self):\n    return dict(list(super().state_dict().items())[1:])")],
    ),
    Mutant(
        "a frozen factor that another process draws differently",
        {"fresh_process"},
        [
            ("from torch import empty, nn", "from torch import Generator, empty, nn"),
            ("nn.Parameter(empty(settings.rank, shape.inp))", "nn.Parameter(empty(settings.rank, shape.inp), False)"),
            ("generator=rng", 'generator=Generator().manual_seed(abs(hash("A")))'),
            ("* (i + o) for o, i, _", "* o for o, i, _"),
        ],
    ),
    Mutant(
        "merged with the wrong scale",
        {"merge"},
        [in_map("def weight(self, W, b):\n    return W + 2 * self.delta(), b")],
    ),
    Mutant(
        "unmerged by subtraction",
        {"unmerge"},
        [
            method(
                "def unmerge(self):\n"
                "    for site, module in self.maps().items():\n"
                "        place, module.merged = self.backbone.site(site), False\n"
                "        place.write(place.weight() - module.delta(), place.bias())"
            )
        ],
    ),
    Mutant("drawn from the global generator", {"same_seed"}, [(", generator=rng", "")]),
    Mutant(
        "trained in the type of the network",
        {"bf16"},
        [
            method(
                "def attach(self, backbone, ctx):\n    super().attach(backbone, ctx)\n    self.parts.to(backbone.dtype)"
            )
        ],
    ),
    Mutant(
        "a generator of its own drawn inside forward",
        {"checkpointing"},
        [
            ("from torch import empty, nn", "from torch import Generator, empty, nn, rand"),
            (
                "            self.scale, ",
                "            self.noise = Generator().manual_seed(0)\n            self.scale, ",
            ),
            on_input("if self.training:\n    z = z * rand(z.shape, generator=self.noise).to(z.dtype)"),
        ],
    ),
    Mutant(
        "carried from layer to layer in one slot",
        {"checkpointing"},
        [
            NOT_MERGEABLE,
            ("            self.scale, ", "            self.method = [shared.__self__]\n            self.scale, "),
            on_input("memory = self.method[0].backbone.state.memory\nz = memory['z'] = z + memory.get('z', 0.0)"),
        ],
    ),
    Mutant(
        "a mean over the text that counts padding",
        {"padding"},
        [NOT_MERGEABLE, on_input("z = z + z.mean(1, keepdim=True)")],
    ),
    Mutant(
        "a prefix without a mask loses the end of unpadded texts",
        {"padding", "generation"},
        [
            ("from methods.base", "import torch.nn.functional as F\nfrom torch import cat\n\nfrom methods.base"),
            ("prefix.attach(backbone, site)", "backbone.attention(site, lambda *call, p=prefix: joint(p, *call))"),
            (
                "class Prefix(Method)",
                "def joint(prefix, call, proceed):\n"
                "    size = len(call.q), -1, -1, -1\n"
                "    call.k = cat([prefix.key[None].to(call.k.dtype).expand(size), call.k], 2)\n"
                "    call.v = cat([prefix.value[None].to(call.v.dtype).expand(size), call.v], 2)\n"
                "    if call.mask is not None:\n"
                "        call.mask = F.pad(call.mask, (4, 0), value=True)\n"
                "    return proceed()\n\n\n"
                "class Prefix(Method)",
            ),
        ],
        source=PREFIX,
        model="tiny-llama",
    ),
    Mutant(
        "examples of a batch see each other",
        {"batch_of_one"},
        [NOT_MERGEABLE, on_input("z = z + z.mean(0, keepdim=True)")],
        model="tiny-vit",
    ),
    Mutant(
        "single tokens are treated differently",
        {"generation"},
        [NOT_MERGEABLE, on_input("z = z * (z.shape[1] > 1)")],
        model="tiny-llama",
    ),
]
