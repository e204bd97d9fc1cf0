"""Pfeiffer, AdapterDrop, parallel adapters, Compacter, AdapterBias: against their formulas written out by hand.

peft has none of them; the recorded outputs of AdapterHub's package are compared in tests/methods/adapterhub.
"""

from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.adapter.adapterbias import OF_ATTENTION, AdapterBias
from methods.adapter.adapterdrop import AdapterDrop
from methods.adapter.compacter import Compacter, PHMLinear
from methods.adapter.compacter_pp import CompacterPlusPlus
from methods.adapter.houlsby import Houlsby
from methods.adapter.parallel_adapter import ParallelAdapter
from methods.adapter.pfeiffer import Pfeiffer
from methods.base.contract import Phase, Step
from models.placement import spread
from models.shape import LinearShape, SiteId
from tests.helpers import (
    attach,
    backbone,
    batch,
    close,
    copies,
    differ,
    double,
    lively,
    made,
    run,
    same,
    trained,
    training,
)
from workflow.count import count
from workflow.train import task_loss

NETWORKS = ["tiny-bert", "tiny-opt-post", "tiny-llama", "tiny-gpt2", "tiny-vit", "tiny-swin", "tiny-t5"]
TINY = {"reduction": 4}


@contextmanager
def on_plain(on):
    """The network's own weights alone, as they stand."""
    on.switch.on = False
    yield
    on.switch.on = True


class Seen:
    """Feed-forward branch 1 of a network in one pass: x, the input of its norm (post-norm: of its first map), u, the
    input of its last map, and what the block gave."""

    def __init__(self, on, name):
        self.part = on.shape.parts[-1]
        self.post_norm = on.architecture.post_norm
        site = {n: SiteId(self.part, 1, n) for n in ("block", "norm.mlp", "mlp.up", "mlp.gate", "mlp.down")}
        first = on.map_.linears[site["mlp.gate" if site["mlp.gate"] in on.map_.linears else "mlp.up"]].module
        self.norm, self.down = on.map_.norms[site["norm.mlp"]], on.map_.linears[site["mlp.down"]]
        source = first if self.post_norm else self.norm
        hooks = [
            source.register_forward_pre_hook(lambda m, a: setattr(self, "x", a[0])),
            self.down.module.register_forward_pre_hook(lambda m, a: setattr(self, "u", a[0])),
            on.map_.modules[site["block"]].register_forward_hook(lambda m, a, out: setattr(self, "out", out)),
        ]
        run(on, batch(name))
        for hook in hooks:
            hook.remove()
        self.out = self.out[0] if isinstance(self.out, tuple) else self.out
        self.x, self.u = (t.view(*self.out.shape[:-1], -1) for t in (self.x, self.u))
        W, b = self.down.weight(), self.down.bias()
        self.y = self.u @ W.T + (0 if b is None else b)

    @property
    def place(self):
        return f"{self.part}/1/mlp".lstrip("/")

    def normed(self, z):
        """The block's layer norm by its definition."""
        centred = z - z.mean(-1, keepdim=True)
        spread = centred.pow(2).mean(-1, keepdim=True) + self.norm.eps
        return centred / spread.sqrt() * self.norm.weight + self.norm.bias

    def block(self, y):
        """What the block gives if its feed-forward branch gives y."""
        return self.normed(self.x + y) if self.post_norm else self.x + y


def two_maps(module, z, activation=torch.relu):
    """W2 act(W1 z + b1) + b2, token by token."""
    down, up = module.down, module.up
    rows = [up.weight @ activation(down.weight @ row + down.bias) + up.bias for row in z.flatten(0, -2)]
    return torch.stack(rows).view_as(z)


