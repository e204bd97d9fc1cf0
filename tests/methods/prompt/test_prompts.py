"""Prompt tokens, deep prompts and query tokens: against peft, and against their formulas written again."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.base.prompts import embedded
from methods.prompt.dept import DePT
from methods.prompt.idpt import IDPT, Generator
from methods.prompt.p_tuning import PromptEncoder, PTuning
from methods.prompt.prompt_tuning import PromptTuning
from methods.prompt.vpt_deep import VPTDeep
from methods.prompt.vpt_shallow import VPTShallow
from methods.prompt.vqt import VQT
from models.entries import model as model_entry
from models.load import load
from models.shape import SiteId
from tests.helpers import (
    attach,
    backbone,
    batch,
    close,
    differ,
    images,
    lively,
    run,
    single,
    text,
    trained,
    training,
)
from workflow.count import count

peft = pytest.importorskip("peft")

SIDES = pytest.mark.parametrize("side", ["right", "left", "none"])


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def made(plugin, name, task=None, dtype=None, seed=3, **settings):
    """A method attached to a tiny network, every trained number of it random; evaluation mode."""
    on, method = backbone(name, task, dtype=dtype), plugin.create(settings)
    attach(method, on)
    lively(method.parts, seed)
    method.parts.train(False)
    return on, method


def table(on):
    part = "encoder" if on.kind == "encoder_decoder" else ""
    return on.map_.modules[SiteId(part, -1, "embed.token")]


@torch.no_grad()
def by_embeddings(plain, joined, labels=None):
    """Logits of one text given as embeddings (1, L, d)."""
    if plain.kind == "encoder_decoder":
        return plain.model(inputs_embeds=joined, labels=labels).logits
    out = plain.model(inputs_embeds=joined)
    return out.logits if plain.head is None else plain.head.out(out.pooler_output)


class TestPromptTuning:
    @pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-opt-post"])
    @pytest.mark.parametrize("side", ["right", "none"])
    def test_against_peft(self, name, side):
        """Padded on the left, peft has its prompt before the padding."""
        on, method = made(PromptTuning, name, "generation", torch.float64, tokens=5)
        given, model = text(name, side), copy.deepcopy(backbone(name, "generation", dtype=torch.float64).model)
        config = peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=5, token_dim=on.shape.embedding_width, num_layers=2
        )
        theirs = peft.get_peft_model(model, config)
        rows = theirs.prompt_encoder["default"].embedding.weight
        rows.data = method.parts["prompt"].rows.detach().double()
        assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == method.trained()[0].numel()
        with torch.no_grad():
            expected = theirs.eval()(**given.inputs).logits[:, 5:][given.mask]
            found = on.forward(given).logits[on.state.mask & ~on.state.slots]
        assert close(found, expected, 1e-6)

    def test_peft_reads_the_class_of_bert_from_its_first_row(self):
        """Here the prompt follows [CLS], which stays the first token."""
        on, method = made(PromptTuning, "tiny-bert", dtype=torch.float64, tokens=5)
        plain, given = backbone("tiny-bert", dtype=torch.float64), text("tiny-bert", "none")
        theirs = peft.get_peft_model(
            copy.deepcopy(plain.model), peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=5)
        )
        rows = method.parts["prompt"].rows.detach().double()
        theirs.prompt_encoder["default"].embedding.weight.data = rows
        with torch.no_grad():
            words = table(plain)(given.inputs["input_ids"])
            first = torch.cat([rows.expand(3, -1, -1), words], 1)
            behind = torch.cat([words[:, :1], rows.expand(3, -1, -1), words[:, 1:]], 1)
            hidden = theirs.eval()(**given.inputs).last_hidden_state
            assert close(hidden, plain.model(inputs_embeds=first).last_hidden_state, 1e-6)
            assert close(on.forward(given).hidden, plain.model(inputs_embeds=behind).last_hidden_state, 1e-6)
        assert differ(on.forward(given).hidden[:, 0], hidden[:, 0])

    @pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma", "tiny-gemma3", "tiny-gpt2", "tiny-bloom", "tiny-t5"])
    def test_a_prompt_of_words_is_text(self, name):
        """P := what the network reads for some tokens, scaled in Gemma: the same as those tokens before the text."""
        on, plain, given = backbone(name, "generation"), backbone(name, "generation"), text(name, "none")
        method, ids = PromptTuning.create({"tokens": 4}), torch.tensor([7, 50, 8, 93])
        attach(method, on)
        with torch.no_grad():
            method.parts["prompt"].rows.copy_(embedded(on, ids))
        out = run(on, given)
        longer = replace(given, inputs={"input_ids": torch.cat([ids.expand(3, -1), given.inputs["input_ids"]], 1)})
        longer.inputs["attention_mask"] = torch.ones_like(longer.inputs["input_ids"])
        assert close(out, run(plain, longer), 1e-4)

    def test_starts_at_different_frequent_tokens(self):
        on, method = backbone("tiny-llama", "generation"), PromptTuning.create({"tokens": 10, "vocabulary": 12})
        attach(method, on)
        same = (method.parts["prompt"].rows[:, None] == table(on).weight).all(-1)
        assert (same.sum(1) == 1).all() and same.sum(0).max() == 1 and not same[:, 12:].any()

    def test_starts_at_words(self):
        on, method = backbone("tiny-bert"), PromptTuning.create({"tokens": 4, "words": ["very good", "bad"]})
        attach(method, on)
        rows, ids = method.parts["prompt"].rows, on.tokenizer(["very", "good", "bad"], add_special_tokens=False)
        very, good, bad = (table(on).weight[i[0]] for i in ids["input_ids"])
        assert close(rows[0], (very + good) / 2, 1e-6) and close(rows[1], bad, 1e-6)

    @pytest.mark.parametrize("name", ["tiny-t5", "tiny-bert"])
    @SIDES
    def test_the_whole_network_by_embeddings(self, name, side):
        (on, method), plain, given = made(PromptTuning, name, tokens=3), backbone(name), text(name, side)
        out, special = run(on, given), on.shape.first_slot
        for row in range(3):
            one = single(given, row)
            words = table(plain)(one.inputs["input_ids"])
            joined = torch.cat([words[:, :special], method.parts["prompt"].rows[None], words[:, special:]], 1)
            assert close(out[row], by_embeddings(plain, joined, one.labels)[0], 1e-4)

    def test_says_what_has_no_room(self):
        shape = backbone("tiny-bert").shape
        assert "no room" in PromptTuning.create({"tokens": 64}).supports(shape, None)
        assert PromptTuning.create({"tokens": 63}).supports(shape, None) is None
        assert "vision" in PromptTuning().supports(backbone("tiny-vit").shape, None)


def lstm_by_hand(lstm, x):
    """Both directions of each layer, a gate and a time step at a time: x (m, d) -> (m, 2 h)."""
    for layer in range(lstm.num_layers):
        out = []
        for direction, steps in (("", range(len(x))), ("_reverse", reversed(range(len(x))))):
            W, U, b, c = (
                getattr(lstm, f"{n}_l{layer}{direction}") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            hidden = cell = x.new_zeros(lstm.hidden_size)
            rows = [None] * len(x)
            for t in steps:
                i, f, g, o = (W @ x[t] + b + U @ hidden + c).chunk(4)
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                rows[t] = hidden = o.sigmoid() * cell.tanh()
            out.append(torch.stack(rows))
        x = torch.cat(out, 1)
    return x


class TestPTuning:
    @pytest.mark.parametrize(("encoder", "hidden"), [("lstm", None), ("lstm", 24), ("mlp", None), ("mlp", 20)])
    def test_against_peft(self, encoder, hidden):
        """The paper's LSTM has half the width of the embeddings in each direction."""
        on, method = made(PTuning, "tiny-llama", "generation", torch.float64, encoder=encoder, hidden=hidden)
        given = text("tiny-llama")
        config = peft.PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=9,
            encoder_reparameterization_type=encoder.upper(),
            encoder_hidden_size=hidden or (16 if encoder == "lstm" else 32),
        )
        theirs = peft.get_peft_model(
            copy.deepcopy(backbone("tiny-llama", "generation", dtype=torch.float64).model), config
        )
        inside, prompt = theirs.prompt_encoder["default"], method.parts["prompt"].double()
        inside.double().embedding.weight.data = prompt.E.data
        inside.mlp_head.load_state_dict(prompt.mlp.state_dict())
        if encoder == "lstm":
            inside.lstm_head.load_state_dict(prompt.lstm.state_dict())
        assert sum(p.numel() for p in theirs.parameters() if p.requires_grad) == sum(
            p.numel() for p in method.trained()
        )
        with torch.no_grad():
            expected = theirs.eval()(**given.inputs).logits[:, 9:][given.mask]
            found = on.forward(given).logits[on.state.mask & ~on.state.slots]
        assert close(found, expected, 1e-6)

    def test_the_encoder_by_hand(self):
        prompt = PromptEncoder(4, 12, "lstm", None).double()
        lively(prompt)
        first, _, second = prompt.mlp
        x = lstm_by_hand(prompt.lstm, prompt.E)
        expected = (x @ first.weight.T + first.bias).clamp_min(0) @ second.weight.T + second.bias
        assert close(prompt(), expected, 1e-9)

    def test_what_is_kept_is_a_plain_prompt(self):
        context = trained(PTuning(), "tiny-bert", max_steps=2)
        on, method, given = context.backbone, context.method, text("tiny-bert", "left")
        before = run(on, given)
        method.prepare_inference()
        assert torch.equal(run(on, given), before)
        (H,) = method.state_dict().values()
        plain, other = made(PromptTuning, "tiny-bert", tokens=9)
        plain.head.load_state_dict(on.head.state_dict())
        other.parts["prompt"].rows.data = H
        assert torch.equal(run(plain, given), before)

    def test_another_checkpoint_takes_its_place(self):
        """`prepare_inference` follows the weights of the encoder, not what was kept before."""
        context = trained(PTuning(), "tiny-bert", max_steps=1)
        on, method, given = context.backbone, context.method, text("tiny-bert")
        early, before = context.weights(), run(on, given)
        lively(method.parts, 9)
        method.prepare_inference()
        assert differ(run(on, given), before)
        context.load_weights(early)
        method.prepare_inference()
        assert torch.equal(run(on, given), before)

    def test_training_goes_on_from_what_was_stored(self):
        first, fresh = made(PTuning, "tiny-bert", seed=1)[1], PTuning()
        first.prepare_inference()
        on = backbone("tiny-bert")
        context = attach(fresh, on)
        fresh.load_state_dict(first.state_dict())
        prompt = fresh.parts["prompt"]
        assert close(prompt.encode(), first.parts["prompt"].H, 1e-5)
        context.run()
        fresh.prepare_inference()
        assert 1e-4 < (prompt.H - first.parts["prompt"].H).abs().max() < 1

    def test_an_encoder_that_does_nothing_is_prompt_tuning(self):
        (on, method), given = made(PTuning, "tiny-t5", tokens=4), text("tiny-t5")
        plain, other = made(PromptTuning, "tiny-t5", tokens=4)
        prompt = method.parts["prompt"]
        prompt.lstm, prompt.mlp = None, nn.Identity()
        other.parts["prompt"].rows.data = prompt.E.data
        assert torch.equal(run(on, given), run(plain, given))

    @pytest.mark.parametrize("encoder", ["lstm", "mlp"])
    def test_gradients_reach_all_of_it(self, encoder):
        on, method = made(PTuning, "tiny-bert", encoder=encoder)
        on.forward(text("tiny-bert")).logits.sum().backward()
        assert all(p.grad.abs().max() > 0 for p in method.trained())

    def test_starts_as_torch_does(self):
        prompt, reference = PromptEncoder(9, 64, "lstm", None), PromptEncoder(9, 64, "lstm", None)
        prompt.initialise(torch.Generator().manual_seed(0))
        for name, parameter in prompt.named_parameters():
            if name not in ("E", "H"):
                theirs = reference.get_parameter(name)
                largest = parameter.abs().max().item()
                assert math.isclose(largest, theirs.abs().max().item(), rel_tol=0.1)
                assert parameter.mean().abs() < 0.3 * largest
        assert 0.9 < prompt.E.std() < 1.1

    def test_an_unknown_encoder_is_refused(self):
        assert "lstm or mlp" in PTuning.create({"encoder": "gru"}).supports(backbone("tiny-bert").shape, None)


