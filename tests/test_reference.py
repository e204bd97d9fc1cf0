"""The committed results of real runs are whole, say where they come from, and are what README shows."""

import re
import statistics

import pytest

from workflow import registry, results
from workflow.cells import Cell
from workflow.grid import load

REFERENCE = registry.ROOT / "results" / "reference"
FILES = sorted(REFERENCE.glob("*/cells/**/seed*.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-4:]))
def test_a_result_is_valid_and_says_where_it_comes_from(path):
    result = results.read(path)
    cell = Cell.from_json(result["cell"])
    assert path.match(str(cell.path.relative_to("results"))) and result["key"] == cell.key
    provenance = result["provenance"]
    assert provenance["git"]["dirty"] is False and re.fullmatch("[0-9a-f]{40}", provenance["git"]["commit"])
    assert provenance["packages"]["torch"] and provenance["data"]["fingerprint"] and provenance["model"]["fingerprint"]
    if result["status"] == "ok" and not result.get("cost_only"):
        assert path.with_name(f"{path.stem}.predictions.parquet").exists()


def glue_small(task, method):
    """Accuracy or correlation over the seeds of a configuration."""
    found = [results.read(path) for path in FILES if f"glue_small/cells/glue/{task}/minilm-l6/{method}-" in str(path)]
    return [r["metrics"][r["metrics"]["rule"]][r["metrics"]["primary"]]["value"] for r in found]


def test_the_study_stands_as_it_should():
    """LoRA learns SST-2, the linear probe is below it, and shuffled labels teach nothing."""
    lora, head, shuffled = (glue_small("sst2", method) for method in ("lora", "head", "random_labels"))
    assert len(lora) == len(head) == 3
    assert statistics.mean(lora) >= 0.86
    assert statistics.mean(head) < statistics.mean(lora)
    assert abs(shuffled[0] - 0.5) < 0.05


def accuracies(grid, task):
    """Test accuracy of each method of a committed grid."""
    found = {}
    for path in FILES:
        if path.match(f"{grid}/cells/{task}/*/*/*"):
            result = results.read(path)
            found[result["cell"]["method"]] = result["metrics"]["selected"]["accuracy"]["value"]
    return found


@pytest.mark.parametrize("task", ["glue/sst2", "demo_glue/entailment"])
def test_every_low_rank_method_learns_more_than_a_head(task):
    found = accuracies("lowrank_small", task)
    family = {name for name, info in registry.methods().items() if info.path.parent.name == "lowrank"}
    assert family <= found.keys()
    assert [name for name in family if found[name] <= found["head"]] == []


UNLEARNT = {"p_tuning", "dept", "prompt_tuning"}  # in 80 steps of 16 pairs; see results/reference/README.md


@pytest.mark.parametrize(
    ("task", "below"), [("glue/sst2", set()), ("demo_glue/entailment", UNLEARNT), ("demo_vtab/texture", set())]
)
def test_adapters_prompts_and_their_kin_learn_more_than_a_head(task, below):
    found = accuracies("adapters_small", task)
    grid = load(registry.ROOT / "config/adapters_small.yaml")
    assert {cell.method for cell in grid.cells if f"{cell.suite}/{cell.task}" == task} == found.keys()
    assert {name for name in found if found[name] < found["head"]} == below


def test_readme_shows_the_reference_table():
    shown = re.search(
        "<!-- table:begin -->(.*?)<!-- table:end -->", (registry.ROOT / "README.md").read_text(), re.DOTALL
    )
    table = (REFERENCE / "glue_small" / "tables" / "summary.md").read_text()
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert rows and [row for row in rows if row not in shown[1]] == []
