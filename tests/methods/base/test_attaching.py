"""Places where methods attach: branches, blocks, the stack, attention, taps, weights; each against a hand-made forward.

The small methods here are models for plugins: they touch only what the contract gives them.
"""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from methods.base import Count, InputPrompt, KVPrefix, LinearMap, LinearMethod, LinearSettings, Method, Plan
from methods.base.contract import key
from models.backbone import Unsupported, _images, _windows
from models.shape import SiteId
from tests.helpers import (
    ENCODER_DECODERS,
    EVERY,
    attach,
    backbone,
    batch,
    bound,
    close,
    copies,
    differ,
    gradients,
    images,
    lively,
    run,
    same,
    text,
    training,
)
from tests.places import branches

BLOCK = SiteId("", 1, "block")


class TestBranch:
    """`branch` gives x, y and the residual: checked with the block's own modules, called by hand."""

    def parts(self, on, block):
        return {s.name: m for s, m in on.map_.modules.items() if s[:2] == block[:2]}

    @pytest.mark.parametrize("name", EVERY)
    def test_gives_the_tensors_of_the_branch(self, name):
        """x is what the first linear map saw, y what the last gave, residual what the branch's norm saw."""
        on, given = backbone(name), batch(name)
        for part, layer in on.shape.blocks:
            block, seen = SiteId(part, layer, "block"), {}
            first = [s for n in ("mlp.gate", "mlp.up") if (s := block._replace(name=n)) in on.map_.linears][0]
            last = on.map_.linears[block._replace(name="mlp.down")].module
            hooks = [
                on.map_.linears[first].module.register_forward_pre_hook(lambda m, a, s=seen: s.update(x=a[0])),
                last.register_forward_hook(lambda m, a, out, s=seen: s.update(y=out)),
                on.map_.norms[block._replace(name="norm.mlp")].register_forward_pre_hook(
                    lambda m, a, s=seen: s.update(norm=a[0])
                ),
            ]
            got = {}
            on.branch(block, "mlp", lambda x, y, residual, g=got: g.update(x=x, y=y, residual=residual) or y)
            run(on, given)
            seen["residual"] = seen["x" if on.architecture.post_norm else "norm"]
            for what, tensor in got.items():
                assert tensor.dim() == 3 and torch.equal(tensor, seen[what].view_as(tensor))
            for hook in hooks:
                hook.remove()
            on.restore()

    @pytest.mark.parametrize("name", EVERY)
    def test_a_block_without_its_branches_is_the_residual_alone(self, name):
        """y = 0 in both branches of a pre-norm block passes its input on; a post-norm block norms it twice."""
        on, given, seen = backbone(name), batch(name), {}
        part = on.shape.parts[0]
        block = SiteId(part, 1, "block")
        for branch in ("attn", "mlp"):
            on.branch(block, branch, lambda x, y, residual: 0 * y)
        module = on.map_.modules[block]
        module.register_forward_pre_hook(lambda m, a: seen.update(x=a[0]))
        module.register_forward_hook(lambda m, a, out: seen.update(y=out[0] if isinstance(out, tuple) else out))
        run(on, given)
        expected = seen["x"]
        if on.architecture.post_norm:
            expected = on.map_.norms[block._replace(name="norm.mlp")](
                on.map_.norms[block._replace(name="norm.attn")](expected)
            )
        assert close(seen["y"], expected)

    @pytest.mark.parametrize("name", ["tiny-llama", "tiny-vit", "tiny-gpt2", "tiny-opt", "tiny-bloom", "tiny-swin"])
    def test_the_residual_of_the_attention_branch_is_the_input_of_the_block(self, name):
        """Adding it once more doubles the block's input; in Swin it is cut into windows and put together again."""
        on, given, seen = backbone(name), batch(name), {}
        on.branch(BLOCK, "attn", lambda x, y, residual: 0 * y + residual)
        on.branch(BLOCK, "mlp", lambda x, y, residual: 0 * y)
        module = on.map_.modules[BLOCK]
        module.register_forward_pre_hook(lambda m, a: seen.update(x=a[0]))
        module.register_forward_hook(lambda m, a, out: seen.update(y=out[0] if isinstance(out, tuple) else out))
        run(on, given)
        assert close(seen["y"], 2 * seen["x"])

    def test_the_attention_of_swin_as_images(self):
        """With `whole`, x is the output of the norm, the residual its input, and y goes back into its windows."""
        on, plain, given = backbone("tiny-swin"), run(backbone("tiny-swin"), images("tiny-swin")), images("tiny-swin")
        for part, layer in on.shape.blocks:
            block, seen, got = SiteId(part, layer, "block"), {}, {}
            norm = on.map_.norms[block._replace(name="norm.attn")]
            hook = norm.register_forward_hook(lambda m, a, out, s=seen: s.update(residual=a[0], x=out))
            on.branch(block, "attn", lambda x, y, residual, g=got: g.update(x=x, residual=residual) or y, whole=True)
            assert torch.equal(run(on, given), plain)
            assert all(torch.equal(got[what], seen[what]) for what in seen)
            hook.remove()
            on.restore()

    @pytest.mark.parametrize("size", [(8, 8), (6, 7), (4, 9)])
    def test_windows_are_put_together_again(self, size):
        """Also where they are padded, and shifted."""
        block = backbone("tiny-swin").map_.modules[BLOCK]
        x = torch.arange(2.0 * size[0] * size[1] * 3).view(2, -1, 3)
        assert block.shift_size > 0 and torch.equal(_images(_windows(x, size, block), size, block), x)

    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-roberta"])
    def test_the_whole_post_norm_block_by_hand(self, name):
        on, plain, given, seen = backbone(name), backbone(name), text(name, "none"), {}
        adapters = branches(on)
        run(on, given)
        site = SiteId("", 0, "block")
        plain.map_.modules[site].register_forward_pre_hook(lambda m, a: seen.update(x=a[0]))
        plain.attention(site._replace(name="attn.core"), lambda call, go: seen.setdefault("mixed", go()))
        on.map_.modules[site].register_forward_hook(lambda m, a, out: seen.update(out=out))
        run(plain, given)
        run(on, given)
        linear = {s.name: plain.map_.linears[s].module for s in plain.map_.linears if s.layer == 0}
        norm = {s.name: m for s, m in plain.map_.norms.items() if s.layer == 0}
        x = seen["x"]
        mixed = seen["mixed"].transpose(1, 2).flatten(2)
        with torch.no_grad():
            y = linear["attn.o"](mixed)
            x1 = norm["norm.attn"](x + y + adapters[0](torch.cat([x, y, x], -1)))
            y = linear["mlp.down"](nn.functional.gelu(linear["mlp.up"](x1)))
            x2 = norm["norm.mlp"](x1 + y + adapters[1](torch.cat([x1, y, x1], -1)))
        assert close(seen["out"], x2)


