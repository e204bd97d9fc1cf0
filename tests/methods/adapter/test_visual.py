"""Adapters from vision and from vision with language: each against its formula written a second way, in float64.

peft has none of them. AdapterHub's `adapters` has the form of Adapter+, but adapters 1.3.0 requires transformers
~=4.57.6 and is not installed here: tests/methods/adapterhub compares with its recorded outputs.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.adapter.adapter_plus import AdapterPlus
from methods.adapter.adaptertune import AdapterTune
from methods.adapter.adaptformer import AdaptFormer
from methods.adapter.convpass import Bypass, Convpass
from methods.adapter.p_adapter import Message, PAdapter
from methods.adapter.repadapter import Adapter, RepAdapter
from methods.adapter.vl_pet import VARIANTS, VLPET, Encoder, Value
from models.shape import LinearShape, SiteId
from tests.helpers import attach, backbone, batch, images, lively, run, text
from workflow.count import count

EXACT = 1e-6
BLOCK = SiteId("", 1, "block")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def equal(left, right, tolerance=EXACT):
    """Largest difference relative to the largest entry."""
    torch.testing.assert_close(left, right, rtol=0, atol=tolerance * max(1.0, right.abs().max().item()))


def wide(module, seed=1):
    """In float64 and evaluation mode, with every parameter drawn: the module alone leaves some unwritten."""
    module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    lively(module, seed)
    return module


def attached(plugin, name, away=True, **settings):
    """A method on a tiny network in float64, without dropout, with all its own parameters away from their start."""
    on, method = backbone(name, dtype=torch.float64), plugin.create(settings)
    attach(method, on)
    method.parts.double().eval()
    if away:
        lively(method.parts, 7, std=0.1)
    return on, method


class Watch:
    """Inputs and outputs of modules of a network during its next passes: `watch["norm.mlp"]` is (input, output)."""

    def __init__(self, on, block=BLOCK):
        self.seen = {}
        sites = {s: m for s, m in on.map_.modules.items() if s[:2] == block[:2]}
        sites |= {s: place.module for s, place in on.map_.linears.items() if s[:2] == block[:2]}
        for site, module in sites.items():
            module.register_forward_hook(self._note(site.name))

    def _note(self, name):
        def hook(module, args, output):
            self.seen[name] = args[0] if args else None, output[0] if isinstance(output, tuple) else output

        return hook

    def __getitem__(self, name):
        return self.seen[name]


def bottleneck(module, x, activation):
    """U act(D x + b1) + b2, token by token."""
    rows = [module.up.weight @ activation(module.down.weight @ token + module.down.bias) for token in x.flatten(0, -2)]
    return torch.stack(rows).view(x.shape) + module.up.bias


class TestAdaptFormer:
    def test_the_block_by_hand(self):
        """x' + MLP(LN x') + s (U relu(D x' + b1) + b2), with x' not normed."""
        on, method = attached(AdaptFormer, "tiny-vit", size=5, scale=0.3)
        watch = Watch(on)
        run(on, images("tiny-vit"))
        (x, normed), mlp, out = watch["norm.mlp"], watch["mlp"][1], watch["block"][1]
        on.restore()
        plain = on.map_.modules[BLOCK._replace(name="mlp")](normed)
        branch = 0.3 * bottleneck(method.parts["1/mlp"], x, torch.relu)
        equal(mlp, plain + branch)
        equal(out, x + plain + branch)

    def test_the_change_is_linear_in_s(self):
        changes = []
        for scale in (0.1, 0.4):
            on, _ = attached(AdaptFormer, "tiny-vit", size=5, scale=scale, layers=(1,))
            watch = Watch(on)
            run(on, images("tiny-vit"))
            changes.append(watch["block"][1])
        on.restore()
        run(on, images("tiny-vit"))
        equal(changes[1] - watch["block"][1], 4 * (changes[0] - watch["block"][1]))

    def test_the_start_gives_nothing_in_training_too(self):
        on, method = backbone("tiny-vit"), AdaptFormer()
        plain = run(on, images("tiny-vit"))
        attach(method, on)
        method.parts.train()
        assert torch.equal(run(on, images("tiny-vit")), plain)
        bound = 1 / math.sqrt(32)
        for module in method.parts.values():
            assert 0.9 * bound < module.down.weight.abs().max() <= bound
            assert not (module.down.bias.any() or module.up.weight.any() or module.up.bias.any())

    def test_post_norm_and_gated_networks_have_the_raw_residual_too(self):
        for name, expected in (("tiny-bert", "mlp.up"), ("tiny-llama", "norm.mlp")):
            on, method = attached(AdaptFormer, name, size=5)
            watch, seen = Watch(on), []
            method.parts["1/mlp"].register_forward_hook(lambda m, a, out, s=seen: s.append(a[0]))
            run(on, text(name))
            assert torch.equal(seen[0], watch[expected][0])


class TestRepAdapter:
    def adapter(self, width=12, bias=True, **settings):
        return wide(Adapter(width, bias, RepAdapter.create({"rank": 4} | settings).settings))

    @pytest.mark.parametrize("groups", [1, 2, 4])
    def test_as_convolutions_with_groups(self, groups):
        """The paper's own form: a dense and a grouped convolution of size one."""
        module = self.adapter(groups=groups, scale=10.0)
        dense, grouped = nn.Conv1d(12, 4, 1).double(), nn.Conv1d(4, 12, 1, groups=groups).double()
        with torch.no_grad():
            for place, value in zip(
                (dense.weight, dense.bias, grouped.weight, grouped.bias),
                (module.D[..., None], module.a, module.U[..., None], module.b),
                strict=True,
            ):
                place.copy_(value)
        assert sum(p.numel() for p in module.parameters()) == sum(
            p.numel() for m in (dense, grouped) for p in m.parameters()
        )
        x = normal(3, 5, 12)
        equal(module(x), x + 10 * grouped(dense(x.mT)).mT)

    @pytest.mark.parametrize("bias", [True, False])
    def test_folding(self, bias):
        """W M and w + W c with the dense M = I + s U D; the change has at most rank r."""
        module, W, w = self.adapter(bias=bias, scale=10.0), normal(7, 12, seed=1), normal(7, seed=2)
        U = torch.zeros(12, 4, dtype=torch.float64)
        U[:6, :2], U[6:, 2:] = module.U[:6], module.U[6:]
        a, b = (module.a, module.b) if bias else (torch.zeros(4).double(), torch.zeros(12).double())
        weight, new_bias = module.fold(W, w)
        equal(weight, W @ (torch.eye(12, dtype=torch.float64) + 10 * U @ module.D))
        equal(new_bias, w + W @ (10 * (U @ a + b)))
        x = normal(3, 12)
        equal(F.linear(x, weight, new_bias), F.linear(module(x), W, w))
        assert torch.linalg.matrix_rank(weight - W) == 4

    def test_merged_in_a_network(self):
        """With s = 10; query, key and value share an adapter, the feed-forward has another."""
        on, method = backbone("tiny-vit"), RepAdapter.create({"scale": 10.0})
        attach(method, on)
        lively(method.parts, 7, std=0.1)
        method.parts.eval()
        adapters = {id(m.adapter): site for site, m in method.maps().items()}
        assert len(adapters) == 4 and len(method.state_dict()) == 16
        before = run(on, images("tiny-vit"))
        method.merge()
        equal(run(on, images("tiny-vit")), before, 1e-5)
        on.switch.on = False
        equal(run(on, images("tiny-vit")), before, 1e-5)

    def test_both_branches_by_hand(self):
        on, method = attached(RepAdapter, "tiny-vit", scale=0.5)
        watch = Watch(on)
        run(on, images("tiny-vit"))
        for branch, sites in (("attn", ("attn.q", "attn.k", "attn.v")), ("mlp", ("mlp.up",))):
            adapter, (_, x) = method.parts[f"shared/1/{branch}"], watch[f"norm.{branch}"]
            z = adapter(x)
            assert (z - x).abs().max() > 0.01
            for name in sites:
                place = on.site(BLOCK._replace(name=name))
                equal(watch[name][1], F.linear(z, place.weight(), place.bias()))

    def test_without_biases_in_the_network_there_are_none_in_the_adapter(self):
        _, method = attached(RepAdapter, "tiny-llama", rank=4)
        assert {name.split(".")[-1] for name in method.state_dict()} == {"D", "U"}
        _, method = attached(RepAdapter, "tiny-qwen2", rank=4)
        assert {name for name in method.state_dict() if name.endswith(".a")} == {"shared/0/attn.a", "shared/1/attn.a"}

    def test_what_is_refused(self):
        shape = backbone("tiny-bert").shape
        assert "mlp.down" in RepAdapter.create({"sites": ["mlp.down"]}).supports(shape, None)
        assert "7 is not divisible" in RepAdapter.create({"rank": 7}).supports(shape, None)
        assert RepAdapter.create({"sites": ["attn.q", "attn.k", "attn.v"]}).supports(shape, None) is None


class TestConvpass:
    def bypass(self, **settings):
        return wide(Bypass(12, Convpass.create({"size": 3} | settings).settings, 0.0))

    def test_by_loops(self):
        """Every tap of every patch by itself; the class token meets the centre of the kernel alone."""
        module, z = self.bypass(), normal(2, 1 + 16, 12)
        act = lambda u: u / (1 + torch.exp(-1.702 * u))  # noqa: E731
        u = act(F.linear(z, module.down.weight, module.down.bias))
        K, k, v = module.conv.weight, module.conv.bias, torch.zeros_like(u)
        v[:, 0] = u[:, 0] @ K[:, :, 1, 1].T + k
        for row in range(4):
            for column in range(4):
                at = 1 + 4 * row + column
                v[:, at] = k
                for i in range(max(0, row - 1), min(4, row + 2)):
                    for j in range(max(0, column - 1), min(4, column + 2)):
                        v[:, at] += u[:, 1 + 4 * i + j] @ K[:, :, i - row + 1, j - column + 1].T
        equal(module(z), F.linear(act(v), module.up.weight, module.up.bias))

    @pytest.mark.parametrize("xavier", [True, False])
    def test_the_start(self, xavier):
        """Nothing comes out; as the identity, the convolution drops out of C."""
        module = Bypass(12, Convpass.create({"size": 3}).settings, 0.0).eval()
        module.initialise(xavier, generator())
        z = normal(2, 17, 12).float()
        assert not module(z).any()
        lively(module.up)
        act = lambda u: u * torch.sigmoid(1.702 * u)  # noqa: E731
        plain = module.up(act(act(module.down(z))))
        assert torch.allclose(module(z), plain, atol=1e-6) is not xavier
        bound = math.sqrt(6 / (9 * 3 + 9 * 3))
        assert not xavier or 0.8 * bound < module.conv.weight.abs().max() <= bound

    @pytest.mark.parametrize("tokens", [0, 1, 2])
    def test_a_patch_reaches_its_neighbours_alone(self, tokens):
        module, z = self.bypass(), normal(1, tokens + 25, 12)
        for changed in range(tokens + 25):
            other = z.clone()
            other[:, changed] += 1
            moved = (module(other) - module(z)).abs().amax(-1)[0] > 1e-9
            near = torch.zeros(tokens + 25, dtype=torch.bool)
            near[changed] = True
            if changed >= tokens:
                row, column = divmod(changed - tokens, 5)
                rows, columns = torch.arange(25).div(5, rounding_mode="floor"), torch.arange(25) % 5
                near[tokens:] = ((rows - row).abs() <= 1) & ((columns - column).abs() <= 1)
            assert torch.equal(moved, near)

    def test_both_branches_of_vit(self):
        on, method = attached(Convpass, "tiny-vit", size=3, scale=0.5)
        watch = Watch(on)
        run(on, images("tiny-vit"))
        x, z = watch["norm.attn"]
        (x2, z2), out = watch["norm.mlp"], watch["block"][1]
        on.restore()
        y = on.map_.modules[BLOCK._replace(name="attn")](z)
        equal(x2, x + (y[0] if isinstance(y, tuple) else y) + 0.5 * method.parts["1/attn"](z))
        equal(out, x2 + on.map_.modules[BLOCK._replace(name="mlp")](z2) + 0.5 * method.parts["1/mlp"](z2))

    @pytest.mark.parametrize("layer", [0, 1, 3])
    def test_in_swin_it_sees_the_whole_image(self, layer):
        """Beside the attention too, where the windows are shifted (1, 3) and where they are not."""
        on = backbone("tiny-swin", dtype=torch.float64)
        block = SiteId("", layer, "block")
        watch = Watch(on, block)
        run(on, images("tiny-swin"))
        (_, z), (before, _) = watch["norm.attn"], watch["norm.mlp"]
        method = Convpass.create({"size": 3, "layers": [layer], "branches": ["attn"]})
        attach(method, on)
        module = wide(next(iter(method.parts.values())))
        run(on, images("tiny-swin"))
        equal(watch["norm.mlp"][0], before + module(z))

    def test_a_left_out_bypass(self):
        """Its rate grows over the blocks; an image that is left out has the network's own output, others more of it."""
        _, method = attached(Convpass, "tiny-swin", drop_path=0.3)
        assert [round(m.drop_path, 9) for m in method.parts.values()] == [0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3]
        module, z = self.bypass(dropout=0.0), normal(32, 17, 12)
        whole = module(z)
        module.drop_path = 0.5
        assert torch.equal(module(z), whole)
        torch.manual_seed(0)
        ratio = (module.train()(z) / whole).flatten(1)
        assert set(ratio[:, 0].round(decimals=6).tolist()) == {0.0, 2.0}
        equal(ratio, ratio[:, :1].expand_as(ratio))


class TestBehindBlocks:
    """Adapter+ and AdapterTune."""

    @pytest.mark.parametrize("name", ["tiny-vit", "tiny-swin", "tiny-bert", "tiny-llama", "tiny-opt"])
    @pytest.mark.parametrize("plugin", [AdapterPlus, AdapterTune])
    def test_by_hand(self, plugin, name):
        """The output of the whole block, and what the adapter makes of it, token by token."""
        on, method = attached(plugin, name, layers=(1,))
        watch, module = Watch(on), method.parts["1/block"]
        run(on, batch(name))
        out = watch["block"][1]
        on.restore()
        run(on, batch(name))
        y = watch["block"][1]
        scale = module.gamma if plugin is AdapterPlus else 1.0
        equal(out, y + scale * bottleneck(module, y, lambda u: u * (1 + torch.erf(u / math.sqrt(2))) / 2))

    def test_gamma(self):
        """At zero there is no adapter; it folds into U and b2."""
        on, method = attached(AdapterPlus, "tiny-vit")
        before = run(on, images("tiny-vit"))
        with torch.no_grad():
            for module in method.parts.values():
                module.up.weight.mul_(module.gamma[:, None])
                module.up.bias.mul_(module.gamma)
                module.gamma.fill_(1.0)
            equal(run(on, images("tiny-vit")), before)
            for module in method.parts.values():
                module.gamma.zero_()
        adapted = run(on, images("tiny-vit"))
        on.restore()
        assert torch.equal(adapted, run(on, images("tiny-vit")))

    def test_the_start_of_adapter_plus(self):
        _, method = attached(AdapterPlus, "tiny-vit", away=False)
        for module in method.parts.values():
            for linear in (module.down, module.up):
                assert 0.01 < linear.weight.abs().max() <= 0.02 and not linear.bias.any()
            assert torch.equal(module.gamma, torch.ones_like(module.gamma))
        groups = method.parameter_groups({})
        assert sum(p.numel() for p in groups[0]["params"]) == 2 * 2 * 8 * 32 and groups[1]["weight_decay"] == 0

    def test_drop_path(self):
        """A dropped image has the output of the block alone; the others have the adapter's divided by what is kept."""
        _, method = attached(AdapterPlus, "tiny-vit", drop_path=0.25)
        module, y = method.parts["0/block"], normal(64, 5, 32)
        whole = module(y)
        torch.manual_seed(0)
        some = module.train()(y)
        dropped = ~some.flatten(1).any(1)
        assert 4 < dropped.sum() < 32
        equal(some[~dropped], whole[~dropped] / 0.75)

    def test_adaptertune_starts_from_the_network_itself(self):
        on, method = backbone("tiny-vit"), AdapterTune()
        plain = run(on, images("tiny-vit"))
        attach(method, on)
        assert torch.equal(run(on, images("tiny-vit")), plain)
        on.forward(images("tiny-vit")).logits.pow(2).sum().backward()
        for module in method.parts.values():
            assert not module.down.weight.grad.any() and not module.down.bias.grad.any()
            assert module.up.weight.grad.any() and module.up.bias.grad.any()
            bound = math.sqrt(6 / (32 + 16))
            assert 0.9 * bound < module.down.weight.abs().max() <= bound

    def test_adaptertune_is_affine_without_its_activation(self):
        """out = (I + alpha U D) y + alpha (U b1 + b2)."""
        on, method = attached(AdapterTune, "tiny-vit", alpha=0.7, layers=(1,))
        module, watch = method.parts["1/block"], Watch(on)
        module.activation = lambda u: u
        run(on, images("tiny-vit"))
        out = watch["block"][1]
        on.restore()
        run(on, images("tiny-vit"))
        (D, b1), (U, b2) = ((m.weight, m.bias) for m in (module.down, module.up))
        M = torch.eye(32, dtype=torch.float64) + 0.7 * U @ D
        equal(out, watch["block"][1] @ M.T + 0.7 * (U @ b1 + b2))

    def test_every(self):
        shape = backbone("tiny-swin").shape
        assert [s.layer for s in AdapterTune.create({"every": 2}).plan(shape).sites] == [0, 2]
        assert [s.layer for s in AdapterTune.create({"every": 3}).plan(shape).sites] == [0, 3]


class TestVLPET:
    def module(self, variant, **settings):
        return wide(Encoder(12, VLPET.create({"variant": variant, "size": 4, "gate_size": 3} | settings).settings))

    @pytest.mark.parametrize("variant", VARIANTS)
    def test_by_loops(self, variant):
        """Position by position; in `small` over the real ones of each text."""
        module, x, h = self.module(variant, scale=0.3), normal(2, 5, 12), normal(2, 5, 12, seed=1)
        mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]]).bool()
        out, G = module(x, h, mask), module.G
        act = lambda u: 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))  # noqa: E731
        z = h + bottleneck(module.adapter, h, act)
        for text_ in range(2):
            means = []
            for at in range(5):
                xi, zi = x[text_, at], z[text_, at]
                if variant == "large":
                    g = torch.sigmoid(G.up.weight @ act(G.down.weight @ xi + G.down.bias) + G.up.bias)
                elif variant == "middleX":
                    g = torch.sigmoid(G.w.weight[0] @ (xi + zi) + G.w.bias)
                elif variant == "middleY":
                    g = 1 + G.g
                elif mask[text_, at]:
                    means.append(torch.sigmoid(G.w.weight[0] @ torch.cat([xi, zi]) + G.w.bias))
                    continue
                else:
                    continue
                equal(out[text_, at], 0.3 * g * zi)
            if means:
                equal(out[text_], 0.3 * torch.stack(means).mean() * z[text_])

    def test_large_with_nothing_in_its_gate_halves_the_branch(self):
        module, x, h = self.module("large"), normal(2, 5, 12), normal(2, 5, 12, seed=1)
        with torch.no_grad():
            module.G.up.weight.zero_()
            module.G.up.bias.zero_()
        equal(module(x, h, None), 0.5 * (h + module.adapter(h)))

    def test_heads_are_one_linear_map(self):
        """Four projections of a quarter each, put together."""
        module, h = self.module("middleY", size=8), normal(2, 5, 12)
        heads = [nn.Linear(12, 2).double() for _ in range(4)]
        with torch.no_grad():
            for i, head in enumerate(heads):
                head.weight.copy_(module.adapter.down.weight[2 * i : 2 * i + 2])
                head.bias.copy_(module.adapter.down.bias[2 * i : 2 * i + 2])
        joined = F.gelu(torch.cat([head(h) for head in heads], -1), approximate="tanh")
        equal(module.adapter(h), module.adapter.up(joined))

    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-vit", "tiny-t5", "tiny-swin"])
    def test_middle_y_from_zero_is_the_network_itself(self, name):
        on, method = backbone(name), VLPET.create({"variant": "middleY", "zero_init": True})
        plain = run(on, batch(name))
        attach(method, on)
        assert torch.equal(run(on, batch(name)), plain)
        assert all(m.adapter.down.weight.any() for m in method.parts.values() if isinstance(m, Encoder))

    def test_where_it_is_attached(self):
        """BERT, both branches: x is the residual, the norm comes behind. T5: the encoder, and values of the decoder."""
        on, method = attached(VLPET, "tiny-bert", size=4, gate_size=3, train_norms=False)
        watch = Watch(on)
        run(on, text("tiny-bert", "none"))
        for branch, last in (("attn", "attn.o"), ("mlp", "mlp.down")):
            z, out = watch[last]
            place = on.site(BLOCK._replace(name=last))
            h = F.linear(z, place.weight(), place.bias())
            x = watch["attn.q" if branch == "attn" else "mlp.up"][0]
            equal(out, method.parts[f"1/{branch}"](x, h, None))
        _, method = attached(VLPET, "tiny-t5", size=4, gate_size=3, value_size=2)
        encoder = [f"encoder/{i}/{b}" for i in range(2) for b in ("attn", "mlp")]
        assert list(method.parts) == [*encoder, "decoder/0/cross/v", "decoder/1/cross/v"]
        assert {name.split(".")[0] for name in method.base_parameters} == {"encoder"}
        assert VLPET().supports(backbone("tiny-llama").shape, None).endswith("of kind decoder")

    def test_values_of_cross_attention(self):
        on, method = attached(VLPET, "tiny-t5", size=4, gate_size=3, value_size=2, train_norms=False)
        block = SiteId("decoder", 1, "block")
        watch = Watch(on, block)
        run(on, text("tiny-t5"))
        e, v = watch["cross.v"]
        module = method.parts["decoder/1/cross/v"]
        hidden = F.gelu(F.linear(e, module.down.weight, module.down.bias), approximate="tanh")
        equal(v, e @ on.site(block._replace(name="cross.v")).weight().T + module.up(hidden))

    def test_a_value_of_another_width(self):
        module = wide(Value(LinearShape(7, 5, False), 3))
        base, e = nn.Linear(5, 7, bias=False).double(), normal(2, 4, 5)
        assert module(e, base).shape == (2, 4, 7)
        assert sum(p.numel() for p in module.parameters()) == 3 * (5 + 7 + 1) + 7

    def test_the_mean_of_small_leaves_padding_out(self):
        on, _ = attached(VLPET, "tiny-bert", variant="small", train_norms=False)
        ids = text("tiny-bert", "none", lengths=(5,))
        alone = run(on, ids)
        for side in ("right", "left"):
            padded = text("tiny-bert", side, lengths=(5, 9))
            equal(run(on, padded)[:1], alone)

    def test_an_unknown_variant(self):
        assert "no variant huge" in VLPET.create({"variant": "huge"}).supports(backbone("tiny-bert").shape, None)