class TestPfeiffer:
    @pytest.mark.parametrize("name", NETWORKS)
    @torch.no_grad()
    def test_the_formula(self, name):
        """The adapter reads LN(y + x) in a post-norm network, whose norm then acts again, and y + x in another."""
        on, method = made(Pfeiffer, name, **TINY)
        seen = Seen(on, name)
        z = seen.x + seen.y
        z = seen.normed(z) if seen.post_norm else z
        found = seen.y + two_maps(method.parts[seen.place], z)
        assert close(seen.out, seen.block(found), 1e-9)

    @torch.no_grad()
    def test_it_is_neither_half_of_houlsby_nor_an_adapter_of_the_sum_in_bert(self):
        on, method = made(Pfeiffer, "tiny-bert", **TINY)
        seen = Seen(on, "tiny-bert")
        for z in (seen.y, seen.x + seen.y):
            assert differ(seen.out, seen.block(seen.y + two_maps(method.parts[seen.place], z)), 1e-2)

    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama"])
    def test_without_its_up_projection_it_is_the_network(self, name):
        plain = run(backbone(name), batch(name))
        on, method = backbone(name), Pfeiffer()
        attach(method, on)
        assert differ(run(on, batch(name)), plain, 1e-6)
        for module in method.parts.values():
            nn.init.zeros_(module.up.weight)
        assert torch.equal(run(on, batch(name)), plain)

    def test_the_norms_stay_frozen(self):
        context = trained(Pfeiffer())
        assert not any(p.requires_grad or p.grad is not None for p in context.backbone.model.parameters())

    def test_weights_start_normal_without_a_cut(self):
        on, method = backbone("tiny-bert"), Pfeiffer.create({"reduction": 1})
        attach(method, on)
        values = torch.cat([p.flatten() for p in method.parts.parameters() if p.dim() == 2])
        assert values.std().item() == pytest.approx(0.02, rel=0.05) and values.abs().max() > 3 * 0.02
        assert all(not p.any() for p in method.parts.parameters() if p.dim() == 1)

    def test_a_bottleneck_is_at_least_one_wide(self):
        assert Pfeiffer.create({"reduction": 64}).make(32).down.out_features == 1


class TestAdapterDrop:
    def test_dropping_none_is_pfeiffer(self):
        outputs = []
        for plugin, settings in ((Pfeiffer, {}), (AdapterDrop, {"dropped": 0})):
            on, method = made(plugin, "tiny-bert", **settings)
            outputs.append(run(on, batch("tiny-bert")))
        assert torch.equal(*outputs)

    @pytest.mark.parametrize("robust", [False, True])
    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-t5"])
    def test_the_layers_below_compute_what_the_network_does(self, name, robust):
        on, method = made(AdapterDrop, name, dropped=1, robust=robust)
        part = on.shape.parts[0]
        states = []
        for _ in range(2):
            on.taps(part=part)
            run(on, batch(name))
            states.append([on.state.taps[SiteId(part, layer, "block")] for layer in (0, 1)])
            method.detach()
        (first, second), (plain_first, plain_second) = states
        assert torch.equal(first, plain_first) and differ(second, plain_second)

    def test_dropping_all_of_a_robust_one_leaves_the_network(self):
        on, _ = made(AdapterDrop, "tiny-llama", dropped=2, robust=True)
        assert torch.equal(run(on, batch("tiny-llama")), run(double("tiny-llama"), batch("tiny-llama")))

    def test_dropping_all_of_a_specialised_one_is_refused(self):
        shape = backbone("tiny-bert").shape
        assert "2 layers dropped" in AdapterDrop.create({"dropped": 2}).supports(shape, None)
        assert AdapterDrop.create({"dropped": 1}).supports(shape, None) is None

    def test_nothing_below_is_in_the_graph(self):
        """Specialised: the input of the first adapter asks for no gradient."""
        on, method = made(AdapterDrop, "tiny-bert", dropped=1)
        asks = []
        on.around(SiteId("", 1, "block"), lambda call: asks.append(call.hidden.requires_grad) or call.proceed())
        task_loss(on.forward(batch("tiny-bert")), batch("tiny-bert")).backward()
        assert asks == [False] and list(method.parts) == ["1/mlp"]

    def test_n_is_uniform_over_all_layers_and_starts_anew_with_each_step(self):
        rng = torch.Generator().manual_seed(0)
        context = SimpleNamespace(
            rng=lambda name: rng, backbone=SimpleNamespace(shape=SimpleNamespace(layers={"encoder": 12, "decoder": 12}))
        )
        method, drawn = AdapterDrop.create({"robust": True}), Counter()
        for index in range(2400):
            method.on_step_start(Step(index, 2400, Phase()), context)
            drawn[method.n] += 1
        assert sorted(drawn) == list(range(12)) and all(abs(times - 200) < 70 for times in drawn.values())

    def test_a_dropped_adapter_does_not_move(self):
        """Neither by momentum nor by decay: it has no gradient in that step."""
        method = AdapterDrop.create({"robust": True, "dropped": 0})
        moved = {0: [], 1: []}
        before = {}

        class Watched(AdapterDrop):
            def on_gradients(self, step, ctx):
                before.update({k: v.clone() for k, v in self.parts.state_dict().items()})

            def on_step(self, step, ctx):
                after = self.parts.state_dict()
                moved[self.n].append(any(not torch.equal(before[k], after[k]) for k in before if k.startswith("0/")))

        trained(Watched(method.settings), max_steps=16, weight_decay=0.1)
        assert all(moved[0]) and moved[1] and not any(moved[1])

    def test_inference_uses_the_same_adapters_after_every_step(self):
        method = trained(AdapterDrop.create({"robust": True, "dropped": 1})).method
        outputs = []
        for method.n in (0, 1):
            outputs.append(run(method.backbone, batch("tiny-bert")))
        assert torch.equal(*outputs)

    def test_robust_ones_are_all_stored_and_not_all_kept(self):
        counted = count("adapterdrop", "roberta-base", {"robust": True})
        assert counted["trained"] == counted["stored"] == counted["expected"]["stored"] == 894_528
        assert counted["added_at_inference"] == counted["expected"]["added"] == 521_808


