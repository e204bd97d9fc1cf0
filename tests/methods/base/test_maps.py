"""A change of W that has to be formed goes through one product with W + ΔW, where that computes the same."""

from functools import partial

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from methods.base import LinearMap
from models.shape import LinearShape

OUT, IN, ROWS = 7, 5, 3
PRODUCT = 2 * OUT * IN * ROWS


class Constant(LinearMap):
    """ΔW is what it is told."""

    def __init__(self, change):
        super().__init__(LinearShape(OUT, IN, True), None, None)
        self.change = nn.Parameter(change)

    def delta(self):
        return self.change


def case(dtype=torch.float64, size=1.0):
    torch.manual_seed(0)
    layer = nn.Linear(IN, OUT).to(dtype).requires_grad_(False)
    return layer, Constant(size * torch.randn(OUT, IN, dtype=torch.float64)), torch.randn(ROWS, IN).to(dtype)


def counted(function):
    with FlopCounterMode(display=False) as counter:
        y = function()
    return y, counter.get_total_flops()


def test_one_product_where_the_site_is_a_plain_linear_map():
    layer, site, x = case()
    y, flops = counted(lambda: site.through_weight(x, partial(nn.Linear.forward, layer)))
    assert flops == PRODUCT
    torch.testing.assert_close(y, x @ (layer.weight + site.change).T + layer.bias, rtol=0, atol=1e-12)
    g = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, [site.change], g)
    torch.testing.assert_close(found, g.T @ x, rtol=0, atol=1e-12)


def test_two_products_where_something_else_is_attached_too():
    layer, site, x = case()
    y, flops = counted(lambda: site.through_weight(x, lambda z: 2 * nn.Linear.forward(layer, z)))
    assert flops == 2 * PRODUCT
    torch.testing.assert_close(y, 2 * layer(x) + x @ site.change.T, rtol=0, atol=1e-12)


def test_a_small_change_is_not_rounded_into_a_short_weight():
    """Changes of a thousandth of W: added in bfloat16 half of them and more would be lost."""
    layer, site, x = case(torch.bfloat16, size=1e-3)
    y, flops = counted(lambda: site.through_weight(x, partial(nn.Linear.forward, layer)))
    assert flops == 2 * PRODUCT
    with torch.autocast("cpu", torch.bfloat16):
        whole, short = case(torch.float32)[0], case(torch.float32)[2]
        site = Constant(site.change.float().detach())
        assert counted(lambda: site.through_weight(short, partial(nn.Linear.forward, whole)))[1] == 2 * PRODUCT