class TestDePT:
    def test_with_b_at_zero_it_is_prompt_tuning(self):
        on, method = backbone("tiny-llama", "generation"), DePT.create({"tokens": 5})
        attach(method, on)
        plain, other = made(PromptTuning, "tiny-llama", "generation", tokens=5)
        other.parts["prompt"].rows.data = method.parts["prompt"].rows.data
        assert method.parts["offset"].A.abs().max() > 0
        assert torch.equal(run(on, text("tiny-llama")), run(plain, text("tiny-llama")))

    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama", "tiny-t5", "tiny-opt-post"])
    @SIDES
    def test_the_whole_network_by_embeddings(self, name, side):
        """Each text alone, its embeddings shifted row by row by hand; c = 8 / sqrt(r)."""
        on, method = made(DePT, name, "generation" if name != "tiny-bert" else None, tokens=3, rank=4, length=5)
        plain, given = backbone(name, "generation" if name != "tiny-bert" else None), text(name, side)
        out, special, offset = run(on, given), on.shape.first_slot, method.parts["offset"]
        keep = None if name in ("tiny-bert", "tiny-t5") else on.state.mask & ~on.state.slots
        for row in range(3):
            one = single(given, row)
            words = table(plain)(one.inputs["input_ids"]).detach().clone()
            for i in range(min(5, words.shape[1])):
                words[0, i] += 8 / 2 * (offset.A[i] @ offset.B)
            joined = torch.cat([words[:, :special], method.parts["prompt"].rows[None], words[:, special:]], 1)
            expected = by_embeddings(plain, joined, one.labels)[0]
            found = out[row] if keep is None else out[row][keep[row]]
            assert close(found, expected if keep is None else expected[3:], 1e-4)

    @SIDES
    def test_a_completion_is_not_shifted(self, side):
        on, method = made(DePT, "tiny-llama", "generation", tokens=2)
        given, seen = text("tiny-llama", side), []
        given.prompt_length = given.mask.sum(1) - 2
        table(on).register_forward_hook(lambda module, args, out: seen.append(out))
        run(on, given)
        with torch.no_grad():
            method.parts["offset"].B.zero_()
        run(on, given)
        shifted = (seen[0] - seen[1]).abs().amax(-1) > 0
        for row in range(3):
            real = (on.state.mask & ~on.state.slots)[row]
            assert shifted[row, real].tolist() == [True] * int(real.sum() - 2) + [False] * 2
            assert not shifted[row, ~real].any()

    def test_two_learning_rates_and_no_decay(self):
        on, method = made(DePT, "tiny-bert", tokens=3)
        context = training(on, method, lr=0.3)
        first, second, *_ = context._build_optimizer().param_groups
        assert [first["lr"], second["lr"]] == [0.3, 5e-4] and first["weight_decay"] == second["weight_decay"] == 0
        assert [len(first["params"]), len(second["params"])] == [1, 2]

    def test_starts_at_a_text(self):
        on, method = backbone("tiny-bert"), DePT.create({"tokens": 7, "text": "good or bad"})
        attach(method, on)
        (ids,) = on.tokenizer(["good or bad"])["input_ids"]
        assert torch.equal(method.parts["prompt"].rows, table(on).weight[(ids * 2)[:7]])

    @pytest.mark.parametrize(("tokens", "length", "rank"), [(60, 256, 30), (40, 256, 45), (60, 512, 24), (80, 256, 15)])
    def test_counts_as_much_as_the_prompt_it_replaces(self, tokens, length, rank):
        found = count("dept", "t5-base", {"tokens": tokens, "length": length, "rank": rank})
        assert (
            found["trained"]
            == found["expected"]["trained"]
            == count("prompt_tuning", "t5-base", {})["trained"]
            == 76_800
        )