class TestParallelAdapter:
    @pytest.mark.parametrize("name", NETWORKS)
    @torch.no_grad()
    def test_the_formula(self, name):
        """The adapter reads what the branch's output is added to: in a pre-norm network before the norm."""
        on, method = made(ParallelAdapter, name, size=8)
        seen = Seen(on, name)
        found = seen.y + 4.0 * two_maps(method.parts[seen.place], seen.x)
        assert close(seen.out, seen.block(found), 1e-9)

    def test_it_starts_as_lora_does(self):
        on, method = backbone("tiny-bert"), ParallelAdapter.create({"size": 64})
        attach(method, on)
        for module in method.parts.values():
            largest = module.down.weight.abs().max().item()
            assert 0.95 * 32**-0.5 < largest <= 32**-0.5
            assert not any(p.any() for p in (module.down.bias, module.up.weight, module.up.bias))

    @torch.no_grad()
    def test_without_its_activation_it_is_lora_on_the_residual(self):
        _, method = made(ParallelAdapter, "tiny-bert", size=8, scale=3.0, activation="identity")
        module = method.parts["0/mlp"]
        nn.init.zeros_(module.down.bias)
        nn.init.zeros_(module.up.bias)
        x = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert close(module(x), x @ (3.0 * module.up.weight @ module.down.weight).T, 1e-12)

    @torch.no_grad()
    def test_twice_the_scale_is_twice_the_change(self):
        x = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        once, twice = (made(ParallelAdapter, "tiny-bert", size=8, scale=s)[1].parts["0/mlp"](x) for s in (2.0, 4.0))
        assert torch.equal(2 * once, twice)

    @torch.no_grad()
    def test_dropout_acts_on_the_activated_units_in_training_only(self):
        _, method = made(ParallelAdapter, "tiny-bert", size=8, dropout=0.5)
        module, x = method.parts["0/mlp"], torch.ones(3, 32, dtype=torch.float64)
        assert torch.equal(module(x), module(x))
        module.train(True)
        torch.manual_seed(1)
        found = module(x)
        torch.manual_seed(1)
        hidden = F.dropout(torch.relu(module.down(x)), 0.5)
        assert torch.equal(found, 4.0 * module.up(hidden)) and differ(found[0], found[1])


def kronecker(linear):
    """H (in, out) as a sum of Kronecker products, one by one."""
    A, s, t = linear.rule.A, linear.s, linear.t
    return sum(torch.kron(A[i], s[i] @ t[i]) for i in range(len(A)))