class Ladder(Method):
    """A side network on taps: h <- tanh(U (h + D tap)) over the blocks, added to the last hidden state's logits.

    The backbone runs under `no_grad`; only the side network and the head are in the graph.
    """

    name, family, kinds = "ladder", "side_network", ("encoder", "vision")

    @dataclass(frozen=True)
    class Settings:
        width: int = 8

    def attach(self, backbone, ctx):
        self.backbone = backbone
        width, size = self.settings.width, backbone.shape.blocks["", 0].width
        for layer in range(backbone.shape.layers[""]):
            self.parts[f"down/{layer}"] = nn.Linear(size, width, bias=False)
        self.parts["up"] = nn.Linear(width, size, bias=False)
        backbone.taps()

    def initialise(self, backbone, ctx):
        lively(self.parts)

    def forward(self, batch, call):
        with torch.no_grad():
            out = call(batch)
        h = 0
        for site, tap in self.backbone.state.taps.items():
            h = torch.tanh(h + self.parts[f"down/{site.layer}"](tap))
        hidden = out.hidden + self.parts["up"](h)
        out.logits = self.backbone.head(self.backbone.head.pool(hidden, self.backbone.state), self.backbone.state)
        return out

    def expected_parameters(self, shape):
        return Count((len(shape.blocks) + 1) * self.settings.width * shape.blocks["", 0].width)