class TestVPTShallow:
    @pytest.mark.parametrize(("name", "special"), [("tiny-vit", 1), ("tiny-deit", 2), ("tiny-dinov2", 1)])
    @pytest.mark.parametrize("last", [False, True])
    def test_tokens_put_in_by_hand(self, name, special, last):
        """Behind the class token or behind all patches: attention does not tell, as prompts have no position."""
        (on, method), plain, given = made(VPTShallow, name, tokens=4), backbone(name), images(name)
        rows, at = method.parts["prompt"].rows, 17 if last else special

        def insert(module, args, out):
            return torch.cat([out[:, :at], rows.expand(len(out), -1, -1), out[:, at:]], 1)

        plain.map_.modules[SiteId("", -1, "embed")].register_forward_hook(insert)
        first = plain.model(**given.inputs).last_hidden_state[:, 0]
        assert close(on.forward(given).hidden[:, 0], first, 1e-5)

    def test_the_order_of_rows_does_not_matter_and_zero_rows_do(self):
        (on, method), given = made(VPTShallow, "tiny-vit", tokens=4), images("tiny-vit")
        before, rows = run(on, given), method.parts["prompt"].rows
        with torch.no_grad():
            rows.copy_(rows.flip(0))
        assert close(run(on, given), before)
        with torch.no_grad():
            rows.zero_()
        assert differ(run(on, given), run(backbone("tiny-vit"), given))

    @pytest.mark.parametrize("plugin", [VPTShallow, VPTDeep, VQT])
    def test_starts_within_the_bound(self, plugin):
        """Patches of 4 x 4 pixels in three colours, width 32."""
        method = plugin.create({"tokens": 30})
        attach(method, backbone("tiny-vit"))
        v = math.sqrt(6 / (3 * 4 * 4 + 32))
        for rows in method.trained():
            assert 0.95 * v < rows.abs().max() <= v and abs(rows.mean()) < 0.1 * v

    def test_dropout_is_drawn_for_each_example(self):
        on, method = made(VPTShallow, "tiny-vit", tokens=4, dropout=0.5)
        given = images("tiny-vit")
        given.inputs["pixel_values"][1] = given.inputs["pixel_values"][0]
        assert torch.equal(*run(on, given)[:2])
        method.parts.train(True)
        assert differ(*run(on, given)[:2])