class TestCompacter:
    @pytest.mark.parametrize(("n", "rank"), [(4, 1), (4, 2), (8, 1), (1, 1)])
    @torch.no_grad()
    def test_h_is_a_sum_of_kronecker_products(self, n, rank):
        rule = nn.Module()
        rule.A = nn.Parameter(torch.empty(n, n, n))
        linear = PHMLinear(rule, 40, 24, n, rank).double()
        lively(linear)
        H = kronecker(linear)
        assert close(linear.H(), H, 1e-12)
        assert torch.linalg.matrix_rank(H) <= min(n * n * rank, 24)
        if n == 1:
            assert close(H, rule.A.item() * linear.s[0] @ linear.t[0], 1e-12)

    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("plugin", [Compacter, CompacterPlusPlus])
    @torch.no_grad()
    def test_the_formula(self, plugin, name):
        on, method = made(plugin, name, train_norms=False, **TINY)
        seen = Seen(on, name)
        module = method.parts[seen.place]
        z = seen.y @ kronecker(module.down) + module.down.b
        z = 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))
        found = seen.y + z @ kronecker(module.up) + module.up.b
        assert close(seen.out, seen.block(found), 1e-9)

    def test_compacter_stands_after_both_branches_and_its_smaller_form_after_one(self):
        for plugin, names in ((Compacter, ["attn", "mlp"]), (CompacterPlusPlus, ["mlp"])):
            on, method = made(plugin, "tiny-t5", **TINY)
            assert sorted({site.name for site in method.planned.sites}) == names
            assert len(method.planned.sites) == 4 * len(names) and not any(s.name == "cross" for s in on.shape.norms)

    def test_the_rule_is_one_tensor_for_all(self):
        on, method = made(Compacter, "tiny-bert", **TINY)
        rules = {id(m.rule.A) for m in method.parts.modules() if isinstance(m, PHMLinear)}
        assert rules == {id(method.parts["rule"].A)}
        assert [name for name in method.state_dict() if name.endswith("A")] == ["rule.A"]
        adapters = [m for m in method.parts.modules() if isinstance(m, PHMLinear)]
        before = [m.H().detach() for m in adapters]
        with torch.no_grad():
            method.parts["rule"].A.add_(1.0)
        assert len(adapters) == 8 and all(differ(m.H(), b) for m, b in zip(adapters, before, strict=True))

    def test_start(self):
        """A: Normal(0, 1e-4); each s_i and t_i: Xavier-uniform with gain sqrt(2); nearly no change."""
        on, method = backbone("tiny-bert"), Compacter.create(TINY)
        plain = run(on, batch("tiny-bert"))
        attach(method, on)
        assert method.parts["rule"].A.std().item() == pytest.approx(1e-4, rel=0.3)
        down = method.parts["0/attn"].down
        for factors, bound in ((down.s, (12 / (8 + 1)) ** 0.5), (down.t, (12 / (1 + 2)) ** 0.5)):
            assert 0.5 * bound < factors.abs().max().item() <= bound
        assert not down.b.any() and close(run(on, batch("tiny-bert")), plain, 1e-5)

    def test_every_norm_is_trained_and_nothing_else_of_the_network(self):
        on, method = backbone("tiny-t5"), Compacter.create(TINY)
        attach(method, on)
        asked = {name for name, p in on.model.named_parameters() if p.requires_grad}
        assert len(asked) == 12 and all("layer_norm" in name for name in asked)

    def test_under_autocast_h_is_built_in_full_precision(self):
        linear = made(Compacter, "tiny-bert", **TINY)[1].parts["0/mlp"].down.float()
        with torch.autocast("cpu", torch.bfloat16):
            H = linear.H()
        assert H.dtype == torch.float32 and torch.equal(H, linear.H())

    @pytest.mark.parametrize(("settings", "reason"), [({}, "bottleneck 1"), ({"n": 3, "reduction": 4}, "n = 3")])
    def test_sizes_that_n_does_not_divide_are_refused(self, settings, reason):
        assert reason in Compacter.create(settings).supports(backbone("tiny-bert").shape, None)


