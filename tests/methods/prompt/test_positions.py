"""LoReFT, DiReFT and PASTA: position by position in plain loops, whatever the padding; properties; published counts."""

import copy

import pytest
import torch

from methods.base import places
from methods.prompt.direft import DiReFT
from methods.prompt.loreft import LoReFT
from methods.prompt.pasta import PASTA
from models.batch import Batch, ForwardState
from models.shape import SiteId
from tests.helpers import attach, backbone, batch, close, differ, images, run, single, text, trained
from workflow.count import count

PLUGINS = {"loreft": LoReFT, "direft": DiReFT}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(name, method, task=None):
    """The method on a network in float64 with its parameters away from their start; and the network alone."""
    on = backbone(name, task, dtype=torch.float64)
    if on.head is not None:
        on.head.double()
    plain = copy.deepcopy(on)
    attach(method, on)
    method.parts.double().train(False)
    with torch.no_grad():
        for seed, parameter in enumerate(method.parts.parameters()):
            parameter.add_(0.3 * normal(*parameter.shape, seed=seed))
    return on, plain


def at_blocks(on, before=None, after=None):
    """Hooks on the blocks that read a prompt: before(layer, h), after(layer, h) give the states (L, d) of one text."""

    def entered(layer):
        def hook(module, args, kwargs):
            if args:
                return (before(layer, args[0][0])[None], *args[1:]), kwargs
            return args, kwargs | {"hidden_states": before(layer, kwargs["hidden_states"][0])[None]}

        return hook

    def left(layer):
        def hook(module, args, out):
            whole = isinstance(out, tuple)
            h = after(layer, (out[0] if whole else out)[0])[None]
            return (h, *out[1:]) if whole else h

        return hook

    for site, module in on.modules("block").items():
        if site.part != "decoder":
            if before:
                module.register_forward_pre_hook(entered(site.layer), with_kwargs=True)
            if after:
                module.register_forward_hook(left(site.layer))


def rows(on, given):
    """Each row of a batch by itself."""
    if on.kind == "vision":
        return [Batch({k: v[i : i + 1] for k, v in given.inputs.items()}) for i in range(len(given))]
    return [single(given, i) for i in range(len(given))]


def outputs(on, given):
    """Logits of each row, at real tokens."""
    with torch.no_grad():
        logits = on.forward(given).logits
    if logits.dim() == 2:
        return list(logits)
    keep = given.labels != -100 if on.kind == "encoder_decoder" else given.mask
    return [row[real] for row, real in zip(logits, keep, strict=True)]


def agree(on, plain, given, tolerance=1e-9):
    """The batch on one network, and row by row on the other."""
    for row, found in zip(rows(plain, given), outputs(on, given), strict=True):
        (expected,) = outputs(plain, row)
        assert close(found, expected, tolerance)


NETWORKS = [
    *[(name, side) for name in ("tiny-bert", "tiny-roberta", "tiny-llama") for side in ("right", "left", "none")],
    *[("tiny-t5", "right"), ("tiny-t5", "none"), ("tiny-vit", None), ("tiny-swin", None)],
]


def edit(module, name, h):
    """The equations of the paper for one state (d,)."""
    if name == "direft":
        return h + module.W2.T @ (module.W1 @ h + module.b)
    R = module.rows()
    return h + R.T @ (module.W @ h + module.b - R @ h)


