"""Operations and bytes of a training step, against answers computed by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.lowrank.lora import LoRA
from methods.selective.bitfit import BitFit
from tests.helpers import attach, backbone, trained, training
from workflow import cache, probe, toy

CPU = torch.device("cpu")


class TestOperations:
    def test_of_a_linear_map_by_hand(self):
        """Forward 2 B in out; backward twice that, once less where the input wants no gradient."""
        linear, x = nn.Linear(5, 3, bias=False), torch.ones(7, 5)
        with probe.counting() as counter:
            loss = linear(x).sum()
        assert counter.get_total_flops() == 2 * 7 * 5 * 3
        with probe.counting() as counter:
            loss.backward()
        assert counter.get_total_flops() == 2 * 7 * 5 * 3

    def test_of_attention_by_hand(self):
        """Two products of 2 L L D for each of B H heads; the backward pass computes one again and has four more."""
        q = torch.ones(2, 4, 8, 16, requires_grad=True)
        with probe.counting() as counter:
            out = F.scaled_dot_product_attention(q, q, q)
        assert counter.get_total_flops() == 2 * 4 * (2 * 2 * 8 * 8 * 16)
        with probe.counting() as counter:
            out.sum().backward()
        assert counter.get_total_flops() == 2 * 4 * (5 * 2 * 8 * 8 * 16)

    def test_what_lora_adds_by_hand(self):
        """Two blocks with two maps from 32 to 32 through rank 8: 2 (32 r + r 32) a token, until it is merged."""
        on, method = backbone("tiny-bert"), LoRA()
        attach(method, on)
        batch = toy.examples("tiny-bert", 1, (10, 10)).batch([0])
        found = probe.inference_flops(on, method, batch)
        assert found["attached"] - found["bare"] == 4 * 10 * 2 * (32 * 8 + 8 * 32)
        assert found["added"] == 0

    def test_of_a_whole_block_by_hand(self):
        """tiny-bert: in each of two blocks four maps of 32 x 32, two of 32 x 64, attention; a pooler; three classes."""
        on = backbone("tiny-bert")
        method = BitFit()
        attach(method, on)
        batch = toy.examples("tiny-bert", 1, (10, 10)).batch([0])
        maps = 2 * 10 * (4 * 32 * 32 + 2 * 32 * 64)
        attention = 4 * (2 * 2 * 10 * 10 * 8)
        end = 2 * 32 * 32 + 2 * 32 * 3
        assert probe.inference_flops(on, method, batch)["bare"] == 2 * (maps + attention) + end


class TestBytes:
    def test_of_tensors_counts_a_storage_once(self):
        x = torch.zeros(10, 4)
        assert probe.tensor_bytes([x, x[2:], None, torch.zeros(3, dtype=torch.bfloat16)]) == 160 + 6

    def test_saved_for_the_backward_pass_by_hand(self):
        """relu(x W) V with frozen V: x for the gradient of W, and the output of relu, once; W and V are parameters."""
        W, V = nn.Parameter(torch.ones(5, 6)), nn.Parameter(torch.ones(6, 2), requires_grad=False)
        x = torch.ones(7, 5)
        found = probe.Saved([W, V])
        with torch.autograd.graph.saved_tensors_hooks(found.note, lambda tensor: tensor):
            torch.relu(x @ W) @ V
        assert found.bytes == 4 * (7 * 5 + 7 * 6)

    def test_of_a_training_step_by_hand(self):
        """LoRA of rank 8 at two maps of each of two blocks: 2,048 parameters; Adam keeps two numbers for each."""
        run = trained(LoRA(), max_steps=2)
        before = run.weights()
        flops, found = probe.training_step(run, run.splits["train"].batch(np.arange(4)))
        head = 32 * 3 + 3  # as many classes
        assert found["method"] == 4 * 2048 and found["head"] == 4 * head
        assert found["gradients"] == 4 * (2048 + head)
        tensors = 8 + 2
        assert found["optimizer"] == 2 * 4 * (2048 + head) + 4 * tensors
        assert found["base"] == sum(
            t.numel() * t.element_size() for t in (*run.backbone.model.parameters(), *run.backbone.model.buffers())
        )
        assert flops > 0 and found["activations"] > 0
        after = run.weights()
        assert all(torch.equal(before[name], after[name]) for name in before), "nothing is trained by looking"
        assert all(p.grad is None for p in run.method.parameters())

    def test_checkpointing_keeps_less(self):
        def activations(checkpointing):
            data = toy.examples("tiny-llama", 8, (14, 14))
            on, method = backbone("tiny-llama", "generation"), LoRA()
            run = training(on, method, data=data, max_steps=1, gradient_checkpointing=checkpointing)
            attach(method, on, run)
            if checkpointing:
                on.gradient_checkpointing()
            run.run()
            return probe.training_step(run, run.splits["train"].batch(np.arange(4)))[1]["activations"]

        inputs_of_two_blocks = 2 * 4 * 13 * 32 * 4
        assert inputs_of_two_blocks < activations(True) < activations(False) / 2


def test_compiled_blocks_are_counted_as_they_are_written():
    def flops(compiled):
        on, method = backbone("tiny-bert"), LoRA()
        run = training(on, method, max_steps=1)
        attach(method, on, run)
        if compiled:
            on.compile(backend="eager")
        run.run()
        return probe.training_step(run, run.splits["train"].batch(np.arange(4)))

    assert flops(True) == flops(False)


def test_the_matmul_peak_is_measured_once_a_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path))
    monkeypatch.setattr(probe, "MATMUL_SECONDS", 0.05)
    peak = probe.matmul_peak(CPU, torch.float32)
    assert 1e9 < peak < 1e13
    monkeypatch.setattr(probe, "_matmul", lambda *args: pytest.fail("measured again"))
    assert probe.matmul_peak(CPU, torch.float32) == peak
    assert len(list(cache.folder().glob("machine/*.json"))) == 1