class TestAdapterBias:
    @torch.no_grad()
    def test_beside_peft(self):
        """LoRA of rank one with a trained bias, whose bias vector is c v: one number more than w, v and c for each
        output but the first."""
        net = nn.Sequential(nn.Linear(20, 12))
        config = peft.LoraConfig(r=1, lora_alpha=1, lora_bias=True, target_modules=["0"])
        theirs = peft.get_peft_model(net, config).double().base_model.model[0]
        lively(theirs)
        ours = AdapterBias.Map(LinearShape(12, 20, True), AdapterBias.Settings(), None).double()
        ours.w.copy_(theirs.lora_A["default"].weight)
        ours.v.copy_(theirs.lora_B["default"].weight[:, 0])
        ours.c.fill_(0.7)
        theirs.lora_B["default"].bias.copy_(0.7 * ours.v)
        base, x = theirs.base_layer, torch.randn(5, 20, dtype=torch.float64)
        W, b = ours.weight(base.weight, base.bias)
        assert close(ours(x, base), theirs(x), 1e-12) and close(F.linear(x, W, b), theirs(x), 1e-12)
        theirs_trained = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
        assert theirs_trained - sum(p.numel() for p in ours.parameters()) == 11

    @pytest.mark.parametrize("name", NETWORKS)
    @torch.no_grad()
    def test_the_formula(self, name):
        """alpha from the activated units of each token, times v, on the branch's output."""
        on, method = made(AdapterBias, name, train_norms=False)
        seen = Seen(on, name)
        module = method.parts[seen.place + "/down"]
        alpha = torch.stack([row @ module.w[0] + module.c[0] for row in seen.u.flatten(0, -2)])
        found = seen.y + torch.outer(alpha, module.v).view_as(seen.y)
        assert close(seen.out, seen.block(found), 1e-9)

    def test_the_first_gradient_goes_to_v(self):
        on, method = backbone("tiny-bert"), AdapterBias()
        attach(method, on)
        task_loss(on.forward(batch("tiny-bert")), batch("tiny-bert")).backward()
        for module in method.maps().values():
            assert module.v.grad.any() and not module.w.grad.any() and not module.c.grad.any()

    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-vit", "tiny-gemma3", "tiny-t5"])
    def test_norms_but_those_of_the_attention_are_trained(self, name):
        on, method = backbone(name), AdapterBias()
        attach(method, on)
        for site, norm in on.norms().items():
            expected = site.name in ("embed.norm", "norm.mlp", "norm.mlp.out", "norm.final")
            assert expected != (site.name in OF_ATTENTION)
            assert all(p.requires_grad == expected for p in norm.parameters())

    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama"])
    @pytest.mark.parametrize("gate", [1.0, 0.5])
    def test_it_merges_whatever_its_gate(self, name, gate):
        """Also where the network has no bias that could take c v."""
        on, method = made(AdapterBias, name, train_norms=False)
        for module in method.maps().values():
            module.gate = gate
        before = run(on, batch(name))
        method.merge()
        with on_plain(on):
            assert close(run(on, batch(name)), before, 1e-6)
        method.unmerge()
        assert torch.equal(run(on, batch(name)), before)

    def test_without_norms_the_pretrained_tensors_stay(self):
        on = backbone("tiny-bert")
        before = copies(on.model)
        training_of = training(on, method := AdapterBias.create({"train_norms": False}))
        attach(method, on, training_of)
        training_of.run()
        assert same(copies(on.model), before)


@pytest.mark.parametrize("plugin", [Pfeiffer, AdapterDrop, ParallelAdapter, Compacter, AdapterBias])
def test_a_network_may_be_spread_over_two_devices(plugin):
    on, method = backbone("tiny-bert"), plugin.create(plugin.tiny)
    spread(on, ("cpu", "meta"))
    method.planned = method.plan(on.shape)
    method.attach(on, None)
    assert on.forward(batch("tiny-bert")).logits.device.type == "meta"