def ends(n, prefix, suffix):
    """Indices of the first and of the last tokens of a prompt of n."""
    if n < prefix + suffix:
        prefix, suffix = min(prefix, n // 2), min(suffix, -(-n // 2))
    return list(range(prefix)), list(range(n - suffix, n))


class TestReFT:
    @pytest.mark.parametrize(("model", "side"), NETWORKS)
    @pytest.mark.parametrize("name", PLUGINS)
    def test_position_by_position(self, name, model, side):
        tied = model != "tiny-llama"
        method = PLUGINS[name].create({"rank": 3, "prefix": 2, "suffix": 3, "tied": tied})
        on, plain = double(model, method)
        parts = list(method.parts.values())

        def after(layer, h):
            out = h.clone()
            for group, indices in enumerate(ends(len(h), 2, 3)):
                for i in indices:
                    out[i] = edit(parts[layer][0 if tied else group], name, h[i])
            return out

        at_blocks(plain, after=after)
        given = batch(model, side) if side else images(model)
        assert tied == (sum(len(part) for part in parts) == len(parts))
        agree(on, plain, given)

    @pytest.mark.parametrize("side", ["right", "left", "none"])
    def test_only_the_prompt_of_a_decoder(self, side):
        method = LoReFT.create({"rank": 3, "prefix": 1, "suffix": 1})
        on, plain = double("tiny-llama", method, "generation")
        given = text("tiny-llama", side)
        given.prompt_length = torch.tensor([3, 1, 4])
        lengths = iter(range(10**9))

        def after(layer, h):
            row = next(lengths) // 2
            out = h.clone()
            for i in {i for indices in ends(int(given.prompt_length[row]), 1, 1) for i in indices}:
                out[i] = edit(method.parts[f"{layer}/block"][0], "loreft", h[i])
            return out

        at_blocks(plain, after=after)
        agree(on, plain, given)

    def test_short_prompts(self):
        """Every pair of ends and every length, beside the rule of the paper in plain integers."""
        hidden = torch.zeros(20, 20, 4)
        for prefix, suffix in ((7, 7), (3, 0), (0, 3), (11, 2), (1, 1)):
            method = LoReFT.create({"prefix": prefix, "suffix": suffix, "tied": False})
            n = torch.arange(1, 21)
            mask = torch.arange(20)[None] < n[:, None]
            chosen = [m[..., 0] for m in method.choose(ForwardState(mask=mask), hidden)]
            assert len(chosen) == method.groups == bool(prefix) + bool(suffix), "an end without tokens trains nothing"
            for row in range(20):
                expected = [e for e, size in zip(ends(row + 1, prefix, suffix), (prefix, suffix), strict=True) if size]
                assert [where[row].nonzero()[:, 0].tolist() for where in chosen] == expected

    def test_where_tokens_stand_under_padding_on_either_side(self):
        hidden = torch.zeros(1, 6, 4)
        for mask, index in (([0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 2, 3]), ([1, 1, 1, 1, 0, 0], [0, 1, 2, 3, 3, 3])):
            mask = torch.tensor([mask]).bool()
            found = places(ForwardState(mask=mask, prompt_length=torch.tensor([3])), hidden)
            assert found.index[0].tolist() == index and found.length.tolist() == [[3]]
            assert found.inside[0].tolist() == [bool(m) and i < 3 for m, i in zip(mask[0], index, strict=True)]

    def test_a_generated_token_is_left_alone(self):
        """Decoding steps go through the blocks untouched: the module is not even run."""
        on, method = backbone("tiny-llama", "generation"), LoReFT()
        attach(method, on)
        given = text("tiny-llama", "left")
        given.prompt_length = given.mask.sum(1)
        calls = []
        for part in method.parts.values():
            part[0].register_forward_hook(lambda *_: calls.append(on.state.phase))
        on.generate(given, 4)
        assert calls == ["prefill"] * 2

    @pytest.mark.parametrize("name", PLUGINS)
    def test_other_tokens_keep_their_state_at_that_block(self, name):
        method = PLUGINS[name].create({"prefix": 1, "suffix": 2, "layers": [0], "rank": 2})
        on, plain = double("tiny-bert", method)
        given = text("tiny-bert", "none")
        for network in (on, plain):
            network.taps([0])
            run(network, given)
        found, before = (network.state.taps[SiteId("", 0, "block")] for network in (on, plain))
        same = (found == before).all(-1)
        assert same.tolist() == [[False, True, True, True, False, False]] * 3

    def test_the_subspace_of_loreft(self):
        """R Phi(h) = W h + b, and nothing changes across the rows of R."""
        module = LoReFT.Edit(16, 3).double()
        module.initialise(torch.Generator().manual_seed(0))
        h, R = normal(5, 16), module.rows()
        new = h + module(h)
        across = torch.eye(16, dtype=torch.float64) - R.T @ R
        assert close(new @ R.T, h @ module.W.T + module.b, 1e-6)
        assert close(new @ across, h @ across, 1e-6)
        with torch.no_grad():
            module.W.copy_(R)
            module.b.zero_()
        assert close(module(h), torch.zeros_like(h), 1e-9)

    def test_loreft_is_direft_with_its_own_rows(self):
        """W1 = W - R and W2 = R."""
        theirs, ours = DiReFT.Edit(16, 3).double(), LoReFT.Edit(16, 3).double()
        ours.initialise(torch.Generator().manual_seed(0))
        with torch.no_grad():
            theirs.W1.copy_(ours.W - ours.rows())
            theirs.W2.copy_(ours.rows())
            theirs.b.copy_(ours.b)
        assert close(theirs(normal(5, 16)), ours(normal(5, 16)), 1e-9)

    def test_the_edit_of_direft_has_the_rank_of_its_factors(self):
        module = DiReFT.Edit(16, 3).double()
        module.initialise(torch.Generator().manual_seed(0))
        assert torch.linalg.matrix_rank(module(normal(10, 16))) == 3
        with torch.no_grad():
            module.W2.zero_()
        assert not module(normal(10, 16)).any()

    def test_the_rows_stay_orthonormal_in_training(self):
        context = trained(LoReFT.create({"rank": 4}), max_steps=6)
        for part in context.method.parts.values():
            R = part[0].rows()
            assert close(R @ R.T, torch.eye(4)) and differ(part[0].R @ part[0].R.T, torch.eye(4), 1e-4)

    def test_the_rows_follow_what_is_trained_without_a_jump(self):
        """Gram-Schmidt has no sign to choose: small steps through a zero of the first entry move R little."""
        module = LoReFT.Edit(8, 2).double()
        with torch.no_grad():
            module.R.copy_(normal(2, 8))
            found = []
            for first in torch.linspace(-0.1, 0.1, 21):
                module.R[0, 0] = first
                found.append(module.rows().clone())
        assert max((a - b).abs().max().item() for a, b in zip(found, found[1:], strict=False)) < 0.02

    @pytest.mark.parametrize(
        ("name", "rank", "share"), [("loreft", 1, 0.034), ("loreft", 8, 0.11), ("direft", 8, 0.033)]
    )
    def test_how_much_the_start_changes(self, name, rank, share):
        """As measured with the authors' start on Gaussian states of width 768."""
        found = []
        for seed in range(8):
            module = PLUGINS[name].Edit(768, rank)
            module.initialise(torch.Generator().manual_seed(seed))
            h = normal(64, 768, seed=seed).float()
            found.append((module(h).norm(dim=1) / h.norm(dim=1)).square().mean().sqrt())
        assert torch.stack(found).mean().item() == pytest.approx(share, rel=0.2)

    def test_dropout_acts_on_the_edited_states_alone(self):
        on, method = backbone("tiny-bert"), LoReFT.create({"prefix": 1, "suffix": 0, "layers": [1], "dropout": 0.5})
        attach(method, on)
        method.parts.train(True)
        on.taps([1])
        run(on, text("tiny-bert", "none"))
        out = on.state.taps[SiteId("", 1, "block")]
        dropped = (out == 0).float().mean((0, 2))
        assert 0.3 < dropped[0] < 0.7 and not dropped[1:].any()

    def test_a_rank_above_the_width_is_refused(self):
        shape = backbone("tiny-bert").shape
        assert "rank 33" in LoReFT.create({"rank": 33}).supports(shape, None)
        assert DiReFT.create({"rank": 33}).supports(shape, None) is None


class TestPASTA:
    SEPARATOR = 2

    def pairs(self):
        """Texts with one, two and no separators inside; BERT's tokenizer would end each with one."""
        given = text("tiny-bert", "right")
        ids = given.inputs["input_ids"]
        ids[0, 3] = ids[0, 6] = ids[1, 3] = self.SEPARATOR
        ids[2, 1] = ids[2, 2] = self.SEPARATOR
        return given

    def vectors(self, ids, specials):
        """Index of the vector of each place of one text, by the rule written in a loop."""
        found, k = {}, 0
        for i, token in enumerate(ids):
            if i in (0, len(ids) - 1) or token == self.SEPARATOR:
                if k < specials:
                    found[i] = k
                k += 1
        return found

    @pytest.mark.parametrize("specials", [1, 2, 3, 4])
    @pytest.mark.parametrize("model", ["tiny-bert", "tiny-roberta", "tiny-llama"])
    def test_token_by_token(self, model, specials):
        method = PASTA.create({"specials": specials})
        on, plain = double(model, method)
        on.tokenizer.sep_token_id = self.SEPARATOR
        given = self.pairs()
        if model == "tiny-roberta":
            given.inputs["input_ids"][~given.mask] = 1
        texts = iter([row.inputs["input_ids"][0].tolist() for row in rows(on, given) for _ in range(2)])
        vectors = [part.v for part in method.parts.values()]

        def before(layer, h):
            out = h.clone()
            for i, k in self.vectors(next(texts), specials).items():
                out[i] = h[i] + vectors[layer][k]
            return out

        at_blocks(plain, before=before)
        agree(on, plain, given)

    @pytest.mark.parametrize("side", ["right", "left"])
    def test_padding_changes_nothing(self, side):
        method = PASTA()
        on, _ = double("tiny-bert", method)
        given = text("tiny-bert", side)
        for row, found in zip(rows(on, given), outputs(on, given), strict=True):
            assert close(outputs(on, row)[0], found, 1e-9)

    def test_generated_tokens_have_no_vector(self):
        on, method = backbone("tiny-llama", "generation"), PASTA()
        attach(method, on)
        mask = torch.ones(1, 6).bool()
        ids = torch.tensor([[5, 6, 7, 8, 2, 9]])
        state = ForwardState(Batch({"input_ids": ids}), mask, prompt_length=torch.tensor([4]))
        _, there = method.choose(state, torch.zeros(1, 6, 32))
        assert there[0, :, 0].tolist() == [True, False, False, True, False, False]

    def test_with_zeros_it_is_the_network(self):
        on, method, given = backbone("tiny-bert"), PASTA.create({"std": 0.0}), text("tiny-bert")
        before = run(on, given)
        attach(method, on)
        assert torch.equal(run(on, given), before)

    def test_images_have_their_class_token(self):
        for name, specials in (("tiny-vit", 1), ("tiny-deit", 2)):
            method = PASTA()
            on, plain = double(name, method)
            vectors = [part.v for part in method.parts.values()]
            assert all(v.shape == (specials, 32) for v in vectors)

            def before(layer, h, vectors=vectors):
                return torch.cat([h[: len(vectors[layer])] + vectors[layer], h[len(vectors[layer]) :]])

            at_blocks(plain, before=before)
            agree(on, plain, images(name))
        assert "swin has no class token" in PASTA().supports(backbone("tiny-swin").shape, None)

    def test_dropout_acts_on_the_vectors(self):
        on, method = backbone("tiny-bert"), PASTA.create({"dropout": 1.0})
        given = text("tiny-bert")
        before = run(on, given)
        attach(method, on)
        method.parts.train(False)
        assert differ(run(on, given), before, 1e-4)
        method.parts.train(True)
        assert close(run(on, given), before)


EXACT = [
    ("loreft", "llama-7b", {}, 2_097_408, "0.031 %"),
    ("loreft", "llama-13b", {}, 3_277_120, "0.025 %"),
    ("loreft", "roberta-base", {"rank": 1, "prefix": 3, "suffix": 0}, 18_444, "0.015 %"),
    ("loreft", "llama-2-7b", {"rank": 4, "layers": [3, 9, 18, 24], "tied": False}, 262_176, "0.0039 %"),
    ("direft", "llama-7b", {}, 2_097_408, "0.031 %"),
    ("direft", "roberta-base", {"rank": 1, "prefix": 3, "suffix": 0}, 18_444, "0.015 %"),
    ("pasta", "bert-large", {"specials": 2}, 49_152, "single texts"),
    ("pasta", "bert-large", {}, 73_728, "pairs"),
    ("pasta", "roberta-large", {"specials": 4}, 98_304, "0.029 % with its small output layer, inferred"),
    ("pasta", "vit-b16", {}, 9_216, "the class token alone"),
]
SHARES = [
    ("loreft", "llama-7b", {}, "0.031"),
    ("loreft", "llama-13b", {}, "0.025"),
    ("direft", "llama-7b", {}, "0.031"),
    ("loreft", "llama-2-7b", {"rank": 4, "layers": [3, 9, 18, 24], "tied": False}, "0.0039"),
    ("loreft", "roberta-base", {"rank": 1}, "0.015"),
]


class TestCounts:
    @pytest.mark.parametrize(("method", "model", "settings", "published", "source"), EXACT)
    def test_attached_and_closed_form_meet_the_count(self, method, model, settings, published, source):
        counted = count(method, model, settings)
        assert counted["trained"] == counted["expected"]["trained"] == published, source
        assert counted["agrees"] and counted["added_at_inference"] == published

    @pytest.mark.parametrize(("method", "model", "settings", "published"), SHARES)
    def test_as_the_paper_prints_them(self, method, model, settings, published):
        counted = count(method, model, settings)
        digits = len(published) - 2
        assert f"{100 * counted['trained'] / counted['backbone']:.{digits}f}" == published
