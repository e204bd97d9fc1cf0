"""What a network has room for, as its shape tells, and heads that read more features."""

import pytest
import torch

from models.backbone import Unsupported
from models.shape import SiteId
from tests.helpers import EVERY, backbone, batch, close, copies, differ, run, same
from tests.places import prompt


def refused(attempt) -> bool:
    try:
        attempt()
    except Unsupported:
        return True
    return False


@pytest.mark.parametrize("name", EVERY)
def test_the_shape_tells_what_is_refused(name):
    block = SiteId(backbone(name).shape.parts[0], 1, "block")

    def replace_attention():
        backbone(name).attention(block._replace(name="attn.core"), lambda call, proceed: proceed())

    def append():
        on = backbone(name)
        width = on.shape.block(block).width
        on.around(block, lambda call: call.proceed(extra=torch.zeros(1, 1, width))[:, :-1])
        run(on, batch(name))

    shape = backbone(name).shape
    assert refused(lambda: prompt(backbone(name))) == (shape.first_slot is None)
    assert refused(replace_attention) != shape.dispatches
    assert refused(append) != shape.appendable


class TestWideHead:
    def widened(self, name="tiny-bert"):
        on = backbone(name)
        weights = on.widen_head(5, lambda pooled, state: (2 * pooled, torch.arange(5.0).expand(len(pooled), -1)))
        with torch.no_grad():
            weights.copy_(torch.linspace(-1, 1, weights.numel()).view_as(weights))
        return on, weights

    def test_reads_more_features(self):
        (on, weights), plain, given = self.widened(), backbone("tiny-bert"), batch("tiny-bert")
        with torch.no_grad():
            out = plain.head.out
            pooled = (run(plain, given) - out.bias) @ torch.linalg.pinv(out.weight).T
            expected = 2 * pooled @ out.weight.T + out.bias + torch.arange(5.0) @ weights.T
        assert close(run(on, given), expected, 1e-4)

    def test_its_weights_belong_to_the_head(self):
        on, weights = self.widened()
        assert any(p is weights for p in on.head.parameters())
        on.forward(batch("tiny-bert")).logits.sum().backward()
        assert weights.grad.abs().min() >= 0 and weights.grad.abs().max() > 0

    def test_without_it_the_head_is_what_it_was(self):
        (on, _), plain, given = self.widened(), backbone("tiny-bert"), batch("tiny-bert")
        assert differ(run(on, given), run(plain, given))
        with on.disabled():
            assert torch.equal(run(on, given), run(plain, given))
        on.restore()
        assert same(copies(on.head), copies(plain.head)) and type(on.head.out) is torch.nn.Linear
        assert torch.equal(run(on, given), run(plain, given))

    def test_a_generator_has_none(self):
        with pytest.raises(Unsupported, match="no head"):
            backbone("tiny-gpt2", "generation").widen_head(2, None)