def p_laplacian(module, A, Q, V):
    """Messages to the queries, node by node in the joint graph of queries and values, every entry as it is written."""
    p, mu, e = module.p.item(), module.mu * (2 + math.tanh(module.m.item())), 1e-8
    batch_, heads, n_q, n_k = A.shape
    joint = torch.zeros(batch_, heads, n_q + n_k, n_q + n_k, dtype=A.dtype)
    joint[:, :, :n_q, n_q:], joint[:, :, n_q:, :n_q] = A, A.mT
    nodes = torch.cat([Q, V], 1) @ module.inp.weight.T + module.inp.bias
    out = torch.zeros(batch_, n_q, nodes.shape[-1], dtype=A.dtype)
    size = nodes.shape[-1] // heads
    for b in range(batch_):
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            for i in range(n_q):
                total, message = 0.0, 0.0
                for j in range(n_q + n_k):
                    a = joint[b, head, i, j]
                    w = ((a + e).sqrt() * (nodes[b, j, own] - nodes[b, i, own]) + e).norm() ** (p - 2)
                    total, message = total + a * w, message + a * w * nodes[b, j, own]
                alpha = 1 / (total + 2 * mu / p)
                beta = alpha * 2 * mu / p
                torch.testing.assert_close(alpha * total + beta, torch.ones_like(alpha))
                out[b, i, own] = alpha * message + beta * nodes[b, i, own]
    return out