class TestTaps:
    def test_are_the_raw_outputs_of_the_blocks(self):
        on, plain, given = backbone("tiny-llama"), backbone("tiny-llama"), text("tiny-llama")
        on.taps()
        run(on, given)
        for site, tap in on.state.taps.items():
            seen = []
            hook = plain.map_.modules[site].register_forward_hook(lambda m, a, out, s=seen: s.append(out))
            out = plain.forward(given)
            hook.remove()
            assert torch.equal(tap, seen[0])
        assert differ(tap, out.hidden), "the last tap is not the normed state"

    @pytest.mark.parametrize("grad", [False, True])
    def test_keep_a_graph_only_where_asked(self, grad):
        on = backbone("tiny-bert")
        branches(on)
        on.taps(grad=grad)
        on.forward(text("tiny-bert"))
        assert all(tap.requires_grad is grad for tap in on.state.taps.values())

    def test_a_side_network_leaves_no_graph_in_the_backbone(self):
        on, method = backbone("tiny-vit", pooling="cls"), Ladder()
        attach(method, on)
        out = method.forward(images("tiny-vit"), on.forward)
        assert not out.hidden.requires_grad and out.logits.requires_grad
        out.logits.sum().backward()
        assert all(p.grad.abs().max() > 0 for p in method.parameters())
        assert sum(p.numel() for p in method.trained()) == method.expected_parameters(on.shape).trained


class PrefixTuning(Method):
    """Keys and values of its own at every attention of the encoder or decoder stack."""

    name, family = "prefix", "prompt"

    def plan(self, shape):
        return Plan(tuple(SiteId(part, layer, "attn.core") for part, layer in shape.blocks))

    def attach(self, backbone, ctx):
        self.backbone = backbone
        for site in self.planned.sites:
            block = backbone.shape.block(site)
            self.parts[key(site)] = prefix = KVPrefix(block.kv_heads, 3, block.head_dim)
            prefix.attach(backbone, site)

    def initialise(self, backbone, ctx):
        for name, prefix in self.parts.items():
            prefix.initialise(0.5, ctx.rng(f"init/{name}"))

    def expected_parameters(self, shape):
        return Count(sum(2 * 3 * b.kv_heads * b.head_dim for b in shape.blocks.values()))


class PromptTuning(Method):
    """Embeddings of prompt tokens at the input."""

    name, family = "prompt", "prompt"

    def attach(self, backbone, ctx):
        self.backbone = backbone
        self.parts["prompt"] = prompt = InputPrompt(4, backbone.shape.embedding_width)
        prompt.attach(backbone)

    def initialise(self, backbone, ctx):
        self.parts["prompt"].initialise(0.5, ctx.rng("init/prompt"))

    def expected_parameters(self, shape):
        return Count(4 * shape.embedding_width)


@pytest.mark.parametrize("plugin", [PrefixTuning, PromptTuning])
@pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama", "tiny-t5", "tiny-vit"])
def test_prompts_learn_are_counted_and_go_away(name, plugin):
    on, given, method = backbone(name), batch(name), plugin()
    before, plain = copies(on.model), run(on, given)
    attach(method, on)
    assert differ(run(on, given), plain)
    assert sum(p.numel() for p in method.trained()) == method.expected_parameters(on.shape).trained
    assert all(g.abs().max() > 0 for g in gradients(on, given, method.trained()))
    method.detach()
    assert torch.equal(run(on, given), plain) and same(copies(on.model), before)


class Scale(LinearMethod):
    """y = l * (W x + b): a map on the output side, which changes the bias when it merges."""

    name, family, mergeable = "scale", "prompt", True

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.l = nn.Parameter(torch.empty(shape.out))

        def initialise(self, W, b, rng, found):
            self.l.copy_(1 + 0.5 * torch.rand(self.l.shape, generator=rng))

        def forward(self, x, base):
            return base(x) * self.l

        def weight(self, W, b):
            return self.l[:, None] * W, None if b is None else self.l * b


