"""Published parameter counts, met without weights: method, model, settings, the figure, and who printed it."""

import csv
from pathlib import Path

import pytest

from workflow.count import count

ALL_LINEAR = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down"]
LLM_ADAPTERS = ["attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down"]
EXACT = [
    ("lora", "roberta-base", {}, 294_912, "LoRA, Table 2 (0.3M)"),
    ("lora", "roberta-large", {}, 786_432, "LoRA, Table 2 (0.8M)"),
    ("lora", "llama-3.2-3b", {"rank": 32}, 9_175_040, "huggingface/peft method comparison"),
    ("lora", "llama-3.2-3b", {"rank": 64}, 18_350_080, "huggingface/peft method comparison"),
    ("lora", "llama-3.2-3b", {"rank": 10, "sites": ["mlp.up", "mlp.gate", "mlp.down"]}, 9_461_760, "the same, mlp"),
    ("lora", "llama-3.2-3b", {"rank": 8, "sites": ALL_LINEAR}, 12_156_928, "PSOFT (12.2M)"),
    ("lora", "llama-7b", {"rank": 32, "sites": LLM_ADAPTERS}, 56_098_816, "DoRA (0.83 %)"),
    ("lora", "vit-b16", {}, 294_912, "Lessons learned in visual PEFT"),
    ("lora", "vit-b16", {"sites": ALL_LINEAR}, 1_327_104, "PSOFT (1.33M)"),
    ("lora", "bert-base", {"rank": 16}, 589_824, "huggingface/peft documentation, head apart"),
    ("bitfit", "roberta-base", {}, 102_144, "LoRA, Table 2 (0.1M)"),
    ("bitfit", "roberta-large", {}, 271_360, "C3A (0.271M)"),
    ("bitfit", "bert-base", {}, 102_912, "BitFit (0.09 %)"),
    ("bitfit", "vit-b16", {}, 102_912, "V-PETL (0.10M)"),
    ("ia3", "t0-3b", {}, 540_672, "T-Few (540K)"),
    ("ia3", "bert-base", {}, 55_296, "(IA)^3 by its formula"),
    ("ia3", "roberta-base", {}, 55_296, "DeLoRA (0.06M)"),
    ("houlsby", "bert-base", {"train_norms": False}, 2_379_264, "Houlsby by its formula, m = 64"),
    ("houlsby", "bert-base", {}, 2_379_264 + 38_400, "the same, with the layer norms"),
    ("full", "vit-b16", {}, 85_798_656, "Lessons learned in visual PEFT"),
    ("full", "llama-3.2-3b", {}, 3_212_749_824, "huggingface/peft method comparison"),
    ("head", "roberta-base", {}, 0, "the head is counted apart"),
]


@pytest.mark.parametrize(("method", "model", "settings", "published", "source"), EXACT)
def test_attached_and_closed_form_meet_the_published_count(method, model, settings, published, source):
    counted = count(method, model, settings)
    assert counted["trained"] == published, source
    assert counted["expected"]["trained"] == published, source
    assert counted["agrees"]


def test_the_head_is_counted_apart():
    """RoBERTa's classifier: dense 768 x 768 + 768, then 2 x 768 + 2."""
    assert count("lora", "roberta-base", {})["head"] == 592_130


def test_what_merges_adds_nothing_at_inference():
    assert count("lora", "roberta-base", {})["added_at_inference"] == 0
    assert count("houlsby", "bert-base", {})["added_at_inference"] == 2_379_264


def test_a_model_without_biases_has_no_bitfit():
    with pytest.raises(Exception, match="no bias terms"):
        count("bitfit", "llama-7b", {})


def test_the_rows_are_those_of_the_published_table():
    """Where the table of published counts is at hand, every exact row of LoRA that names one of our models is met."""
    table = Path(__file__).parents[2].parent / "shared/published/param_counts.tsv"
    if not table.exists():
        pytest.skip("the table of published counts is not beside the repository")
    rows = list(csv.DictReader(table.open(), delimiter="\t"))
    published = {
        int(row["published"].replace(",", ""))
        for row in rows
        if row["exact_or_rounded"] == "exact" and row["method"] in ("LoRA", "lora", "full-finetuning", "full")
    }
    ours = {row[3] for row in EXACT}
    assert {9_175_040, 18_350_080, 9_461_760, 294_912, 3_212_749_824, 85_798_656} <= published & ours
