"""What cells ask of the scheduler: more for larger networks, longer texts and methods that train more."""

import subprocess
import sys
import time

import pytest

from models.entries import model as model_entry
from tests.workflow import projects
from workflow import count, entry, registry, resources, sizes
from workflow.grid import load

GRID = """
tasks: {glue: [sst2]}
models: [roberta-base]
methods: [full, lora, head]
"""
LARGE = """
tasks: {gsm8k: [main]}
models: [llama-2-70b]
methods: [lora]
"""


def needs(folder, text, **changes):
    """What each cell of a grid asks for, by model and label."""
    projects.write(folder, "grid.yaml", text)
    grid = load(folder / "grid.yaml", changes)
    found = entry.Needs(grid)
    return {(cell.model, cell.label): found[cell.configuration] for cell in grid.cells}


def test_full_fine_tuning_asks_for_more_than_lora_and_both_for_minutes(tmp_path):
    found = needs(tmp_path, GRID)
    assert found["roberta-base", "full"]["mem_mb"] > found["roberta-base", "lora"]["mem_mb"] > 2000
    assert found["roberta-base", "full"]["runtime"] >= found["roberta-base", "lora"]["runtime"] >= 60
    assert "gpu" not in found["roberta-base", "lora"]


def test_recipes_count(tmp_path):
    def lora(recipe):
        return needs(tmp_path, GRID, recipe=recipe)["roberta-base", "lora"]["mem_mb"]

    plain = lora({"max_length": 256})
    assert lora({"max_length": 128}) < plain < lora({"max_length": 256, "batch_size": 64})
    assert lora({"max_length": 256, "gradient_checkpointing": True}) < plain
    assert lora({"max_length": 256, "micro_batch_size": 4}) < plain
    assert lora({"max_length": 256, "dtype": "bfloat16"}) < plain


def large(tmp_path, **recipe):
    given = {"dtype": "bfloat16", "micro_batch_size": 4, "max_length": 512} | recipe
    text = LARGE.replace("[llama-2-70b]", "[llama-3.2-1b, llama-2-70b]").replace("[lora]", "[full, lora]")
    return needs(tmp_path, text, recipe=given, resources={"gpu_mb": 80000})


def test_a_gpu_of_known_size_gives_their_number(tmp_path):
    plain, again = large(tmp_path), large(tmp_path, gradient_checkpointing=True)
    assert plain["llama-3.2-1b", "lora"]["gpu"] == 1
    assert plain["llama-2-70b", "lora"]["gpu"] > again["llama-2-70b", "lora"]["gpu"] >= 2
    assert plain["llama-2-70b", "full"]["gpu"] > plain["llama-2-70b", "lora"]["gpu"]
    assert 140_000 < again["llama-2-70b", "lora"]["mem_mb"] < 200_000  # the weights once, in 16 bits


def test_the_grid_wins(tmp_path):
    fixed = {"gpu": 3, "gpu_mb": 80000, "mem_mb": 1234, "runtime": 56}
    for found in needs(tmp_path, GRID, resources=fixed).values():
        assert found == {"gpu": 3, "mem_mb": 1234, "runtime": 56}


def test_a_wrapper_asks_for_what_it_wraps(tmp_path):
    text = GRID.replace("[full, lora, head]", "[full, lora, random_labels, {random_labels: {base: lora}}]")
    full, lora, labels, wrapped = (found["mem_mb"] for found in needs(tmp_path, text).values())
    assert (labels, wrapped) == (full, lora)


def test_thousands_of_cells_are_estimated_in_a_moment(tmp_path):
    text = """
    tasks: {glue: [sst2, cola]}
    models: [tiny-bert, roberta-base, smollm2-135m, llama-3.2-3b, bert-base]
    methods: [{method: lora, settings: {rank: {grid: %s}}}]
    """
    projects.write(tmp_path, "grid.yaml", text % list(range(1, 101)))
    grid = load(tmp_path / "grid.yaml")
    began = time.process_time()
    assert len(entry.Needs(grid)) == 1000
    assert time.process_time() - began < 3.0  # 0.5 s where nothing else runs


def test_the_number_of_gpus_reaches_the_scheduler(tmp_path):
    resources = "resources: {gpu_mb: 24000}\nrecipe: {dtype: bfloat16, micro_batch_size: 1, max_length: 256}\n"
    projects.write(tmp_path, "grid.yaml", LARGE + resources)
    (asked,) = {found["gpu"] for found in entry.Needs(load(tmp_path / "grid.yaml")).values()}
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(registry.ROOT / "Snakefile"), "--nolock"]
    command += ["--config", "grid=grid.yaml", "--cores", "1", "--dry-run", "--quiet", "host"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert asked > 1 and f"gpu={asked}" in done.stdout + done.stderr


def learned(name, model="roberta-base"):
    """What the job of a method with its own settings is estimated to train."""
    known, network = registry.methods(), sizes.of(model_entry(model))
    values = {name: setting.default for name, setting in known[name].settings.items()}
    return resources.learned_of(known[name], values, known, network)


def test_training_norms_or_biases_in_place_is_not_training_everything():
    assert learned("full").everything and learned("random_labels").everything
    for name in ("bitfit", "houlsby", "compacter", "compacter_pp", "ln_tuning"):
        assert not learned(name).everything, name


VECTORS = [name for name, info in registry.methods().items() if resources._literal(info, "vectors_only", False)]


@pytest.mark.parametrize("name", VECTORS)
def test_who_says_that_only_vectors_are_trained_trains_only_vectors(name):
    supported = [count.attached(name, model, {})[1] for model in ("minilm-l6", "vit-b16")]
    trained = [p for attached in supported for p in attached.base_parameters.values()]
    assert trained and all(p.dim() == 1 for p in trained)
