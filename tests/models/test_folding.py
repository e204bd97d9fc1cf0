"""Maps behind norms and embeddings, merged into their weights; biases that merging adds; special tokens."""

import copy

import pytest
import torch
from torch import nn

from methods.base import LinearMap
from models.shape import SiteId
from tests.helpers import EVERY, VISION, backbone, batch, bound, close, copies, differ, run, same


class Affine(LinearMap):
    """gamma * y + beta."""

    def __init__(self, size, shift, seed):
        super().__init__(None, None, None)
        rng = torch.Generator().manual_seed(seed)
        self.gamma = 1 + 0.3 * torch.randn(size, generator=rng)
        self.beta = 0.3 * torch.randn(size, generator=rng) if shift else torch.zeros(size)

    def forward(self, x, base):
        return self.gamma * base(x) + self.beta


class Mixed(LinearMap):
    """y M with a matrix M."""

    def __init__(self, size):
        super().__init__(None, None, None)
        self.M = torch.eye(size) + 0.3 * torch.randn(size, size, generator=torch.Generator().manual_seed(0))

    def forward(self, x, base):
        return base(x) @ self.M


def folded(on, given, maps):
    """Outputs with the maps attached, and with their merged weights."""
    before = run(on, given)
    for site, linear_map in maps.items():
        on.after(site, linear_map)
    attached = run(on, given)
    assert differ(attached, before)
    for site, linear_map in maps.items():
        assert on.fold(site, linear_map) == 0.0
        linear_map.merged = True
    return attached, run(on, given)


@pytest.mark.parametrize("name", EVERY)
def test_a_scale_and_shift_behind_every_norm(name):
    on, given = backbone(name), batch(name)
    start = copies(on.model)
    maps = {site: Affine(size, bias, i) for i, (site, (size, bias)) in enumerate(on.shape.norms.items())}
    attached, merged = folded(on, given, maps)
    assert close(attached, merged, bound(name, 1e-3))
    on.unmerge()
    assert same(copies(on.model), start)


@pytest.mark.parametrize("name", EVERY)
def test_a_matrix_behind_the_embedding(name):
    on, given = backbone(name), batch(name)
    start, part = copies(on.model), "encoder" if on.kind == "encoder_decoder" else ""
    site = SiteId(part, -1, "embed.patch" if name in VISION else "embed.token")
    head = None if on.kind != "decoder" else on.model.get_output_embeddings()
    outer = None if head is None else head.weight.detach().clone()
    attached, merged = folded(on, given, {site: Mixed(on.shape.embedding_width)})
    assert close(attached, merged, bound(name, 1e-3))
    assert head is None or torch.equal(head.weight, outer), "a tied output layer stays as it was"
    on.unmerge()
    assert same(copies(on.model), start)


def test_a_tied_table_is_untied_for_as_long_as_it_is_merged():
    on = backbone("tiny-gpt2", "generation")
    table, head = on.modules("embed.token")[SiteId("", -1, "embed.token")], on.model.get_output_embeddings()
    assert table.weight is head.weight
    on.fold(SiteId("", -1, "embed.token"), Mixed(32))
    assert table.weight is not head.weight
    on.unmerge()
    assert table.weight is head.weight


def test_a_norm_without_a_bias_takes_no_shift():
    on = backbone("tiny-llama")
    site = SiteId("", -1, "norm.final")
    with pytest.raises(ValueError, match=r"norm\.final has no bias"):
        on.fold(site, Affine(32, True, 0))


def test_the_gate_scales_what_is_behind():
    on, given = backbone("tiny-bert"), batch("tiny-bert")
    site, before = SiteId("", -1, "embed.norm"), run(on, given)
    linear_map = Affine(32, True, 0)
    on.after(site, linear_map)
    linear_map.gate = 0.0
    assert close(run(on, given), before)
    linear_map.gate = 0.5
    half = run(on, given)
    on.fold(site, linear_map)
    linear_map.merged = True
    assert close(run(on, given), half)


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-t5", "tiny-modernbert"])
def test_merging_gives_a_linear_map_without_bias_one_of_its_own(name):
    """ModernBERT: one bias for a fused projection, of which each site writes its part."""
    on, given = backbone(name), batch(name)
    reference, start = copy.deepcopy(on), copies(on.model)
    sites = on.sites(["attn.q", "attn.k", "attn.v", "mlp.down"])
    shifts = {s.id: torch.randn(s.shape.out, generator=torch.Generator().manual_seed(i)) for i, s in enumerate(sites)}
    assert all(site.bias() is None for site in sites)
    for site in sites:
        on.write(site, site.weight().clone(), shifts[site.id], merging=True)
        assert torch.equal(site.bias(), shifts[site.id])

    class Shift(LinearMap):
        def __init__(self, shift):
            super().__init__(None, None, None)
            self.shift = shift

        def forward(self, x, base):
            return base(x) + self.shift

    for site in reference.sites(["attn.q", "attn.k", "attn.v", "mlp.down"]):
        reference.map(site, Shift(shifts[site.id]))
    assert close(run(on, given), run(reference, given), 1e-4)
    on.unmerge()
    assert same(copies(on.model), start) and all(site.module.bias is None for site in sites)
    with pytest.raises(ValueError, match="has no bias"):
        on.write(sites[0], sites[0].weight().clone(), shifts[sites[0].id])


def test_the_pretrained_function_is_gone_while_a_table_is_merged():
    on = backbone("tiny-bert")
    on.fold(SiteId("", -1, "embed.token"), Mixed(32))
    with pytest.raises(Exception, match="weights were changed"), on.disabled():
        pass


def test_where_sites_are():
    on = backbone("tiny-swin")
    for site in (*on.shape.norms, SiteId("", -1, "embed.patch"), SiteId("", 0, "attn"), SiteId("", 0, "mlp.act")):
        assert on.device_of(site) == torch.device("cpu")


class TestSpecialIds:
    def test_those_that_the_tokenizer_has(self):
        on = backbone("tiny-bert")
        on.tokenizer = type(
            "Words", (), {"cls_token_id": 101, "sep_token_id": 102, "eos_token_id": None, "pad_token_id": 0}
        )
        assert on.special_ids() == (101, 102)

    def test_none_without_a_tokenizer(self):
        on = backbone("tiny-vit")
        assert on.tokenizer is None and on.special_ids() == ()


def test_leading_tokens_are_told_by_the_shape():
    assert {name: backbone(name).shape.first_slot for name in ("tiny-vit", "tiny-deit", "tiny-swin", "tiny-bert")} == {
        "tiny-vit": 1,
        "tiny-deit": 2,
        "tiny-swin": None,
        "tiny-bert": 1,
    }


def test_norms_that_add_one_to_their_weight():
    """Gemma's start at a weight of zero and pass on what they get."""
    for name in ("tiny-gemma", "tiny-gemma3", "tiny-llama"):
        on = backbone(name)
        norm = on.norms()[SiteId("", -1, "norm.final")]
        with torch.no_grad():
            nn.init.zeros_(norm.weight)
        out = norm(torch.ones(1, 32))
        assert close(out, torch.full((1, 32), on.architecture.norm_offset), 1e-3)