@pytest.mark.parametrize("name", EVERY)
def test_a_map_that_changes_the_bias_merges(name):
    on, given = backbone(name), batch(name)
    before, method = copies(on.model), Scale(LinearSettings(("attn.k", "attn.v", "mlp.up")))
    attach(method, on)
    attached = run(on, given)
    method.merge()
    assert close(run(on, given), attached, bound(name, 1e-5))
    for (site, module), bias in zip(method.maps().items(), [on.site(s).bias() for s in method.maps()], strict=True):
        assert bias is None or not torch.equal(bias, before_bias(on, site, before)), module
    method.detach()
    assert same(copies(on.model), before)


def before_bias(on, site, before: dict[str, Tensor]) -> Tensor:
    place = on.site(site)
    name = next(n for n, m in on.model.named_modules() if m is place.module)
    return place._view(before[f"{name}.bias"], bias=True)


class Offset(LinearMethod):
    """W = W_res + B A with W_res = W - B A: the base is edited, the function at the start is not."""

    name, family, identity_at_init, edits_base = "offset", "lowrank", True, "offset"

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.A, self.B = nn.Parameter(torch.empty(2, shape.inp)), nn.Parameter(torch.empty(shape.out, 2))

        def initialise(self, W, b, rng, found):
            U, S, V = torch.linalg.svd(W)
            self.B.copy_(U[:, :2] * S[:2])
            self.A.copy_(V[:2])

        def delta(self):
            return self.B @ self.A

    @torch.no_grad()
    def initialise(self, backbone, ctx):
        super().initialise(backbone, ctx)
        for site, module in self.maps().items():
            place = backbone.site(site)
            backbone.write(place, place.weight().float() - module.delta(), place.bias())


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-gpt2", "tiny-llama"])
def test_an_edit_of_the_base_goes_away_bit_for_bit(name):
    on, given = backbone(name), batch(name)
    before, plain, method = copies(on.model), run(on, given), Offset(LinearSettings())
    attach(method, on)
    assert close(run(on, given), plain, 1e-4) and not same(copies(on.model), before)
    with pytest.raises(Unsupported, match="the pretrained function is gone"), on.disabled():
        pass
    method.detach()
    assert same(copies(on.model), before) and torch.equal(run(on, given), plain)


def put_back(call, keep: Tensor) -> Tensor:
    """The kept tokens through the block, the others as they were: length, mask and pooling stay right."""
    out = call.proceed(keep=keep)
    return call.hidden.scatter(1, keep[..., None].expand_as(out), out)