class TestVPTDeep:
    @pytest.mark.parametrize("name", ["tiny-vit", "tiny-deit", "tiny-dinov2"])
    def test_tokens_put_in_before_each_block(self, name):
        """The paper's form: prompts in the sequence, behind the class token, taken out after each block."""
        (on, method), plain, given = made(VPTDeep, name, tokens=4), backbone(name), images(name)

        def around(prompt):
            def run_block(call):
                x, rows = call.hidden, prompt.rows.expand(len(call.hidden), -1, -1)
                assert x.shape[1] == 16 + on.shape.first_slot
                out = call.proceed(torch.cat([x[:, :1], rows, x[:, 1:]], 1))
                return torch.cat([out[:, :1], out[:, 5:]], 1)

            return run_block

        for (part, layer), prompt in zip(on.shape.blocks, method.parts.values(), strict=True):
            plain.around(SiteId(part, layer, "block"), around(prompt))
        assert close(run(on, given), run(plain, given), 1e-5)
        assert differ(run(on, given), run(backbone(name), given))

    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2", "tiny-roberta"])
    @SIDES
    def test_tokens_added_to_each_block_of_a_text(self, name, side):
        (on, method), plain, given = made(VPTDeep, name, tokens=4), backbone(name), text(name, side)

        def around(prompt):
            return lambda call: call.proceed(extra=prompt.rows[None], extra_as="both")[:, :-4]

        for (part, layer), prompt in zip(on.shape.blocks, method.parts.values(), strict=True):
            plain.around(SiteId(part, layer, "block"), around(prompt))
        assert close(run(on, given), run(plain, given), 1e-5)

    @pytest.mark.parametrize(
        "name", ["tiny-llama", "tiny-gemma3", "tiny-qwen3", "tiny-modernbert", "tiny-t5", "tiny-swin"]
    )
    @SIDES
    def test_explicit_attention(self, name, side):
        """softmax over prompts and text, a head at a time, with the weights of the block; text keeps its positions."""
        on, method = made(VPTDeep, name, tokens=4)
        plain, given = backbone(name), batch(name, side)

        def attend(site, prompt):
            norm = plain.map_.norms.get(site._replace(name="norm.attn"), nn.Identity())

            def function(call, proceed):
                rows, made = norm(prompt.rows), {}
                for n in "kv":
                    place = plain.site(site._replace(name=f"attn.{n}"))
                    bias = 0 if place.bias() is None else place.bias()
                    made[n] = (rows @ place.weight().T + bias).unflatten(-1, (-1, call.q.shape[-1]))
                normed = plain.map_.norms.get(site._replace(name="norm.k"))
                k, out, scores = made["k"] if normed is None else normed(made["k"]), [], call.scores()
                group = call.q.shape[1] // call.k.shape[1]
                for h in range(call.q.shape[1]):
                    prefix = call.q[:, h] @ k[:, h // group].T * call.scale
                    weights = torch.cat([prefix, scores[:, h]], -1).softmax(-1)
                    values = made["v"][:, h // group].expand(len(weights), -1, -1)
                    out.append(weights @ torch.cat([values, call.v[:, h // group]], 1))
                return torch.stack(out, 1)

            return function

        for name_, prompt in method.parts.items():
            part, layer = name_.split("/")[0] if "coder" in name_ else "", int(name_.split("/")[-3])
            site = SiteId(part, layer, "attn.core")
            plain.attention(site, attend(site, prompt))
        assert on.shape.kind != "encoder_decoder" or all("encoder" in name_ for name_ in method.parts)
        assert close(run(on, given), run(plain, given), 2e-5)

    def test_one_block_is_vpt_shallow(self):
        def one(plugin):
            entry = model_entry("tiny-vit")
            on = load(
                replace(entry, config=entry.config | {"num_hidden_layers": 1}), "classification", labels=3, seed=0
            )
            lively(on.model)
            on.train(False)
            method = plugin.create({"tokens": 4})
            attach(method, on)
            lively(method.parts, 3)
            method.parts.train(False)
            return run(on, images("tiny-vit"))

        assert close(one(VPTDeep), one(VPTShallow), 1e-5)

    def test_dropout_is_drawn_for_each_example(self):
        on, method = made(VPTDeep, "tiny-vit", tokens=4, dropout=0.5)
        given = images("tiny-vit")
        given.inputs["pixel_values"][1] = given.inputs["pixel_values"][0]
        assert close(*run(on, given)[:2])
        method.parts.train(True)
        assert differ(*run(on, given)[:2])

    @pytest.mark.parametrize("name", ["tiny-deberta", "tiny-bloom"])
    def test_attention_that_cannot_be_replaced_is_refused(self, name):
        assert "attention itself" in VPTDeep().supports(backbone(name).shape, None)


class TestVQT:
    @pytest.mark.parametrize("name", ["tiny-vit", "tiny-deit", "tiny-bert", "tiny-roberta"])
    def test_tokens_are_those_of_the_frozen_network(self, name):
        (on, _), plain, given = made(VQT, name, tokens=3), backbone(name), batch(name)
        out = on.forward(given)
        assert torch.equal(out.hidden, plain.forward(given).hidden)
        assert not out.hidden.requires_grad and out.logits.requires_grad

    @pytest.mark.parametrize(
        ("name", "side"), [("tiny-vit", "none"), *[("tiny-bert", s) for s in ("left", "right", "none")]]
    )
    def test_features_by_hand(self, name, side):
        """A block written out for one query at a time, on what the frozen block reads."""
        (on, method), plain, given = made(VQT, name, tokens=3), backbone(name), batch(name, side)
        found, inputs = run(on, given), {}
        for site in plain.modules("block"):
            plain.around(site, lambda call, s=site: inputs.update({s: call.hidden}) or call.proceed())
        hidden = plain.forward(given).hidden
        chunks = []
        for site, x in inputs.items():
            chunks.append(
                torch.stack(
                    [self.ask(plain, site, x, given.mask, q) for q in method.parts[str(site).replace(".", "/")].rows], 1
                )
            )
        head, weights = on.head, method.weights
        first = hidden[:, 0] if name == "tiny-vit" else plain.model.pooler(plain.head_row(hidden))
        features = torch.cat([c.flatten(1) / c.flatten(1).norm(dim=1, keepdim=True) for c in chunks], 1)
        assert features.shape[1] == 2 * 3 * 32
        expected = head.out.weight @ (first / first.norm(dim=1, keepdim=True)).T + weights @ features.T
        assert close(found, expected.T + head.out.bias, 1e-4)

    @torch.no_grad()
    def ask(self, plain, site, x, mask, q):
        """(B, d): the row that block makes of q (d,) when keys and values are those of x (B, L, d)."""
        linear = {
            n: plain.map_.linears[site._replace(name=n)].module
            for n in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.down")
        }
        norms = [plain.map_.norms[site._replace(name=n)] for n in ("norm.attn", "norm.mlp")]
        post = plain.architecture.post_norm
        rows, tokens = (q, x) if post else (norms[0](q), norms[0](x))
        query, keys, values = linear["attn.q"](rows), linear["attn.k"](tokens), linear["attn.v"](tokens)
        heads = []
        for h in range(4):
            s = slice(8 * h, 8 * h + 8)
            scores = keys[..., s] @ query[s] / math.sqrt(8)
            scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
            heads.append((scores.softmax(-1)[..., None] * values[..., s]).sum(1))
        z = q + linear["attn.o"](torch.cat(heads, 1))
        z = norms[0](z) if post else z
        branch = linear["mlp.down"](F.gelu(linear["mlp.up"](z if post else norms[1](z))))
        return norms[1](z + branch) if post else z + branch

    def test_a_query_like_the_class_token_returns_the_class_token(self):
        on, plain, given = backbone("tiny-vit"), backbone("tiny-vit"), images("tiny-vit", count=1)
        method, seen = VQT(), {}
        attach(method, on)
        method.parts.train(False)
        for site in plain.modules("block"):
            plain.around(site, lambda call, s=site: seen.setdefault(s, (call.hidden, call.proceed()))[1])
        run(plain, given)
        with torch.no_grad():
            for (x, _), prompt in zip(seen.values(), method.parts.values(), strict=True):
                prompt.rows.copy_(x[0, :1])
        run(on, given)
        assert all(close(on.state.memory[site], y[:, 0], 1e-5) for site, (_, y) in seen.items())

    def test_the_head_is_as_wide_as_the_paper_says(self):
        on, method = made(VQT, "tiny-vit", tokens=3)
        assert sum(p.numel() for p in on.head.parameters()) == 3 * 32 * (1 + 2 * 3) + 3
        found = count("vqt", "vit-b16", {}, labels=100)
        assert (found["trained"], found["head"]) == (9_216, 998_500)
        method.detach()
        assert sum(p.numel() for p in on.head.parameters()) == 3 * 32 + 3

    def test_what_a_query_learns_does_not_hang_on_other_blocks(self):
        """The gradient of the first block's queries is the same when the last block has other queries."""
        gradients = []
        for seed in (1, 2):
            on, method = made(VQT, "tiny-vit")
            first, last = method.parts.values()
            lively(last, seed)
            on.forward(images("tiny-vit")).logits.sum().backward()
            gradients.append(first.rows.grad)
        assert torch.equal(*gradients)

    @pytest.mark.parametrize("name", ["tiny-swin", "tiny-modernbert", "tiny-deberta", "tiny-llama"])
    def test_refusals(self, name):
        assert VQT().supports(backbone(name).shape, None)


def edge_by_edge(generator, y):
    """g of one input's tokens y (n, d), in evaluation, by loops."""
    z, collected = y, []

    def finish(pooled, v):
        n = pooled.norm
        v = (v - n.mean) / (n.variance + 1e-5).sqrt() * n.weight + n.bias
        return torch.where(v > 0, v, 0.2 * v)

    for edge in generator.edges:
        rows = []
        for i in range(len(z)):
            near = (z - z[i]).norm(dim=1).argsort()[: generator.k]
            found = [finish(edge, edge.W @ torch.cat([z[j] - z[i], z[i]])) for j in near]
            rows.append(torch.stack(found).amax(0))
        z = torch.stack(rows)
        collected.append(z)
    joined = torch.cat(collected, 1)
    return torch.stack([finish(generator.last, generator.last.W @ row) for row in joined]).amax(0)


def generator(width=6, k=3):
    made = Generator(width, k)
    lively(made)
    for norm in (*(e.norm for e in made.edges), made.last.norm):
        norm.variance.data.abs_().add_(0.5)
    return made.double().train(False)


class TestIDPT:
    @pytest.mark.parametrize("lengths", [(7, 7, 7), (7, 2, 4)])
    def test_the_generator_by_loops(self, lengths):
        """Padding is anything at all; with fewer tokens than k all are neighbours."""
        g = generator()
        y = torch.randn(3, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        real = torch.arange(7) < torch.tensor(lengths)[:, None]
        with torch.no_grad():
            found = g(y, real, False)
            for row, length in enumerate(lengths):
                assert close(found[row, 0], edge_by_edge(g, y[row, :length]), 1e-9)

    def test_statistics_are_those_of_real_tokens(self):
        """What padding holds changes neither the prompt of a training step nor the running statistics."""
        real, found = torch.arange(7) < torch.tensor([7, 2, 4])[:, None], []
        for filler in (0.0, 100.0):
            g = generator().train(True)
            y = torch.randn(3, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            y[~real] = filler
            found.append([g(y, real, True).detach(), *(n.detach() for n in g.state_dict().values())])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))

    def test_batch_norm_is_torchs(self):
        g, reference = generator().last.norm.train(True), nn.BatchNorm1d(6).double()
        reference.load_state_dict(
            {"weight": g.weight, "bias": g.bias, "running_mean": g.mean, "running_var": g.variance}, strict=False
        )
        rows = torch.randn(5, 6, dtype=torch.float64)
        assert close(g(rows, True), reference(rows), 1e-12) and close(g.variance, reference.running_var, 1e-12)
        assert close(g.train(False)(rows, False), reference.eval()(rows), 1e-12)

    @pytest.mark.parametrize(
        ("name", "side"),
        [("tiny-vit", "none"), ("tiny-deit", "none"), *[("tiny-bert", s) for s in ("left", "right", "none")]],
    )
    def test_the_last_block_by_hand(self, name, side):
        """Each example alone, the prompt in the sequence behind the special tokens."""
        (on, method), plain, given = made(IDPT, name), backbone(name), batch(name, side)
        for p in [p for n, p in method.parts.named_parameters() if n.endswith("variance")]:
            p.data.abs_().add_(0.5)
        found, special = run(on, given), on.shape.first_slot
        last, norm = list(plain.modules("block"))[-1], plain.map_.norms.get(SiteId("", -1, "norm.final"), nn.Identity())
        seen = {}

        def block(call):
            p = edge_by_edge(method.parts["generator"], call.hidden[0, special:])[None, None]
            x = torch.cat([call.hidden[:, :special], p, call.hidden[:, special:]], 1)
            seen["read"] = norm(call.run(x, **{k: v for k, v in call.kwargs.items() if k != "attention_mask"}))
            out = call.proceed(extra=p)
            return out[:, :-1]

        plain.around(last, block)
        for row in range(3):
            one = images(name) if name != "tiny-bert" else single(given, row)
            if name != "tiny-bert":
                one = one.rows_slice(slice(row, row + 1))
            hidden = plain.forward(one).hidden
            read = seen["read"][0]
            first = plain.model.pooler(hidden)[0] if name == "tiny-bert" else read[0]
            further = torch.cat([read[special], read[special + 1 :].amax(0)])
            assert close(found[row], plain.head.out(first) + method.weights @ further, 1e-4)

    def test_the_prompt_is_that_of_the_input(self):
        on, method = made(IDPT, "tiny-vit")
        given = images("tiny-vit")
        run(on, given)
        prompts = on.state.memory[method.site][:, :32]
        assert differ(prompts[0], prompts[1])
        run(on, given.rows_slice(slice(1, 2)))
        assert close(on.state.memory[method.site][0, :32], prompts[1], 1e-5)

    def test_the_order_of_patches_does_not_matter(self):
        on, method = made(IDPT, "tiny-vit")
        y = torch.randn(2, 17, 32, generator=torch.Generator().manual_seed(0))
        order = torch.cat([torch.zeros(1, dtype=torch.long), 1 + torch.randperm(16)])
        real = (torch.arange(17) > 0).expand(2, -1)
        g = method.parts["generator"]
        assert close(g(y, real, False), g(y[:, order], real, False), 1e-5)

    def test_no_gradient_passes_the_last_block(self):
        on, method = made(IDPT, "tiny-vit")
        seen = []
        on.around(list(on.modules("block"))[0], lambda call: seen.append(call.proceed()) or seen[-1])
        on.forward(images("tiny-vit")).logits.sum().backward()
        assert not seen[0].requires_grad
        assert all(p.grad.abs().max() > 0 for p in method.trained())

    @pytest.mark.parametrize("name", ["tiny-vit", "tiny-bert"])
    def test_checkpointing_moves_the_statistics_once(self, name):
        found = []
        for recompute in (False, True):
            on, method = made(IDPT, name)
            if recompute:
                on.gradient_checkpointing()
            on.train(True)
            method.parts.train(True)
            torch.manual_seed(0)
            on.forward(batch(name)).logits.sum().backward()
            found.append(method.parts["generator"].last.norm.mean.detach())
        assert torch.equal(*found)

    def test_counts(self):
        """d = 384, 15 classes in the authors' code: generator, their head, class token and its position make 1.7M."""
        d, classes = 384, 15
        made = count("idpt", "deit-s16", {})
        head = (3 * d + 1) * 256 + 2 * 256 + 257 * 256 + 2 * 256 + 257 * classes
        assert made["trained"] == made["expected"]["trained"] == 1_330_176
        assert made["trained"] + head + 2 * d == 1_696_783
        assert made["stored"] == made["trained"] + 8 * d and made["agrees"]


EXACT = [
    ("prompt_tuning", "llama-3.2-3b", {"tokens": 200}, 614_400, "huggingface/peft method comparison"),
    ("prompt_tuning", "bloomz-560m", {"tokens": 8}, 8_192, "huggingface/peft documentation"),
    ("prompt_tuning", "t5-base", {}, 76_800, "Compacter, Table 1 (0.034 % of 222,903,552)"),
    ("p_tuning", "llama-3.2-3b", {"tokens": 20, "encoder": "mlp"}, 28_382_208, "huggingface/peft method comparison"),
    ("p_tuning", "llama-3-8b", {"tokens": 100, "hidden": 768}, 53_130_752, "PEFT-Bench"),
    ("p_tuning", "bert-base", {}, 8_278_272, "the authors' code for knowledge probing, by its formula"),
    ("vpt_shallow", "vit-b16", {"tokens": 10}, 7_680, "Lessons learned in visual PEFT"),
    ("vpt_shallow", "vit-b16", {"tokens": 50}, 38_400, "Lessons learned in visual PEFT"),
    ("vpt_shallow", "vit-b16", {"tokens": 200}, 153_600, "Lessons learned in visual PEFT"),
    ("vpt_deep", "vit-b16", {"tokens": 10}, 92_160, "Lessons learned in visual PEFT"),
    ("vpt_deep", "vit-b16", {"tokens": 50}, 460_800, "Lessons learned in visual PEFT"),
    ("vqt", "vit-b16", {}, 9_216, "VQT by its formula"),
]


@pytest.mark.parametrize(("method", "model", "settings", "published", "source"), EXACT)
def test_attached_and_closed_form_meet_the_published_count(method, model, settings, published, source):
    counted = count(method, model, settings)
    assert counted["trained"] == counted["expected"]["trained"] == published, source
    assert counted["agrees"]


def test_p_tuning_stores_and_keeps_one_prompt():
    """peft's file of 20 x 3072 floats holds as much."""
    counted = count("p_tuning", "llama-3.2-3b", {"tokens": 20, "encoder": "mlp"})
    assert counted["stored"] == counted["expected"]["stored"] == counted["expected"]["added"] == 61_440


def test_t_few_counts_two_prompts():
    """T-Few trains one in the encoder and one in the decoder, 409K and 41K; the paper and this method train one."""
    assert [2 * count("prompt_tuning", "t0-3b", {"tokens": p})["trained"] for p in (100, 10)] == [409_600, 40_960]