BERT_NORMS = 12 * 2 * 768 + 2 * 768
EXACT = [
    ("pfeiffer", "bert-base", {}, 894_528, "Pfeiffer by its formula, m = 48"),
    ("pfeiffer", "roberta-large", {"reduction": 64}, 811_392, "LoRA, Table 2 (0.8M), m = 16"),
    ("pfeiffer", "deberta-v3-base", {"reduction": 12}, 1_189_632, "AdaLoRA, Table 1 (1.18M, cut off), m = 64"),
    ("pfeiffer", "deberta-v3-base", {"reduction": 48}, 304_320, "AdaLoRA, Table 1 (0.30M), m = 16"),
    ("pfeiffer", "vit-b16", {"reduction": 12}, 1_189_632, "PEFT in Visual Recognition, m = 64"),
    ("pfeiffer", "vit-b16", {"reduction": 24}, 599_424, "PEFT in Visual Recognition, m = 32"),
    ("adapterdrop", "roberta-base", {}, 521_808, "by its formula, n = 5"),
    ("parallel_adapter", "roberta-base", {"size": 16}, 304_320, "by its formula"),
    ("parallel_adapter", "roberta-base", {}, 9_452_544, "by its formula"),
    ("compacter", "t5-base", {}, 161_728, "Compacter, Table 1 (0.073 %)"),
    ("compacter", "t5-base", {"train_norms": False}, 114_112, "by its formula with biases"),
    ("compacter", "bert-base", {"train_norms": False}, 57_088, "by its formula with biases"),
    ("compacter_pp", "t5-base", {}, 104_704, "Compacter, Table 1 (0.047 %)"),
    ("compacter_pp", "bert-base", {"train_norms": False}, 28_576, "by its formula with biases"),
    ("adapterbias", "bert-base", {"train_norms": False}, 46_092, "by its formula"),
    ("adapterbias", "bert-base", {}, 46_092 + BERT_NORMS, "the same, with the norms: 66,060"),
    ("adapterbias", "bert-large", {}, 174_104, "AdapterBias (0.17M)"),
    ("adapterbias", "llama-7b", {"train_norms": False}, 483_360, "by its formula, without biases in the network"),
]
# method, model, settings, ours, printed, and why they are apart
APART = [
    ("pfeiffer", "t5-base", {"reduction": 32}, 903_744, 951_360, "Compacter's baseline trains the 62 layer norms too"),
    ("adapterdrop", "t5-base", {"reduction": 32}, 527_184, 1_101_984, "Compacter's has Houlsby adapters and the norms"),
    ("compacter_pp", "t0-3b", {}, 554_048, 540_000, "T-Few's does not share the rule; its configuration gives 560,128"),
    (
        "parallel_adapter",
        "llama-7b",
        {"size": 256},
        67_248_128,
        247_463_936,
        "LLM-Adapters: one beside each linear map",
    ),
]


@pytest.mark.parametrize(("method", "model", "settings", "published", "source"), EXACT)
def test_published_counts(method, model, settings, published, source):
    counted = count(method, model, settings)
    assert counted["trained"] == counted["stored"] == counted["expected"]["trained"] == published, source
    assert counted["added_at_inference"] == counted["expected"]["added"]


@pytest.mark.parametrize(("method", "model", "settings", "ours", "printed", "reason"), APART)
def test_rows_that_disagree(method, model, settings, ours, printed, reason):
    counted = count(method, model, settings)
    assert counted["trained"] == ours != printed and counted["agrees"], reason


def test_percentages_of_t5_count_the_norms():
    """222,903,552 parameters in T5-base: 0.073 and 0.047 % with norms and biases."""
    for method, printed in (("compacter", "0.073"), ("compacter_pp", "0.047")):
        counted = count(method, "t5-base", {})
        assert f"{100 * counted['trained'] / counted['backbone']:.3f}" == printed


def test_houlsby_is_as_it_was():
    """The bottleneck's scale and dropout are off by default."""
    on, method = made(Houlsby, "tiny-bert")
    module, x = method.parts["0/mlp"], torch.ones(2, 32, dtype=torch.float64)
    module.train(True)
    assert torch.equal(module(x), module.up(F.gelu(module.down(x))))