class TestAround:
    @pytest.mark.parametrize("name", [name for name in EVERY if name not in ENCODER_DECODERS])
    def test_a_block_that_does_not_proceed_is_skipped(self, name):
        on, given, without = backbone(name), batch(name), backbone(name)
        on.around(BLOCK, lambda call: call.hidden)
        blocks = without.base.get_submodule(without.architecture.stacks[""].blocks.format(s=0))
        del blocks[1]
        assert close(run(on, given), run(without, given), 1e-6)

    @pytest.mark.parametrize("name", ENCODER_DECODERS)
    def test_a_block_of_t5_hands_on_a_bias_and_cannot_be_skipped(self, name):
        on = backbone(name)
        on.around(SiteId("encoder", 1, "block"), lambda call: call.hidden)
        with pytest.raises(Unsupported, match="cannot be skipped"):
            run(on, text(name))

    @pytest.mark.parametrize("name", EVERY)
    def test_the_input_of_a_block_may_be_changed(self, name):
        on, given = backbone(name), batch(name)
        plain = run(on, given)
        site = SiteId(on.shape.parts[0], 1, "block")
        on.around(site, lambda call: call.proceed(call.hidden * 1.0))
        assert torch.equal(run(on, given), plain)
        on.around(site, lambda call: call.proceed(call.hidden * 2.0))
        assert differ(run(on, given), plain)

    @pytest.mark.parametrize("side", ["right", "left", "none"])
    def test_dropping_tokens_equals_never_having_had_them(self, side):
        """From the second block on BERT keeps the first token and the even ones; the others must leave no trace."""
        on, plain, given = backbone("tiny-bert"), backbone("tiny-bert"), text("tiny-bert", side)
        keep = torch.tensor([0, 2, 4, 6][: 3 if side == "none" else 4]).expand(3, -1)
        hidden = {}
        on.around(BLOCK, lambda call: hidden.setdefault("out", call.proceed(keep=keep)))
        with torch.no_grad():
            on.around(SiteId("", 0, "block"), lambda call: hidden.setdefault("in", call.proceed()))
            on.forward(given)
            block, mask = plain.map_.modules[BLOCK], given.mask
            for row in range(3):
                real = mask[row, keep[row]]
                alone = block(hidden["in"][row, keep[row]][real][None])
                assert close(hidden["out"][row, real], alone[0] if not isinstance(alone, tuple) else alone[0][0])

    def test_dropping_tokens_of_an_image(self):
        on, plain, seen = backbone("tiny-vit"), backbone("tiny-vit"), {}
        keep = torch.tensor([[0, 3, 5], [0, 1, 2], [0, 15, 16]])
        on.around(BLOCK, lambda call: seen.update(x=call.hidden) or seen.setdefault("y", call.proceed(keep=keep)))
        run(on, images("tiny-vit"))
        with torch.no_grad():
            expected = plain.map_.modules[BLOCK](seen["x"].take_along_dim(keep[..., None], 1))
        assert close(seen["y"], expected)

    @pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen3", "tiny-gpt2", "tiny-opt"])
    @pytest.mark.parametrize("side", ["left", "none"])
    def test_dropping_the_first_tokens_of_a_decoder_keeps_causality(self, name, side):
        """A kept token sees the kept ones before it, at their own positions: later tokens do not matter."""
        on, given = backbone(name, "generation"), text(name, side)
        keep = torch.arange(3, given.inputs["input_ids"].shape[1]).expand(3, -1)
        on.around(BLOCK, lambda call: put_back(call, keep))
        before = run(on, given)
        given.inputs["input_ids"][:, -1] = 7
        after = run(on, given)
        assert close(before[:, :-1], after[:, :-1]) and differ(before[:, -1], after[:, -1])

    @pytest.mark.parametrize(
        ("name", "side"),
        [("tiny-vit", "none"), *[(n, s) for n in ("tiny-bert", "tiny-gpt2") for s in ("left", "none")]],
    )
    def test_tokens_added_as_queries_are_seen_by_nobody(self, name, side):
        on, given = backbone(name), batch(name, side)
        extra, seen = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(0)), {}

        def ask(call):
            seen["before"] = call.proceed()
            seen["after"] = call.proceed(extra=extra, extra_as="query")
            return seen["before"]

        on.around(BLOCK, ask)
        run(on, given)
        length = seen["before"].shape[1]
        real = torch.ones(3, length, dtype=torch.bool) if given.mask is None else given.mask
        assert close(seen["after"][:, :length][real], seen["before"][real])

    def test_an_added_query_does_not_see_padding(self):
        """What it reads is the same however much padding a row has."""
        extra, found = torch.ones(1, 1, 32), {}
        for lengths in ((4, 4, 4), (4, 4, 9)):
            on = backbone("tiny-gpt2")
            on.around(
                BLOCK,
                lambda call, k=lengths: (
                    found.update({k: call.proceed(extra=extra, extra_as="query")}) or call.proceed()
                ),
            )
            run(on, text("tiny-gpt2", lengths=lengths))
        short, long = found.values()
        assert close(short[:2, -1], long[:2, -1])

    def test_added_keys_are_seen(self):
        on, seen = backbone("tiny-vit"), []
        extra = torch.randn(1, 2, 32, generator=torch.Generator().manual_seed(0))
        on.around(
            BLOCK,
            lambda call: seen.append((call.proceed(), call.proceed(extra=extra, extra_as="key"))) or call.proceed(),
        )
        run(on, images("tiny-vit"))
        assert differ(seen[0][0], seen[0][1][:, :17])

    @pytest.mark.parametrize("name", ["tiny-t5", "tiny-swin", "tiny-deberta", "tiny-bloom"])
    def test_where_tokens_cannot_move_it_says_so(self, name):
        on = backbone(name)
        keep = torch.zeros(3, 1, dtype=torch.long)
        on.around(SiteId(on.shape.parts[0], 0, "block"), lambda call: call.proceed(keep=keep))
        with pytest.raises(Unsupported, match="cannot be dropped or inserted"):
            run(on, batch(name))