def keeper(kept, branch):
    """Notes weights and values of an attention."""

    def keep(call, proceed):
        kept[branch] = call.scores().softmax(-1).nan_to_num(), call.v  # a padded query may see nothing
        return proceed()

    return keep


class TestPAdapter:
    def module(self, p=1.25, mu=0.1):
        module = wide(Message(12, 6, 2, mu))
        with torch.no_grad():
            module.p.fill_(p)
        return module

    def graph(self, n_q=4, n_k=5):
        A = normal(2, 2, n_q, n_k, seed=1).mul(2).softmax(-1)
        return A, normal(2, n_q, 12, seed=2), normal(2, n_k, 12, seed=3)

    @pytest.mark.parametrize("p", [1.25, 1.75, 2.0, 3.0])
    def test_messages_by_loops(self, p):
        module, (A, Q, V) = self.module(p), self.graph()
        A[:, :, :, 2] = 0  # a masked key
        equal(module.propagate(A, module.nodes(Q), module.nodes(V)), p_laplacian(module, A, Q, V))

    def test_p_of_two_is_the_mean_of_the_values_and_oneself(self):
        """(A F_v + mu F_q) / (1 + mu), as every edge weighs one."""
        module, (A, Q, V) = self.module(2.0), self.graph()
        mu = 0.1 * (2 + math.tanh(module.m.item()))
        F_q, F_v = module.nodes(Q), module.nodes(V)
        expected = ((A @ F_v + mu * F_q) / (1 + mu)).transpose(1, 2).flatten(2)
        equal(module.propagate(A, F_q, F_v), expected)

    def test_without_an_up_projection_it_is_the_attention_itself(self):
        module, o = self.module(), normal(2, 4, 12)
        with torch.no_grad():
            module.up.weight.zero_()
            module.up.bias.zero_()
        assert torch.equal(module(o, normal(2, 4, 6)), o)

    def test_tokens_have_no_order(self):
        module, (A, Q, V) = self.module(), self.graph(5, 5)
        order = torch.randperm(5, generator=generator())
        plain = module.propagate(A, module.nodes(Q), module.nodes(V))
        moved = module.propagate(A[:, :, order][..., order], module.nodes(Q[:, order]), module.nodes(V[:, order]))
        equal(moved, plain[:, order])

    def test_gradients_stay_finite(self):
        """With masked keys, with a key that is the query itself, and with a single key."""
        module = Message(12, 6, 2, 0.1)
        lively(module)
        with torch.no_grad():
            module.p.fill_(1.25)
            module.m.fill_(0.1)
        for tokens in (5, 1):
            A = torch.rand(2, 2, tokens, tokens, generator=generator())
            A = (A / A.sum(-1, keepdim=True)).tril() if tokens > 1 else A / A
            V = normal(2, tokens, 12).float()
            nodes = module.nodes(V)
            loss = module.propagate(A.requires_grad_(), nodes, module.nodes(V)).pow(2).sum()
            found = torch.autograd.grad(loss, [*module.inp.parameters(), module.p, module.m, A])
            assert all(g.isfinite().all() for g in found)

    @pytest.mark.parametrize("side", ["none", "right", "left"])
    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2", "tiny-llama", "tiny-qwen3", "tiny-gemma3", "tiny-t5"])
    def test_in_a_network(self, name, side):
        """A gives the attention's own output; queries are those before rotation, values are there for every head."""
        on, method = attached(PAdapter, name, layers=(1,))
        part, given, kept = on.shape.parts[-1], text(name, side), {}
        block, place = on.shape.blocks[part, 1], {s.name: on.site(s) for s in on.shape.linears if s[:2] == (part, 1)}
        assert {site[:2] for site in method.planned.sites} == {(part, 1)}
        branches = [site.name for site in method.planned.sites]
        assert branches == (["attn", "cross", "mlp"] if name == "tiny-t5" else ["attn", "mlp"])
        for branch in branches[:-1]:
            on.attention(SiteId(part, 1, f"{branch}.core"), keeper(kept, branch))
        watch = Watch(on, SiteId(part, 1, "block"))
        run(on, given)
        for branch in branches[:-1]:
            module, (A, v), output = method.parts[f"{part}/1/{branch}".strip("/")], kept[branch], place[f"{branch}.o"]
            (z, out), q = watch[f"{branch}.o"], place[f"{branch}.q"].take(watch[f"{branch}.q"][1])
            v = v.repeat_interleave(block.heads // block.kv_heads, 1)
            real = torch.ones(z.shape[:2], dtype=torch.bool) if part == "decoder" else given.mask
            equal((A @ v).transpose(1, 2).flatten(2)[real], z[real])
            Q, V, o = (F.linear(t, output.weight(), output.bias()) for t in (q, v.transpose(1, 2).flatten(2), z))
            change = module.up(F.gelu(module.gating(o)) * p_laplacian(module, A, Q, V))
            equal(out[real], (o + change)[real])
        u = watch["mlp.up" if on.architecture.post_norm else "norm.mlp"][0]
        y = F.linear(watch["mlp.down"][0], place["mlp.down"].weight(), place["mlp.down"].bias())
        equal(watch["mlp.down"][1], y + bottleneck(method.parts[f"{part}/1/mlp".strip("/")], u, torch.relu))

    def test_what_is_refused(self):
        assert "itself" in PAdapter().supports(backbone("tiny-deberta").shape, None)
        assert "heads" in PAdapter.create({"reduction": 5}).supports(backbone("tiny-bert").shape, None)
        assert "heads" in PAdapter.create({"reduction": 64}).supports(backbone("tiny-bert").shape, None)


LARGE = {"size": 96, "gate_size": 96, "train_norms": False}


@pytest.mark.parametrize(
    ("method", "model", "settings", "published", "source"),
    [
        ("adaptformer", "vit-b16", {"size": 8}, 156_768, "V-PETL (0.16M)"),
        ("adaptformer", "vit-b16", {}, 1_189_632, "V-PETL, video (1.19M)"),
        ("adaptformer", "vit-b16", {"size": 32}, 599_424, "Lessons learned in visual PEFT"),
        ("repadapter", "vit-b16", {}, 239_808, "Lessons learned in visual PEFT; RepAdapter's code"),
        ("repadapter", "vit-b16", {"rank": 32}, 903_936, "Lessons learned in visual PEFT"),
        ("repadapter", "vit-b16", {"sites": ["attn.q", "attn.k", "attn.v"]}, 119_904, "repattn by its formula"),
        ("convpass", "vit-b16", {}, 327_552, "Convpass (0.33M)"),
        ("convpass", "vit-b16", {"branches": ["attn"]}, 163_776, "Convpass-attn (0.16M)"),
        ("convpass", "vit-b16", {"size": 16}, 664_320, "Lessons learned in visual PEFT"),
        ("adapter_plus", "vit-b16", {}, 165_984, "Adapter+ by its formula; 0.20M with a mean head of 38,045"),
        ("adaptertune", "vit-b16", {}, 304_320, "AdapterTune by its formula"),
        ("adaptertune", "deit-s16", {}, 152_256, "AdapterTune by its formula, ViT-S"),
        (
            "vl_pet",
            "bert-base",
            LARGE | {"variant": "small"},
            2 * 1_798_284,
            "the encoder of BART-base by its formula, twice as deep",
        ),
        ("vl_pet", "t5-base", LARGE, 2 * 4_449_600, "BART-base by its formula, twice as deep"),
        ("p_adapter", "t5-base", {}, 7_111_344, "the decoder of BLIP-base by its formula"),
        ("p_adapter", "bert-base", {}, 12 * (222_146 + 148_320), "a network without cross-attention"),
    ],
)
def test_published_counts(method, model, settings, published, source):
    """RepAdapter's paper prints 0.22M, 221,184 without the biases that its code has; the code is followed."""
    counted = count(method, model, settings)
    assert counted["trained"] == counted["stored"] == published and counted["agrees"], source
    assert counted["added_at_inference"] == (0 if method == "repadapter" else published)


def test_the_norms_of_vl_pet_are_trained_and_add_nothing():
    counted = count("vl_pet", "bert-base", {})
    assert counted["trained"] - counted["added_at_inference"] == 25 * 2 * 768
