"""Attention with a part of its own for prompts: LLaMA-Adapter, Aligner, APT and NTK-Attention, by their formulas."""

import copy
from types import SimpleNamespace

import peft
import pytest
import torch
from torch.nn import functional as F

from methods.prompt.aligner import Aligner
from methods.prompt.apt import APT, ApproximatedPrompt
from methods.prompt.llama_adapter import LLaMAAdapter
from methods.prompt.ntk_attention import NTKAttention
from tests.helpers import attach, backbone, batch, close, differ, gradients, lively, run, text, trained
from tests.methods.prompt.slow import CASES, check, exact, projected, scores, weights
from workflow.count import count

NARROW = [case for case in CASES if case[0] != "tiny-swin"]
ALL = {LLaMAAdapter: {}, Aligner: {"start": 0, "tokens": 3}}


def attached(plugin, on, **settings):
    method = plugin.create(ALL.get(plugin, {}) | settings)
    attach(method, on)
    lively(method.parts, std=0.7)
    return method


def prompt_loop(method, prompt, gate):
    """Text and prompt with a softmax each; the prompt's keys and values from the layer's matrices."""

    def slow(on, site, call, b, h, i, group):
        module = weights(method, site)
        K, V = (projected(on, site, name, prompt(module))[h // group] for name in "kv")
        own = scores(on, site, call, b, h, i).softmax(0) @ call.v[b, h // group]
        return (own + gate(module)[h] * (K @ call.q[b, h, i] * call.scale).softmax(0) @ V).detach()

    return slow


@pytest.mark.parametrize(("name", "side"), CASES)
def test_llama_adapter_equals_two_softmaxes(name, side):
    on = exact(name)
    method = attached(LLaMAAdapter, on, tokens=3)
    method.parts.double().eval()
    found = check(on, method, prompt_loop(method, lambda m: m.A, lambda m: m.g.tanh()), batch(name, side))
    assert differ(found, run(exact(name), batch(name, side)))


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize(("name", "side"), NARROW)
def test_aligner_equals_two_softmaxes(name, side, tokens):
    on = exact(name)
    method = attached(Aligner, on, tokens=tokens)
    method.parts.double().eval()
    E = method.parts["shared/tokens"].E
    found = check(on, method, prompt_loop(method, lambda m: E, lambda m: m.g), batch(name, side))
    assert differ(found, run(exact(name), batch(name, side)))


class TestBesidePeft:
    """peft's adaption prompt has one gate a block and no tanh. Its softmax is in fp32, here as wide as the rest."""

    @pytest.fixture(autouse=True)
    def wide(self, monkeypatch):
        softmax = SimpleNamespace(softmax=lambda scores, dim, dtype: scores.softmax(dim))
        monkeypatch.setattr("peft.tuners.adaption_prompt.layer.F", softmax)

    def both(self, plugin, gate, side, tokens=3):
        on, given = exact("tiny-llama", "generation"), text("tiny-llama", side)
        config = peft.AdaptionPromptConfig(adapter_len=tokens, adapter_layers=2, task_type="CAUSAL_LM")
        model = peft.get_peft_model(copy.deepcopy(on.model), config).eval()
        adapted = [block.self_attn for block in model.base_model.model.model.layers]
        method = attached(plugin, on, tokens=tokens)
        method.parts.double().eval()
        with torch.no_grad():
            for site, theirs in zip(method.planned.sites, adapted, strict=True):
                ours = weights(method, site)
                theirs.adaption_gate.copy_(gate(ours))
                theirs.adaption_prompt.copy_((ours.A if plugin is LLaMAAdapter else ours.tokens.E)[None])
            wanted = model(**given.inputs).logits
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return run(on, given)[given.mask], wanted[given.mask], size, method

    @pytest.mark.parametrize("side", ["none", "right"])
    def test_llama_adapter_with_one_gate_a_block(self, side):
        def gate(module):
            module.g.fill_(module.g[0])
            return module.g[:1].tanh()

        found, wanted, size, method = self.both(LLaMAAdapter, gate, side)
        assert close(found, wanted, 1e-8)
        assert sum(p.numel() for p in method.trained()) == size + 2 * (4 - 1)

    def test_aligner_with_the_same_prompt_in_every_block(self):
        def gate(module):
            module.g.fill_(module.g[0])
            return module.g[:1]

        found, wanted, _, _ = self.both(Aligner, gate, "right")
        assert close(found, wanted, 1e-8)


@pytest.mark.parametrize("plugin", [LLaMAAdapter, Aligner])
class TestZeroGates:
    def test_the_start_is_the_network_bit_for_bit(self, plugin):
        on, given = backbone("tiny-llama"), text("tiny-llama", "left")
        plain = run(on, given)
        attach(plugin.create(ALL[plugin]), on)
        assert torch.equal(run(on, given), plain)

    def test_at_first_only_gates_learn(self, plugin):
        on, method = backbone("tiny-llama"), plugin.create(ALL[plugin])
        attach(method, on)
        names = [name for name, _ in method.parts.named_parameters()]
        for name, gradient in zip(names, gradients(on, text("tiny-llama"), method.trained()), strict=True):
            assert bool(gradient.any()) == name.endswith(".g")


class TestLLaMAAdapter:
    def test_only_the_top_blocks_have_a_prompt(self):
        method = LLaMAAdapter.create({"layers": 1})
        assert [tuple(site) for site in method.plan(backbone("tiny-t5").shape).sites] == [
            ("encoder", 1, "attn.core"),
            ("decoder", 1, "attn.core"),
        ]

    def test_initial_values(self):
        method = LLaMAAdapter.create({"tokens": 200})
        attach(method, backbone("tiny-llama"))
        module = weights(method, method.planned.sites[0])
        assert abs(module.A.std() - 1) < 0.03 and not module.g.any()


class TestAligner:
    def test_the_gradient_of_the_token_is_the_sum_over_blocks(self):
        on, other = exact("tiny-llama"), exact("tiny-llama")
        method, apart = attached(Aligner, on), attached(Aligner, other)
        for parts in (method.parts, apart.parts):
            parts.double()
        modules = [weights(apart, site) for site in apart.planned.sites]
        for module in modules:
            module.tokens = copy.deepcopy(module.tokens)
        (whole,) = gradients(on, text("tiny-llama"), [method.parts["shared/tokens"].E])
        pieces = gradients(other, text("tiny-llama"), [module.tokens.E for module in modules])
        assert close(whole, sum(pieces), 1e-10) and all(piece.any() for piece in pieces)

    def test_one_token_is_a_bias_of_the_output_projection(self):
        """W_o concat_h(g_h V_p), by the matrices of a grouped network, put there by hand."""
        on, hand, given = exact("tiny-llama"), exact("tiny-llama"), text("tiny-llama", "left")
        method = attached(Aligner, on, tokens=1)
        method.parts.double().eval()
        for site in method.planned.sites:
            values = projected(on, site, "v", method.parts["shared/tokens"].E)[:, 0]
            heads = torch.cat([weights(method, site).g[h].detach() * values[h // 2] for h in range(4)])
            place = hand.site(site._replace(name="attn.o"))
            added = place.weight() @ heads
            hand.intercept(place.module, lambda proceed, z, added=added: proceed(z) + added)
        assert close(run(on, given), run(hand, given), 1e-10)
        report = method.merge()
        assert close(run(on, given), run(hand, given), 1e-5) and len(report.sites) == 2
        method.unmerge()
        assert close(run(on, given), run(hand, given), 1e-10)

    def test_more_tokens_do_not_merge(self):
        method = attached(Aligner, backbone("tiny-llama"))
        assert not method.mergeable and Aligner().mergeable
        with pytest.raises(TypeError, match="does not merge"):
            method.merge()

    def test_stored_once(self):
        method = attached(Aligner, backbone("tiny-t5"), tokens=2)
        assert sum(t.numel() for t in method.state_dict().values()) == 2 * 32 + 4 * 4

    @pytest.mark.parametrize(
        ("name", "settings", "reason"),
        [("tiny-swin", {}, "differ in width"), ("tiny-bert", {"start": 2}, "leaves none")],
    )
    def test_where_it_cannot_be(self, name, settings, reason):
        assert reason in Aligner.create(settings).supports(backbone(name).shape, None)


class TestAPT:
    def module(self, p=5, d=6, k=2, **more):
        made = ApproximatedPrompt(d, p, k, more.get("dropout", 0.0)).double()
        lively(made)
        return made

    def rows(self, seed=0, d=6):
        rng = torch.Generator().manual_seed(seed)
        return torch.randn(2, 3, d, generator=rng, dtype=torch.float64)

    def test_equals_its_formula_token_by_token(self):
        module, r, y = self.module(), self.rows(), self.rows(1)
        P, W1, W2, s = (p.detach() for p in (module.P, module.W1, module.W2, module.s))
        for b in range(2):
            for i in range(3):
                a = [max(0.0, float(r[b, i] @ (P[j] + W2 @ (W1 @ P[j])))) for j in range(5)]
                e = sum(a[j] * P[j] for j in range(5))
                assert close(module(r, y)[b, i].detach(), s.exp() * (y[b, i] + max(a) * e), 1e-12)

    def test_the_weight_of_the_sum_has_no_gradient(self):
        module, r = self.module(), self.rows()
        module(r, torch.zeros_like(r)).sum().backward()
        P = module.P.detach().requires_grad_()
        a = (r @ (P + P @ module.W1.T @ module.W2.T).T).relu()
        (found,) = torch.autograd.grad((module.s.exp() * a.amax(-1, keepdim=True).detach() * (a @ P)).sum(), P)
        assert close(module.P.grad, found, 1e-12) and module.s.grad != 0

    def test_without_prompts_only_the_scale_is_left(self):
        module, r, y = self.module(), self.rows(), self.rows(1)
        with torch.no_grad():
            module.P.zero_()
            assert close(module(r, y), module.s.exp() * y, 1e-12)
            module.s.zero_()
            assert torch.equal(module(r, y), y)

    def test_initial_values(self):
        method = APT.create({"tokens": 300, "rank": 40})
        attach(method, backbone("tiny-bert"))
        module = next(iter(method.parts.values()))
        assert abs(module.P.std() - 0.02) < 1e-3 and abs(module.W1.std() - 1) < 0.06
        assert not module.W2.any() and module.s == 0

    @pytest.mark.parametrize("name", ["tiny-vit", "tiny-bert", "tiny-t5", "tiny-gpt2", "tiny-deberta", "tiny-bloom"])
    def test_it_reads_what_the_attention_reads(self, name):
        """After the norm where that comes first; in a cross-attention the side that asks."""
        on, method, seen = backbone(name), APT(), {}
        attach(method, on)
        for site in method.planned.sites:
            q, o = (on.site(site._replace(name=f"{site.name}.{n}")) for n in "qo")
            on.intercept(q.module, lambda proceed, x, *rest, s=site: seen.setdefault((s, "x"), x) is None or proceed(x))
            on.intercept(
                o.module,
                lambda proceed, z, s=site: seen.setdefault((s, "y"), proceed(z)),
            )
        run(on, batch(name))
        plain = backbone(name)
        for site in method.planned.sites[:1]:
            z = []
            plain.intercept(
                plain.site(site._replace(name=f"{site.name}.o")).module,
                lambda proceed, x, z=z: z.append(proceed(x)) or z[0],
            )
            run(plain, batch(name))
            wanted = weights(method, site)(seen[site, "x"], z[0])
            assert close(seen[site, "y"], wanted) and differ(wanted, z[0], 1e-5)

    def test_dropout(self):
        module, r = self.module(dropout=0.5), self.rows()
        assert torch.equal(module.eval()(r, r), module.eval()(r, r))
        assert not torch.equal(module.train()(r, r), module.train()(r, r))


class TestNTKAttention:
    @pytest.mark.parametrize(("name", "side"), CASES)
    def test_equals_its_formula(self, name, side):
        on = exact(name)
        method = attached(NTKAttention, on)
        method.parts.double().eval()

        def phi(x, call):
            return torch.where(x > 0, x * call.scale**0.5 + 1, (x * call.scale**0.5).exp())

        def slow(on, site, call, b, h, i, group):
            module, E = weights(method, site), scores(on, site, call, b, h, i).exp()
            f = phi(call.q[b, h, i], call)
            total = E.sum() + f @ module.k[h].abs()
            return ((E @ call.v[b, h // group] + f @ module.Z[h]) / total).detach()

        found = check(on, method, slow, batch(name, side))
        assert differ(found, run(exact(name), batch(name, side)))

    @pytest.mark.parametrize(("name", "side"), CASES)
    def test_nothing_is_the_attention_itself(self, name, side):
        on, given = backbone(name), batch(name, side)
        plain, method = run(on, given), attached(NTKAttention, on)
        with torch.no_grad():
            for parameter in method.parameters():
                parameter.zero_()
        assert close(run(on, given), plain, 2e-5)

    def test_sums_over_a_prefix_are_attention_with_products_of_features(self):
        on, method, rng = exact("tiny-bert"), NTKAttention(), torch.Generator().manual_seed(0)
        attach(method, on)
        method.parts.double().eval()
        keys, values = (torch.randn(4, 5, 8, generator=rng, dtype=torch.float64) for _ in "kv")
        features = F.elu(keys / 8**0.25) + 1
        with torch.no_grad():
            for site in method.planned.sites:
                weights(method, site).Z.copy_(features.transpose(1, 2) @ values)
                weights(method, site).k.copy_(features.sum(1))

        def slow(on, site, call, b, h, i, group):
            query = F.elu(call.q[b, h, i] / 8**0.25) + 1
            shares = torch.cat([features[h] @ query, scores(on, site, call, b, h, i).exp()])
            return shares / shares.sum() @ torch.cat([values[h], call.v[b, h]])

        check(on, method, slow, text("tiny-bert"))

    def test_k_would_never_move_from_zero(self):
        """The reason for another start than that of the authors' script for images."""
        on, method = backbone("tiny-vit"), NTKAttention()
        attach(method, on)
        ks = [weights(method, site).k for site in method.planned.sites]
        assert all((k > 0).all() and k.max() < 1e-3 for k in ks)
        assert all(g.any() for g in gradients(on, batch("tiny-vit"), ks))
        with torch.no_grad():
            for k in ks:
                k.zero_()
        assert not any(g.any() for g in gradients(on, batch("tiny-vit"), ks))

    @pytest.mark.parametrize("size", [1e3, 1e-3])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_large_scores_stay_finite(self, size, sign):
        on, given = backbone("tiny-llama"), text("tiny-llama", "left")
        attached(NTKAttention, on)
        for site in on.sites(("attn.q",)):
            on.intercept(site.module, lambda proceed, x: sign * size * proceed(x))
        assert run(on, given).isfinite().all()


COUNTS = [
    ("llama_adapter", "llama-7b", {}, 1_229_760, "1.2M; with a gate for each head"),
    ("aligner", "llama-7b", {}, 5_056, "authors' code"),
    ("aligner", "llama-7b", {"tokens": 10}, 41_920, "about 50k"),
    ("aligner", "llama-13b", {}, 6_640, "by its formula"),
    ("apt", "vit-b16", {}, 534_540, "ViLT by its formula, 12 * 44,545"),
    ("apt", "bert-base", {"tokens": 200}, 12 * 159_745, "a module of METER is 159,745"),
    ("ntk_attention", "vit-b16", {}, 599_040, "by its formula"),
    ("ntk_attention", "llama-7b", {}, 16_908_288, "by its formula"),
]


@pytest.mark.parametrize(("method", "model", "settings", "published", "source"), COUNTS)
def test_published_counts(method, model, settings, published, source):
    counted = count(method, model, settings)
    assert counted["trained"] == counted["stored"] == published and counted["agrees"], source


def test_a_count_that_does_not_agree():
    """peft's comparison prints 8,601,628 for 100 tokens in all 28 blocks: one gate a block, not one for each head."""
    counted = count("llama_adapter", "llama-3.2-3b", {"tokens": 100})
    assert counted["trained"] == 8_601_628 + 28 * (24 - 1)


@pytest.mark.parametrize("plugin", [LLaMAAdapter, Aligner, NTKAttention, APT])
def test_a_gate_scales_the_contribution(plugin):
    on, given = backbone("tiny-bert"), text("tiny-bert")
    plain, method = run(on, given), attached(plugin, on)
    modules, whole = [m for m in method.parts.values() if hasattr(m, "gate")], run(on, given)
    assert len(modules) == 2 and differ(whole, plain)
    for module in modules:
        module.gate = 0.0
    assert close(run(on, given), plain)


@pytest.mark.parametrize("plugin", [LLaMAAdapter, NTKAttention])
def test_trained_parameters_all_move(plugin):
    method = plugin.create(ALL.get(plugin, {}))
    start = {}
    method.on_step_start = lambda step, ctx: (
        start or start.update({name: p.detach().clone() for name, p in method.parts.named_parameters()})
    )
    trained(method, max_steps=2)
    assert all(not torch.equal(p, start[name]) for name, p in method.parts.named_parameters())