class TestStack:
    UNEQUAL = (*ENCODER_DECODERS, "tiny-modernbert", "tiny-qwen2", "tiny-gemma3", "tiny-swin")
    SAME = sorted(set(EVERY) - set(UNEQUAL))

    @pytest.mark.parametrize("name", SAME)
    def test_passing_through_changes_nothing(self, name):
        on, given = backbone(name), batch(name)
        plain = run(on, given)
        on.around("stack", lambda call: call.proceed())
        assert close(run(on, given), plain, 1e-6)

    @pytest.mark.parametrize("name", ["tiny-bert", "tiny-deberta", "tiny-bloom", "tiny-vit"])
    def test_sees_the_input_of_the_first_and_the_output_of_the_last_block(self, name):
        on, given, seen = backbone(name), batch(name), {}
        on.taps()
        on.around("stack", lambda call: seen.update(x=call.hidden) or seen.setdefault("y", call.proceed()))
        run(on, given)
        assert torch.equal(seen["y"], on.state.taps[BLOCK])

    @pytest.mark.parametrize("name", UNEQUAL)
    def test_blocks_with_unequal_arguments_are_unsupported(self, name):
        with pytest.raises(Unsupported, match="equal arguments"):
            backbone(name).around("stack", lambda call: call.proceed())


class TestDisabled:
    def test_is_the_pretrained_function_whatever_is_attached(self):
        on, given = backbone("tiny-bert"), text("tiny-bert")
        plain = run(on, given)
        branches(on)
        attach(PrefixTuning(), on)
        attach(PromptTuning(), on)
        on.around(BLOCK, lambda call: call.hidden)
        assert differ(run(on, given), plain)
        with on.disabled():
            assert torch.equal(run(on, given), plain)
        assert differ(run(on, given), plain)

    def test_leaves_the_state_of_the_real_pass(self):
        """A reference pass inside `loss` must not lose the penalties, and a recomputation reads the real state."""
        on, given = backbone("tiny-bert"), text("tiny-bert")
        run(on, given)
        on.state.penalties["site"] = torch.ones(())
        with on.disabled():
            run(on, given)
        assert "site" in on.state.penalties


def test_a_context_is_not_needed_to_allocate():
    """Attaching by shape alone: the same plugin counts on the meta device."""
    from models.entries import model as model_entry
    from models.load import load

    on = load(model_entry("bert-base"), weights="meta")
    with torch.device("meta"):
        for plugin in (PrefixTuning, PromptTuning, Ladder):
            method = plugin()
            method.planned = method.plan(on.shape)
            method.attach(on, None)
            assert sum(p.numel() for p in method.trained()) == method.expected_parameters(on.shape).trained
            method.detach()


def test_the_context_gives_named_generators():
    on = backbone("tiny-bert")
    one, two = training(on, Ladder(), seed=0), training(on, Ladder(), seed=0)
    draws = [torch.rand(3, generator=c.rng(name)) for c, name in ((one, "a"), (two, "a"), (one, "b"), (one, "a"))]
    assert torch.equal(draws[0], draws[1]) and differ(draws[0], draws[2]) and differ(draws[0], draws[3])
