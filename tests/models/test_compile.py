"""Compiled blocks compute what the blocks compute, with methods attached, and are not made anew for each length."""

import os
import shutil
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from methods.adapter.houlsby import Houlsby
from methods.lowrank.lora import LoRA
from methods.selective.bitfit import BitFit
from tests.helpers import attach, backbone, batch, close, lively, run, text
from tests.models.test_quantise import quantised
from tests.places import prefixes, prompt
from workflow.errors import AtlasError
from workflow.train import task_loss

LENGTHS = (7, 9, 12, 15)
COMPILER = shutil.which(os.environ.get("CXX", "g++"))


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def attached(name, kind):
    on, method = backbone(name), kind()
    attach(method, on)
    lively(method.parts, seed=3, std=0.1)
    return on, method


def steps(on, method, name):
    """Loss and gradients for batches of several lengths, and how many graphs there were after each."""
    found, graphs = [], []
    for length in LENGTHS:
        given = text(name, lengths=(length, length - 2, length - 1))
        loss = task_loss(on.forward(given), given)
        gradients = torch.autograd.grad(loss, method.trained(), allow_unused=True)
        found.append([loss.detach(), *(g for g in gradients if g is not None)])
        graphs.append(counters["stats"]["unique_graphs"])
    return found, graphs


def assert_same_steps(name, kind, backend, tolerance):
    plain, _ = steps(*attached(name, kind), name)
    on, method = attached(name, kind)
    on.compile(backend)
    compiled, graphs = steps(on, method, name)
    assert graphs[0] > 0 and graphs[-1] == graphs[1], "another length needs no other code"
    for one, other in zip(plain, compiled, strict=True):
        assert all(close(a, b, tolerance) for a, b in zip(one, other, strict=True))


slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("tiny-bert", LoRA),
        ("tiny-bert", BitFit),
        ("tiny-llama", Houlsby),
        slow("tiny-bert", Houlsby),
        slow("tiny-llama", LoRA),
    ],
)
def test_loss_and_gradients_are_those_of_the_network(name, kind):
    assert_same_steps(name, kind, "aot_eager", 1e-5)


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_machine_code_gives_the_same_loss_and_gradients():
    assert_same_steps("tiny-bert", LoRA, "inductor", 1e-4)


def test_restoring_leaves_no_compiled_block():
    on, method = attached("tiny-bert", LoRA)
    before = run(backbone("tiny-bert"), batch("tiny-bert"))
    on.compile("aot_eager")
    blocks = list(on.modules("block").values())
    assert all(block._compiled_call_impl is not None for block in blocks)
    method.detach()
    assert all(block._compiled_call_impl is None and "_compiled_call_impl" not in vars(block) for block in blocks)
    assert torch.equal(run(on, batch("tiny-bert")), before)


def test_generation_runs_as_it_is_written():
    on = backbone("tiny-llama", "generation")
    given = text("tiny-llama", "left")
    wanted = on.generate(given, 5)
    on.compile("aot_eager")
    assert torch.equal(on.generate(given, 5), wanted)
    assert counters["stats"]["unique_graphs"] == 0


def test_prompts_and_prefixes_are_seen():
    on = backbone("tiny-llama")
    prefixes(on), prompt(on)
    wanted = run(on, text("tiny-llama"))
    on.compile("aot_eager")
    assert close(run(on, text("tiny-llama")), wanted)


@pytest.mark.parametrize("scheme", ["int8", slow("nf4"), slow("bnb-int8")])
def test_quantised_blocks_are_compiled_too(scheme):
    on = quantised("tiny-bert", scheme)
    wanted = run(on, batch("tiny-bert"))
    on.compile("aot_eager")
    assert close(run(on, batch("tiny-bert")), wanted, 1e-4)


def test_without_a_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(AtlasError, match=r"needs a C\+\+ compiler"):
        backbone("tiny-bert").compile()
