"""Prefixes of keys and values beside slow loops over heads and queries, beside peft, and beside what they stand for."""

import copy

import numpy as np
import peft
import pytest
import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from methods.prompt.e2vpt import E2VPT
from methods.prompt.p_tuning_v2 import PTuningV2
from methods.prompt.prefix_tuning import PrefixTuning
from methods.prompt.vpt_deep import VPTDeep
from tests.helpers import (
    attach,
    backbone,
    batch,
    close,
    differ,
    encoded,
    gradients,
    images,
    lively,
    run,
    text,
    token_ids,
    trained,
    training,
)
from tests.methods.prompt.slow import CASES, check, exact, projected, scores, weights
from workflow.count import count
from workflow.data import Encoded

P = 3


def prefix_loop(rows):
    """Attention over extra keys and values `rows(site)` = (heads, P, D) each, a head and a query at a time."""

    def slow(on, site, call, b, h, i, group):
        keys, values = (t.detach()[h // group] for t in rows(site))
        seen = torch.cat([keys @ call.q[b, h, i] * call.scale, scores(on, site, call, b, h, i)])
        return seen.softmax(0) @ torch.cat([values, call.v[b, h // group]])

    return slow


@pytest.mark.parametrize("plugin", [PTuningV2, PrefixTuning])
@pytest.mark.parametrize(("name", "side"), CASES)
def test_a_prefix_equals_a_loop(plugin, name, side):
    on = exact(name)
    method = plugin.create({"tokens": P} | ({"mid_dim": 5} if plugin is PrefixTuning else {"std": 1.0}))
    attach(method, on)
    method.parts.double().eval()
    plain = run(exact(name), batch(name, side))
    found = check(on, method, prefix_loop(lambda site: weights(method, site).rows()), batch(name, side))
    assert differ(found, plain)


class TestSplitOfTheSoftmax:
    """(1 - share) attention + share softmax(Q P_k^T) P_v, with the share of the softmax that falls on the prefix."""

    @pytest.mark.parametrize("zero", [False, True])
    def test_on_text_that_is_padded(self, zero):
        on, method = exact("tiny-llama"), PTuningV2.create({"tokens": P, "std": 0.0 if zero else 1.0})
        attach(method, on)
        method.parts.double().eval()

        def slow(on, site, call, b, h, i, group):
            module = weights(method, site)
            ours, theirs = module.key[h // group] @ call.q[b, h, i] * call.scale, scores(on, site, call, b, h, i)
            share = (ours.logsumexp(0) - torch.cat([ours, theirs]).logsumexp(0)).exp()
            if zero:  # each zero key takes a share of exp(0): the text is left Z of Z + p
                assert close(share, P / (P + theirs.exp().sum()))
            own = (1 - share) * theirs.softmax(0) @ call.v[b, h // group]
            return (own + share * ours.softmax(0) @ module.value[h // group]).detach()

        check(on, method, slow, text("tiny-llama", "left"))


def rotating(on):
    """Angles in float64 (transformers takes fp32 whatever the network's type)."""
    rotary = on.model.model.rotary_emb

    def angles(x, position_ids):
        found = torch.cat([position_ids[..., None] * rotary.inv_freq.double()] * 2, -1)
        return found.cos(), found.sin()

    rotary.forward = angles
    return on


@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_true_keys_and_values_of_leading_text_give_the_logits_of_the_whole(side):
    """Grouped heads and rotary positions: the keys were rotated at 0 .. p-1 and stand at -p .. -1 of the text."""
    on, method, seen = rotating(exact("tiny-llama", "generation")), PTuningV2.create({"tokens": P}), {}
    lead, rows = token_ids([P], 7)[0], token_ids([5, 5, 5] if side == "none" else [7, 4, 5])
    whole, rest = (
        Encoded(np.arange(3), ids, pad_left=side == "left").batch(range(3))
        for ids in ([np.append(lead, row) for row in rows], rows)
    )
    for site in method.plan(on.shape).sites:
        on.attention(site, lambda call, proceed, site=site: seen.setdefault(site, (call.k, call.v)) and proceed())
    wanted = run(on, whole)
    on.restore()
    attach(method, on)
    method.parts.double().eval()
    row = 0
    first = int(whole.mask[row].int().argmax())
    cos, sin = on.model.model.rotary_emb(torch.zeros(1, dtype=torch.float64), torch.tensor([[-P]]))
    with torch.no_grad():
        for site, (k, v) in seen.items():
            k = apply_rotary_pos_emb(k, k, cos, sin)[0]
            weights(method, site).key.copy_(k[row, :, first : first + P])
            weights(method, site).value.copy_(v[row, :, first : first + P])
    found = run(on, rest)
    for b in range(3):
        assert close(found[b][rest.mask[b]], wanted[b][whole.mask[b]][P:], 1e-6)


class TestBesidePeft:
    """peft puts the prefix in the cache, so its text begins at position p."""

    def peft_logits(self, on, given, projection, tables):
        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=P, prefix_projection=projection, encoder_hidden_size=6
        )
        network = copy.deepcopy(on.model)
        if tables is not None:  # learned positions: move the table, so that position p reads what position 0 read
            with torch.no_grad():
                network.transformer.wpe.weight.copy_(network.transformer.wpe.weight.roll(P, 0))
        model = peft.get_peft_model(network, config).double().eval()
        lively(model.prompt_encoder, std=0.7)
        with torch.no_grad():
            logits = model(**given.inputs).logits
        return logits, model.prompt_encoder["default"], sum(p.numel() for p in model.parameters() if p.requires_grad)

    @pytest.mark.parametrize("side", ["none", "right"])
    def test_p_tuning_v2_on_rotary_positions(self, side):
        """The two differ by a rotation of the keys by -p."""
        on, given = rotating(exact("tiny-llama", "generation")), text("tiny-llama", side)
        wanted, encoder, size = self.peft_logits(on, given, False, None)
        method = PTuningV2.create({"tokens": P})
        attach(method, on)
        method.parts.double().eval()
        table = encoder.embedding.weight.view(P, 4, 2, 8).permute(1, 2, 0, 3)
        cos, sin = on.model.model.rotary_emb(table, torch.tensor([[-P]]))
        with torch.no_grad():
            for layer, site in enumerate(method.planned.sites):
                key = table[2 * layer][None]
                weights(method, site).key.copy_(apply_rotary_pos_emb(key, key, cos, sin)[0][0])
                weights(method, site).value.copy_(table[2 * layer + 1])
        real = given.mask
        assert close(run(on, given)[real], wanted[real], 1e-6)
        assert size == sum(p.numel() for p in method.trained())

    @pytest.mark.parametrize("projection", [False, True])
    def test_learned_positions_with_and_without_an_mlp(self, projection):
        on, given = exact("tiny-gpt2", "generation"), text("tiny-gpt2", "right")
        wanted, encoder, size = self.peft_logits(on, given, projection, "moved")
        method = PrefixTuning.create({"tokens": P, "mid_dim": 6}) if projection else PTuningV2.create({"tokens": P})
        attach(method, on)
        method.parts.double().eval()
        with torch.no_grad():
            for layer, site in enumerate(method.planned.sites):
                module, rows = weights(method, site), slice(64 * layer, 64 * (layer + 1))
                if projection:
                    module.up.weight.copy_(encoder.transform[2].weight[rows])
                    module.up.bias.copy_(encoder.transform[2].bias[rows])
                    module.table.rows.copy_(encoder.embedding.weight)
                    module.table.down.load_state_dict(encoder.transform[0].state_dict())
                else:
                    table = encoder.embedding.weight[:, rows].view(P, 2, 4, 8).permute(1, 2, 0, 3)
                    module.key.copy_(table[0])
                    module.value.copy_(table[1])
        real = given.mask
        assert close(run(on, given)[real], wanted[real], 1e-6)
        assert size == sum(p.numel() for p in method.trained())


class TestPrefixTuning:
    settings = {"tokens": P, "mid_dim": 5}

    def test_folding_changes_nothing_and_leaves_the_prefix_alone(self):
        on, method, given = backbone("tiny-t5"), PrefixTuning.create(self.settings), text("tiny-t5")
        attach(method, on)
        method.parts.eval()
        before = run(on, given)
        method.prepare_inference()
        assert close(run(on, given), before)
        stored = method.state_dict()
        assert sum(t.numel() for t in stored.values()) == sum(p.numel() for p in method.kept()) == 6 * 2 * P * 32
        with torch.no_grad():
            for parameter in method.trained():
                parameter.zero_()
        assert close(run(on, given), before)

    def test_another_checkpoint_is_folded_again(self):
        context = trained(PrefixTuning.create(self.settings))
        method, on, given = context.method, context.backbone, text("tiny-bert")
        method.prepare_inference()
        before, kept = run(on, given), context.weights()
        lively(method.parts)
        method.prepare_inference()
        assert differ(run(on, given), before)
        context.load_weights(kept)
        method.prepare_inference()
        assert close(run(on, given), before)

    def test_training_goes_on_from_what_is_stored(self):
        context = trained(PrefixTuning.create(self.settings))
        fresh, method, given = backbone("tiny-bert"), PrefixTuning.create(self.settings), text("tiny-bert")
        attach(method, fresh, training(fresh, method, seed=1))
        method.load_state_dict(context.method.state_dict())
        fresh.head.load_state_dict(context.backbone.head.state_dict())
        assert close(run(fresh, given), run(context.backbone, given))
        assert sum(p.numel() for p in method.trained()) == sum(p.numel() for p in context.method.trained())
        assert all(g.abs().max() > 0 for g in gradients(fresh, given, method.trained()))
        method.prepare_inference()
        assert close(run(fresh, given), run(context.backbone, given))

    def test_each_kind_of_attention_has_a_table(self):
        method = PrefixTuning.create(self.settings)
        attach(method, backbone("tiny-t5"))
        tables = {name: module for name, module in method.parts.items() if name.startswith("shared/")}
        assert [name.removeprefix("shared/") for name in tables] == [
            "encoder/attn/core",
            "decoder/attn/core",
            "decoder/cross/core",
        ]
        assert weights(method, method.planned.sites[0]).table is tables["shared/encoder/attn/core"]

    def test_initial_values(self):
        method = PrefixTuning.create({"tokens": 200, "mid_dim": 16})
        attach(method, backbone("tiny-bert"))
        module = weights(method, method.planned.sites[0])
        assert abs(module.table.rows.std() - 1) < 0.03
        for linear in (module.table.down, module.up):
            for parameter in (linear.weight, linear.bias):
                assert 0.7 * linear.in_features**-0.5 < parameter.abs().max() <= linear.in_features**-0.5


class TestPTuningV2:
    def test_dropout_is_drawn_for_each_example_and_only_in_training(self):
        method, seen = PTuningV2.create({"dropout": 0.5, "tokens": 8}), []
        attach(method, backbone("tiny-bert"))
        module = weights(method, method.planned.sites[0])

        class Call:
            q = torch.zeros(2, 4, 1, 8)

            def attend_with(self, keys, values):
                seen.append((keys, values))

        module.train(True)(Call(), None)
        module.train(False)(Call(), None)
        (keys, values), (plain, _) = seen
        assert torch.equal(plain, module.key.expand_as(plain))
        assert set(torch.unique((keys / module.key).round(decimals=4)).tolist()) == {0.0, 2.0}
        assert not torch.equal(keys[0], keys[1]) and not torch.equal(keys == 0, values == 0)

    def test_initial_values(self):
        method = PTuningV2.create({"tokens": 200})
        attach(method, backbone("tiny-bert"))
        assert all(abs(p.std() - 0.02) < 1e-3 for p in method.trained())


class TestE2VPT:
    settings = {"tokens": 4, "kv_tokens": 2}

    @pytest.mark.parametrize(("name", "side"), CASES)
    def test_equals_a_loop_under_masks(self, name, side):
        on, method, norms = exact(name), E2VPT.create(self.settings), exact(name)
        attach(method, on)
        method.parts.double().eval()
        masks = method.parts["shared/masks"]
        with torch.no_grad():
            masks.zeta[1, 3] = masks.zeta[2, 5:] = masks.rho[3] = 0
        mask = torch.ones(4, 16, dtype=torch.float64)
        mask[1, 3] = mask[2, 5:] = mask[3] = 0

        def rows(site):
            module = weights(method, site)
            prompt = module.P.detach().clone()
            for k in range(16):
                prompt[:, k::16] *= mask[:, k : k + 1]
            norm = None if on.architecture.post_norm else norms.norms()[site._replace(name="norm.attn")]
            prompt = prompt if norm is None else norm(prompt).detach()
            return (torch.cat([module.S.detach(), projected(on, site, n, prompt)], 1) for n in "kv")

        planned = method.planned.sites
        check(on, method, prefix_loop(rows), batch(name, side), planned)

    @pytest.mark.filterwarnings("ignore:Initializing zero-element")
    def test_open_masks_and_no_shared_prefix_are_deep_prompts(self):
        on, other = backbone("tiny-vit"), backbone("tiny-vit")
        method, deep = E2VPT.create({"tokens": 4, "kv_tokens": 0}), VPTDeep.create({"tokens": 4})
        attach(method, on)
        attach(deep, other)
        method.parts.eval(), deep.parts.eval()
        with torch.no_grad():
            for site in method.planned.sites:
                weights(deep, site).rows.copy_(weights(method, site).P)
        assert close(run(on, images("tiny-vit")), run(other, images("tiny-vit")))

    def test_importance_is_the_gradient_of_a_mask(self):
        """By hand: of rho_j the sum over blocks and entries of dL/dP P, of a segment its entries only."""
        on, method = backbone("tiny-bert"), E2VPT.create(self.settings)
        context = training(on, method, data=encoded(4), batch_size=4)
        attach(method, on, context)
        tables = [weights(method, site).P for site in method.planned.sites]
        given = next(context.batches())
        method.parts.train(False)
        found = torch.autograd.grad(context.loss(context.forward(given), given), tables)
        each = sum(g * p for g, p in zip(found, tables, strict=True))
        tokens, segments = method.importance(context)
        assert close(tokens[:, 0], each.sum(1).abs(), 1e-6)
        assert close(segments, each.view(4, 2, 16).sum(1).abs(), 1e-6)
        assert not any(b.requires_grad for b in method.parts.buffers())

    def test_the_least_are_masked_and_some_stay(self):
        method = E2VPT.create(self.settings)
        rho, zeta = method.choose(torch.tensor([[3.0], [1.0], [2.0], [4.0]]), torch.arange(64.0).view(4, 16))
        assert rho[:, 0].tolist() == [1, 0, 0, 1]
        assert zeta.tolist() == [[0] * 8 + [1] * 8] * 4
        assert E2VPT.create(self.settings | {"token_percent": 100, "segment_percent": 90}).masked() == (3, 12)

    def test_the_second_training_begins_again_with_fixed_masks(self):
        """With nothing masked it repeats the first one, bit for bit."""
        runs = []
        for percent in (0, 50):
            settings = self.settings | {"dropout": 0.0, "token_percent": percent, "segment_percent": percent}
            on, method, ends = backbone("tiny-llama"), E2VPT.create(settings), []
            context = training(on, method, max_steps=3)
            between = method.between
            method.between = lambda done, ctx, a=between, e=ends, c=context: (e.append(c.weights()), a(done, ctx))
            attach(method, on, context)
            context.run()
            runs.append((method, ends))
        (_, (open_, again)), (method, (first, second)) = runs
        assert all(torch.equal(open_[name], again[name]) for name in open_)
        assert all(torch.equal(open_[name], first[name]) for name in open_)
        masks = method.parts["shared/masks"]
        assert (masks.rho.sum(), masks.zeta.sum()) == (2, 4 * 8)
        start = E2VPT.create(self.settings)
        attach(start, backbone("tiny-llama"))
        closed = ~masks().bool().repeat(1, 2)
        for site in method.planned.sites:
            now, before = weights(method, site).P, weights(start, site).P
            assert torch.equal(now[closed], before[closed]) and not torch.equal(now[~closed], before[~closed])

    def test_what_is_stored_leaves_out_what_is_masked(self):
        context = trained(E2VPT.create(self.settings))
        state = context.method.state_dict()
        assert sum(t.numel() for t in state.values()) == 2 * (2 * 8 * 2 + 2 * 32) + 4 * 16
        fresh, method = backbone("tiny-bert"), E2VPT.create(self.settings)
        attach(method, fresh, training(fresh, method, seed=1))
        method.load_state_dict(state)
        fresh.head.load_state_dict(context.backbone.head.state_dict())
        method.parts.eval()
        assert close(run(fresh, text("tiny-bert")), run(context.backbone, text("tiny-bert")))
        again = method.state_dict()
        assert all(torch.equal(again[name], state[name]) for name in state)


COUNTS = [
    ("prefix_tuning", "gpt2-medium", {}, 25_750_016, 491_520, "by its formula"),
    ("prefix_tuning", "gpt2-medium", {"tokens": 5}, 25_744_896, 245_760, "0.1 % of 355M"),
    ("p_tuning_v2", "llama-7b", {"tokens": 10}, 2_621_440, 2_621_440, "LLM-Adapters as ReFT has it (0.039 %)"),
    ("p_tuning_v2", "llama-3.2-3b", {"tokens": 200}, 11_468_800, 11_468_800, "huggingface/peft method comparison"),
    ("p_tuning_v2", "llama-3.2-3b", {"tokens": 50}, 2_867_200, 2_867_200, "huggingface/peft method comparison"),
    ("p_tuning_v2", "roberta-large", {"tokens": 8}, 393_216, 393_216, "by its formula"),
    ("p_tuning_v2", "roberta-large", {"tokens": 128}, 6_291_456, 6_291_456, "by its formula"),
    ("p_tuning_v2", "bert-large", {}, 983_040, 983_040, "by its formula"),
    ("p_tuning_v2", "bert-base", {}, 368_640, 368_640, "huggingface/peft documentation, head apart"),
]


@pytest.mark.parametrize(("method", "model", "settings", "trained", "stored", "source"), COUNTS)
def test_published_counts(method, model, settings, trained, stored, source):
    counted = count(method, model, settings)
    assert (counted["trained"], counted["stored"], counted["added_at_inference"]) == (trained, stored, stored), source
    assert counted["agrees"] and counted["expected"]["added"] == stored


def test_a_count_that_does_not_agree():
    """DoRA prints 0.11 % for a prefix on LLaMA-7B: 30 tokens would give it, its 13B row needs 10."""
    tokens = {n: count("p_tuning_v2", "llama-7b", {"tokens": n})["trained_percent"] for n in (10, 30)}
    assert round(tokens[10], 3) == 0.039 and round(tokens[30], 2) == 0.12


def test_bloom_has_no_place_for_a_prefix():
    """The 983,040 of peft's documentation (20 tokens on BLOOMZ-560m) are 20 * 2 * 24 * 1024."""
    with pytest.raises(Exception, match="computes its attention itself"):
        count("p_tuning_v2", "bloomz-560m", {})


def test_count_of_e2vpt():
    """12 * (10 * 768 + 5 * 768); the authors' code counts the 17 * 10 entries of its masks with it."""
    counted = count("e2vpt", "vit-b16", {})
    assert counted["trained"] + 17 * 10 == 138_410 and counted["agrees"]


def test_the_kernel_stays_fused(monkeypatch):
    """One call of the fused kernel an attention, with the prefix inside."""
    calls, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *a, **k: calls.append(a[1].shape[2]) or kernel(*a, **k)
    )
    on, method = backbone("tiny-bert"), PTuningV2.create({"tokens": P})
    attach(method, on)
    run(on, text("tiny-bert"))
    assert calls == [7 + P] * 2
