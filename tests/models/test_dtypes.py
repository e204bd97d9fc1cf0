"""Networks of 16 bits with trained parameters of 32: every architecture takes a step on the CPU."""

import pytest
import torch

from methods.lowrank.lora import LoRA
from tests.helpers import EVERY, attach, backbone, batch, copies, same, training
from workflow.train import task_loss


def loss_of(name, dtype):
    on = backbone(name, dtype=dtype)
    method = LoRA.create({"rank": 2, "sites": ("attn.q", "attn.v", "mlp.down")})
    attach(method, on)
    given = batch(name)
    return on, method, task_loss(on.forward(given), given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EVERY)
def test_one_step(name, dtype):
    on, method, loss = loss_of(name, dtype)
    assert {p.dtype for p in on.model.parameters()} == {dtype}
    assert {p.dtype for p in method.trained()} == {torch.float32}
    exact = loss_of(name, torch.float32)[-1]
    assert abs(loss - exact) < 0.05 * exact
    base, before = copies(on.model), copies(method.parts)
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and bool(p.grad.isfinite().all()) for p in method.trained())
    torch.optim.AdamW(method.trained(), lr=1e-3).step()
    assert not same(copies(method.parts), before) and same(copies(on.model), base)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_training_loop(dtype):
    """float16 scales its loss, so that small gradients do not vanish; steps with none that is finite are left out."""
    on = backbone("tiny-llama", dtype=getattr(torch, dtype))
    method = LoRA()
    context = training(on, method, dtype=dtype)
    attach(method, on, context)
    before = copies(method.parts)
    context.run()
    assert not same(copies(method.parts), before)
    assert all(bool(p.isfinite().all()) for p in method.parameters())
