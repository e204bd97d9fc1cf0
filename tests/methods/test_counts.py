"""Published parameter counts, met without weights: method, model, settings, the figure, and who printed it."""

import csv
import subprocess
import sys
import time
from pathlib import Path

import pytest

from models.entries import models
from workflow.count import count

ALL_LINEAR = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.up", "mlp.gate", "mlp.down"]
LLM_ADAPTERS = ["attn.q", "attn.k", "attn.v", "mlp.up", "mlp.down"]
EVERY_Q_V = ["attn.q", "attn.v", "cross.q", "cross.v"]
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
    ("lora", "gpt3-175b", {"rank": 1}, 4_718_592, "LoRA, Table 15 (4.7M)"),
    ("lora", "gpt3-175b", {"rank": 4}, 18_874_368, "LoRA, Table 15 (18.8M)"),
    ("lora", "gpt3-175b", {}, 37_748_736, "LoRA, Table 15 (37.7M)"),
    ("houlsby", "gpt3-175b", {"size": 1, "train_norms": False}, 7_078_080, "LoRA, Table 15 (7.1M)"),
    ("houlsby", "gpt3-175b", {"size": 8, "train_norms": False}, 40_109_568, "LoRA, Table 15 (40.1M)"),
    ("houlsby", "gpt3-175b", {"size": 64, "train_norms": False}, 304_361_472, "LoRA, Table 15 (304.4M)"),
    ("houlsby", "roberta-large", {"size": 8, "train_norms": False}, 835_968, "LoRA, Table 2 (0.8M)"),
    ("lora", "deberta-v2-xxl", {"rank": 16}, 4_718_592, "LoRA, Table 2 (4.7M, its scripts' rank)"),
    ("lora", "gpt2-medium", {}, 786_432, "FourierFT, Table 1 (786K)"),
    ("lora", "gpt2-large", {"rank": 4}, 737_280, "FourierFT, Table 1 (737K)"),
    ("lora", "vit-l16", {}, 786_432, "VeRA, Table 5 (786.4K)"),
    ("lora", "llama-2-7b", {"rank": 64}, 33_554_432, "FourierFT, Table 1 (33.5M)"),
    ("lora", "llama-2-13b", {"rank": 64}, 52_428_800, "FourierFT, Table 1 (52.4M)"),
    ("lora", "llama-2-7b", {"rank": 64, "sites": ALL_LINEAR}, 159_907_840, "VeRA (159.9M)"),
    ("lora", "llama-2-13b", {"rank": 64, "sites": ALL_LINEAR}, 250_347_520, "MiSS (250M)"),
    ("lora", "llama-13b", {"rank": 32, "sites": LLM_ADAPTERS}, 87_818_240, "DoRA, Table 1 (0.67 %)"),
    ("lora", "llama-3-8b", {"rank": 32, "sites": LLM_ADAPTERS}, 56_623_104, "DoRA, Table 1 (0.70 %)"),
    ("lora", "llama-3-8b", {"rank": 16, "sites": ["attn.k", "attn.v", "mlp.down"]}, 14_680_064, "PEFT-Bench"),
    ("lora", "mistral-7b", {"rank": 64, "sites": ALL_LINEAR}, 167_772_160, "VB-LoRA (168M)"),
    ("lora", "gemma-7b", {"rank": 64, "sites": ALL_LINEAR}, 200_015_872, "VB-LoRA (200M)"),
    ("lora", "deberta-v3-base", {"sites": ALL_LINEAR}, 1_327_104, "AdaLoRA, Table 1 (1.33M)"),
    ("lora", "deberta-v3-base", {"rank": 1, "sites": ALL_LINEAR}, 165_888, "SVFT (0.17M)"),
    ("ia3", "llama-3.2-3b", {}, 286_720, "huggingface/peft method comparison"),
]
PRINTED = [
    ("opt-350m", {"rank": 16}, 1_572_864, 332_769_280),
    ("opt-6.7b", {"rank": 16}, 8_388_608, 6_666_862_592),
    ("qwen2.5-3b", {"rank": 16}, 3_686_400, 3_089_625_088),
    ("flan-t5-large", {"rank": 16, "sites": EVERY_Q_V}, 4_718_592, 787_868_672),
    ("llama-2-70b", {}, 16_384_000, 68_993_032_192),
]


@pytest.mark.parametrize(("method", "model", "settings", "published", "source"), EXACT)
def test_attached_and_closed_form_meet_the_published_count(method, model, settings, published, source):
    counted = count(method, model, settings)
    assert counted["trained"] == published, source
    assert counted["expected"]["trained"] == published, source
    assert counted["agrees"]


@pytest.mark.parametrize(("model", "settings", "trained", "everything"), PRINTED)
def test_what_peft_prints_for_lora_in_public_examples(model, settings, trained, everything):
    """Its "trainable params" and "all params": the second holds the network with its output layer, and the first."""
    counted = count("lora", model, settings)
    assert (counted["trained"], counted["backbone"] + counted["trained"]) == (trained, everything)


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


HUGE = 3e10
SIZES = {name: entry.parameters for name, entry in models().items() if entry.source != "random"}
SOME = ["bert-large", "swin-b", "t5-large", "llama-2-70b", "gpt3-175b"]


@pytest.mark.parametrize(
    ("method", "model"),
    [("lora", name) for name in SIZES] + [(method, name) for method in ("houlsby", "ia3", "full") for name in SOME],
)
def test_counting_takes_no_time(method, model):
    """Less than a second, five for the largest (processor time, the best of three), once torch is imported."""
    count(method, "tiny-bert", {})
    allowed, taken = (5 if SIZES[model] > HUGE else 1), []
    while not taken or min(taken) >= allowed and len(taken) < 3:
        began = time.process_time()
        assert count(method, model, {})["agrees"]
        taken.append(time.process_time() - began)
    assert min(taken) < allowed


def test_counting_needs_no_network():
    """The command of the README, with a socket that cannot be opened."""
    code = (
        "import socket, sys; socket.socket.connect = socket.getaddrinfo = lambda *_: sys.exit('network');"
        "from workflow.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "count", "--method", "lora", "--model", "gpt3-175b", "--set", "rank=1"]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ran.returncode == 0 and "4,718,592" in ran.stdout, ran.stderr
