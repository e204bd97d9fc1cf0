"""What the report's pages are given: every cell and its details, compressed, within a size, and safe in a page."""

import base64
import json
import math
import shutil
import subprocess
import zlib

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.workflow import studies
from tests.workflow.studies import cell, failed, grid, result, store
from workflow import registry, report_cells, report_data, report_facts, report_links, tables, text
from workflow.cells import Cell
from workflow.outcomes import Row
from workflow.registry import MethodInfo

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")


@pytest.fixture(autouse=True)
def made_up_tasks_and_plugins_read_once(monkeypatch):
    monkeypatch.setattr(registry, "suites", studies.suites)
    monkeypatch.setattr(registry, "methods", studies.methods)


def predictions(root, of: Cell, references, predicted, ids=None, **more) -> None:
    frame = pd.DataFrame({"id": ids or range(len(references)), "reference": references} | more)
    frame["prediction_selected"] = frame["prediction_last"] = predicted
    frame.to_parquet((root / of.path).with_suffix(".predictions.parquet"))


def unpacked(block):
    return json.loads(zlib.decompress(base64.b64decode(block.text), wbits=-15))


def by_id(blocks):
    return {block.id: block for block in blocks}


@pytest.fixture
def study(tmp_path):
    """Two methods and a control on one task; LoRA has two seeds, the last method ran out of memory."""
    cells = [cell("full"), cell("lora"), cell("lora", seed=1), cell("vera")]
    store(
        tmp_path,
        result(cells[0], 0.95, trained=100_000),
        result(cells[1], 0.9),
        result(cells[2], 0.92),
        failed(cells[3], "oom", "no memory"),
    )
    return tables.build(grid(*cells), tmp_path)


def test_every_cell_is_there_with_its_figures(study):
    found = by_id(report_data.blocks(study))
    columns, document = unpacked(found["atlas-cells"]), json.loads(found["atlas-data"].text)
    labels = [document["methods"][row]["label"] for row in columns["row"]]
    assert list(zip(labels, columns["seed"], strict=True)) == [("full", 0), ("lora", 0), ("lora", 1), ("vera", 0)]
    assert columns["value"] == [0.95, 0.9, 0.92, None] and columns["trained"] == [100_000, 1000, 1000, None]
    assert columns["memory"] == [256, 256, 256, None] and columns["step"] == [25, 25, 25, None]
    assert [columns["shared"]["reason"][index] for index in columns["reason"]] == ["", "", "", "no memory"]
    assert len(columns["shared"]["recipe"]) == 1 and "energy" not in columns
    assert document["cells"] == 4 and document["lost"] == {}


def test_standings_are_those_of_the_tables(study):
    document = json.loads(report_data.blocks(study)[0].text)
    rows = {row: (mean, seeds, best) for row, _, mean, _, seeds, best, _ in document["standings"]}
    assert rows == {0: (95, 1, False), 1: (91, 2, True)}


def test_details_hold_figures_curves_and_provenance(study):
    found = by_id(report_data.blocks(study))
    figures = unpacked(found["atlas-figures-0"])
    assert figures[1]["metrics"]["selected"]["accuracy"] == {"value": 0.9, "stderr": 0.01, "n": 500}
    assert figures[0]["provenance"]["host"] == "node1" and figures[3]["provenance"]["host"] == "node1"
    assert unpacked(found["atlas-curves-0"])[1]["train_loss"] == {"of": 2, "steps": [1, 30], "values": [0.7, 0.2]}
    assert "atlas-right-0" not in found and "atlas-predictions-0" not in found


@pytest.mark.parametrize("ascii_only", [True, False], ids=["escaped", "as it is"])
@pytest.mark.parametrize("hidden", ["\x1b", "\x7f", "\x85", "\b", "\f", "\r", "\u202e", "\u2028", "\U000e0041"])
def test_texts_of_a_whole_result_have_nothing_hidden_in_them(tmp_path, hidden, ascii_only):
    one = cell("lora")
    provenance = studies.PROVENANCE | {"host": f"a{hidden}b"}
    store(tmp_path, result(one, 0.9, provenance=provenance))
    path = tmp_path / one.path
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=ascii_only), encoding="utf-8")
    (outcome,) = tables.build(grid(one), tmp_path).study.all()
    assert outcome.result["provenance"]["host"] == text.plain(f"a{hidden}b") != f"a{hidden}b"


def test_counts_are_held_against_the_closed_form(tmp_path):
    wrong = result(cell("lora", seed=1))
    wrong["parameters"]["expected"]["trained"] = 999
    store(tmp_path, result(cell("lora")), wrong)
    built = tables.build(grid(cell("lora"), cell("lora", seed=1)), tmp_path)
    counts = json.loads(report_data.blocks(built)[0].text)["counts"]
    assert [(count["cells"], count["mismatch"]) for count in counts] == [
        (1, []),
        (1, ["trained: 1,000 found, 999 expected from the closed form"]),
    ]


def test_long_curves_are_thinned_with_both_ends(tmp_path):
    of = cell("lora")
    store(tmp_path, result(of, curves={"train_loss": [[step, 1 / step] for step in range(1, 1001)]}))
    found = by_id(report_data.blocks(tables.build(grid(of), tmp_path)))
    curve = unpacked(found["atlas-curves-0"])[0]["train_loss"]
    assert curve["of"] == 1000 and len(curve["steps"]) == report_cells.CURVE
    assert (
        curve["steps"][0] == 1 and curve["steps"][-1] == 1000 and curve["values"][1] == round(1 / curve["steps"][1], 6)
    )


def test_a_sample_shows_wrong_and_right_examples_by_class(tmp_path):
    of = cell("lora")
    store(tmp_path, result(of))
    predictions(tmp_path, of, [0, 1, 1, 0, 1, 0, 1], [0, 1, 0, 0, 0, 1, 0], score_0=[0.9] * 7, score_1=[0.1] * 7)
    found = by_id(report_data.blocks(tables.build(grid(of), tmp_path)))
    sample = unpacked(found["atlas-predictions-0"])[0]
    assert sample["of"] == 7 and [row["id"] for row in sample["rows"]] == [0, 1, 2, 4, 5]
    assert sample["rows"][2] == {"id": 2, "reference": "b", "prediction": "a", "right": False, "confidence": 0.9}


def test_texts_of_a_sample_are_cut(tmp_path):
    of = cell("lora", suite="math", task="gsm8k")
    store(tmp_path, result(of))
    predictions(tmp_path, of, ["1"], ["2"], text=["x" * 5000])
    found = by_id(report_data.blocks(tables.build(grid(of), tmp_path)))
    text = unpacked(found["atlas-predictions-0"])[0]["rows"][0]["text"]
    assert text == "x" * report_cells.LONGEST + " …"


def right_of(root, *cells):
    found = by_id(report_data.blocks(tables.build(grid(*cells), root)))
    return unpacked(found["atlas-right-0"])


def bits(right):
    return np.unpackbits(np.frombuffer(base64.b64decode(right["bits"]), np.uint8))[: right["n"]].tolist()


def test_right_and_wrong_are_bits_in_the_order_of_the_ids(tmp_path):
    first, second, other = cell("lora"), cell("vera"), cell("full")
    store(tmp_path, result(first), result(second), result(other))
    predictions(tmp_path, first, [0, 1, 1], [0, 0, 1], ids=["a", "b", "c"])
    predictions(tmp_path, second, [1, 1, 0], [1, 1, 1], ids=["c", "b", "a"])
    predictions(tmp_path, other, [1, 1, 0], [1, 1, 1], ids=["c", "b", "d"])
    full, lora, vera = right_of(tmp_path, first, second, other)
    assert bits(lora) == [1, 0, 1] and bits(vera) == [0, 1, 1]
    assert lora["examples"] == vera["examples"] != full["examples"]


def test_parts_outside_the_headline_do_not_count(tmp_path):
    mean, one = cell(suite="math", task="math10k"), cell(task="mnli")
    store(tmp_path, result(mean), result(one))
    predictions(tmp_path, mean, ["1"] * 3, ["1", "2", "1"], part=["gsm8k", "addsub", "svamp"])
    predictions(tmp_path, one, [1] * 3, [1, 0, 1], part=["matched", "matched", "mismatched"])
    pooled, matched = right_of(tmp_path, mean, one)
    assert bits(pooled) == [1, 1] and bits(matched) == [1, 0]


@pytest.mark.parametrize("damage", ["cut short", "no ids", "repeated ids"])
def test_unusable_predictions_are_as_none(tmp_path, damage):
    of = cell("lora")
    store(tmp_path, result(of))
    predictions(tmp_path, of, [0, 1], [0, 1], ids=[5, 5] if damage == "repeated ids" else None)
    path = (tmp_path / of.path).with_suffix(".predictions.parquet")
    if damage == "cut short":
        path.write_bytes(path.read_bytes()[:40])
    if damage == "no ids":
        pd.read_parquet(path).drop(columns="id").to_parquet(path)
    assert "atlas-right-0" not in by_id(report_data.blocks(tables.build(grid(of), tmp_path)))


def test_parts_are_left_out_one_by_one_and_named(tmp_path):
    cells = [cell("lora", seed=seed) for seed in range(4)]
    store(tmp_path, *(result(one) for one in cells))
    for one in cells:
        predictions(tmp_path, one, [0, 1], [0, 0])
    built = tables.build(grid(*cells), tmp_path)
    whole = report_data.blocks(built)
    details = sum(block.size for block in whole[2:])
    columns = whole[1].size
    assert [block.attributes["data-part"] for block in whole[2:]] == ["figures", "right", "curves", "predictions"]

    fewer = report_data.blocks(built, columns + details - 1)
    assert [block.attributes["data-part"] for block in fewer[2:]] == ["figures", "right", "curves"]
    assert list(json.loads(fewer[0].text)["lost"]) == ["predictions"]

    none = report_data.blocks(built, columns + 1)
    assert len(none) == 2 and list(json.loads(none[0].text)["lost"]) == list(report_data.PARTS)


def test_the_same_results_give_the_same_bytes(study):
    assert report_data.embed(study) == report_data.embed(study)


HOSTILE = "</script><script>alert(1)</script><!--"


def test_no_text_can_end_its_element(tmp_path):
    of = cell("lora", label=HOSTILE, source=HOSTILE)
    other = cell("vera")
    store(tmp_path, failed(other, "error", HOSTILE), result(of))
    built = tables.build(grid(of, other, title=HOSTILE + "\ud800"), tmp_path)
    page = str(report_data.embed(built))
    blocks = report_data.blocks(built)
    assert page.count("<script ") == page.count("</script>") == len(blocks) and "<!--" not in page
    assert json.loads(blocks[0].text)["grid"]["title"] == HOSTILE + "\ud800"
    assert HOSTILE in unpacked(blocks[1])["shared"]["reason"]
    page.encode()


def test_only_papers_with_a_known_address_are_links():
    def url(paper):
        info = MethodInfo("m", registry.ROOT / "methods" / "m.py", paper=paper)
        return report_facts.method(Row("m", "m"), info)["url"]

    assert url("2106.09685") == "https://arxiv.org/abs/2106.09685"
    assert url("openreview:TwJrTz9cRS") == "https://openreview.net/forum?id=TwJrTz9cRS"
    assert url("javascript:alert(1)") is None and url("") is None


def test_a_plugin_is_described_and_an_unknown_one_only_named(tmp_path):
    built = tables.build(grid(cell("lora"), cell("no_such_method")), tmp_path)
    lora, unknown = report_facts.methods(built.study, built.grid)
    assert lora["file"] == "methods/lowrank/lora.py" and lora["settings"]["rank"] == ("8", "int")
    assert "B A" in lora["doc"] and lora["family"] == "lowrank"
    assert unknown == {"label": "no_such_method", "method": "no_such_method", "control": False, "error": None}


def test_links_keep_every_name_in_one_part():
    assert report_links.method("lora (tuned) [1/2]") == "#/method/lora%20%28tuned%29%20%5B1%2F2%5D"
    assert report_links.compare("a#b", "c?d") == "#/compare/a%23b/c%3Fd"
    assert report_links.cells() == "#/cells" and report_links.cells("oom") == "#/cells/oom"


# --- in the browser's language ----------------------------------------------------------------------------------------


def javascript(code: str, *names: str, **given):
    """What a module that begins with these scripts prints as JSON."""
    scripts = "\n".join((report_data.STATIC / name).read_text() for name in names)
    given = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in given.items())
    done = subprocess.run(
        [NODE, "--input-type=module", "-"], input=given + scripts + code, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
def test_every_script_of_the_pages_can_be_read():
    done = subprocess.run([NODE, "--check", "-"], input=report_data.script(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@needs_node
def test_intervals_and_tests_are_those_of_scipy():
    differences = [[1.0, 2.5], [0.3, -0.2, 0.4, 0.9], [5.0] * 3, list(np.random.default_rng(0).normal(1, 2, 12))]
    pairs = [(0, 0), (0, 1), (3, 12), (12, 3), (7, 7), (40, 41), (5000, 5300), (0, 900), (1, 30_000)]
    code = """
    console.log(JSON.stringify({
      means: differences.map((d) => pairedMean(d, t)),
      p: pairs.map(([a, b]) => mcnemar(a, b)),
      shares: pairs.map(([a, b]) => pairedShares(a, b, 40_000)),
    }));"""
    found = javascript(code, "statistics.js", differences=differences, pairs=pairs, t=report_data.quantiles(12))
    for values, ours in zip(differences, found["means"], strict=True):
        interval = stats.ttest_1samp(values, 0).confidence_interval(0.95) if np.std(values) else (5.0, 5.0)
        assert (ours["mean"] - ours["half"], ours["mean"] + ours["half"]) == pytest.approx(tuple(interval), abs=1e-9)
    for (a, b), p, ours in zip(pairs, found["p"], found["shares"], strict=True):
        assert p == pytest.approx(stats.binomtest(a, a + b).pvalue if a + b else 1.0, rel=1e-7, abs=1e-300)
        assert (ours["low"], ours["high"]) == pytest.approx(bonett_price(a, b, 40_000), abs=1e-12)
        assert ours["mean"] == pytest.approx((a - b) / 40_000)


def bonett_price(only_first, only_second, n):
    """95 % interval of the difference of two paired shares (Bonett and Price, 2012)."""
    first, second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half = stats.norm.ppf(0.975) * math.sqrt((first + second - (first - second) ** 2) / (n + 2))
    return max(-1, first - second - half), min(1, first - second + half)


@needs_node
def test_the_browser_reads_what_is_embedded(tmp_path, monkeypatch):
    """Columns and details as data.js gives them from blocks of one cell each, and disagreements of two cells."""
    monkeypatch.setattr(report_data, "BLOCK", 1)
    first, second = cell("lora"), cell("vera")
    store(tmp_path, result(first, 0.9), result(second, 0.8))
    drawn = np.random.default_rng(1).integers(0, 2, (3, 37))
    predictions(tmp_path, first, drawn[0], drawn[1])
    predictions(tmp_path, second, drawn[0], drawn[2])
    texts = {block.id: block.text for block in report_data.blocks(tables.build(grid(first, second), tmp_path))}
    code = """
    const data = await report();
    const rights = await Promise.all([0, 1].map((index) => detail("right", index)));
    console.log(JSON.stringify({
      labels: [0, 1].map((index) => data.methods[data.at("row", index)].label),
      standing: data.standing(1, 0).mean,
      step: data.figure("step", 0, 0),
      energy: data.figure("energy", 0, 0),
      curves: await detail("curves", 1),
      n: rights[0].n,
      ...disagreements(...rights.map(({ bits }) => bytesOf(bits))),
    }));"""
    document = "const document = { getElementById: (id) => (id in texts ? { textContent: texts[id] } : null) };"
    found = javascript(document + code, "data.js", "statistics.js", texts=texts)
    ours, theirs = drawn[1] == drawn[0], drawn[2] == drawn[0]
    assert (found["n"], found["onlyFirst"], found["onlySecond"]) == (
        37,
        (ours & ~theirs).sum(),
        (~ours & theirs).sum(),
    )
    assert found["labels"] == ["lora", "vera"] and found["standing"] == 80
    assert found["step"] == 25 and found["energy"] is None
    assert found["curves"]["validation"] == {"of": 1, "steps": [30], "values": [0.8]}


SEEDS = {"lora": (0.91, 0.93, 0.92), "vera": (0.90, 0.905, 0.915)}


@pytest.fixture
def compared(tmp_path):
    """LoRA minus VeRA at places that differ in what there is to pair, by task."""

    def both(task, suite="glue", predicted=None, **more):
        cells = [cell(name, task=task, suite=suite) for name in SEEDS]
        store(tmp_path, *(result(one, **more) for one in cells))
        for one, (answers, ids) in zip(cells, predicted or (), strict=bool(predicted)):
            parts = {"part": ["gsm8k", "svamp", "addsub", "gsm8k"]} if suite == "math" else {}
            predictions(tmp_path, one, [1, 1, 1, 1], answers, ids=ids, **parts)
        return cells

    cells = [cell(name, seed=seed) for name in SEEDS for seed in range(3)]
    store(tmp_path, *(result(one, SEEDS[one.method][one.seed]) for one in cells))
    same, other = list("abcd"), list("abcx")
    cells += both("mrpc", predicted=[([1, 1, 1, 0], same), ([0, 0, 1, 1], same)])
    cells += both("cola", metric="matthews", predicted=[([1, 1, 1, 0], same), ([1, 1, 1, 1], other)])
    cells += both("math10k", "math", predicted=[([1, 1, 0, 0], same), ([0, 1, 1, 1], same)])
    cells += both("wnli")
    cells += both("generate", "cost", metrics=None)
    apart = [cell("lora", task="rte"), cell("vera", task="rte", seed=1)]
    lost = [cell("lora", task="mnli"), cell("vera", task="mnli")]
    store(tmp_path, *map(result, apart), result(lost[0]), failed(lost[1], "oom", "no memory"))
    built = tables.build(grid(*cells, *apart, *lost), tmp_path)
    code = """
    const data = await report();
    const found = {};
    for (const place of data.places.keys()) {
      const { at, a, b, ...record } = await pairedRecord(data, 0, 1, place);
      found[data.task(place).task] = { ...record, verdict: outcomeText(record, "lora", "vera") };
    }
    console.log(JSON.stringify(found));"""
    texts = {block.id: block.text for block in report_data.blocks(built)}
    document = "const document = { getElementById: (id) => (id in texts ? { textContent: texts[id] } : null) };"
    return javascript(document + code, "data.js", "statistics.js", "elements.js", "compare.js", texts=texts)


@needs_node
def test_methods_are_paired_by_seeds_else_by_examples_else_the_reason_is_given(compared):
    seeds, examples, pooled = compared["sst2"], compared["mrpc"], compared["math10k"]
    interval = stats.ttest_rel(*(100 * np.array(values) for values in SEEDS.values())).confidence_interval(0.95)
    assert (seeds["low"], seeds["high"]) == pytest.approx((interval.low, interval.high))
    assert (seeds["basis"], seeds["verdict"]) == ("3 seeds", "not distinguishable")

    low, high = bonett_price(2, 1, 4)
    assert (examples["low"], examples["high"]) == pytest.approx((100 * low, 100 * high))
    assert (examples["mean"], examples["p"]) == (25, 1) and examples["unit"] == "accuracy, %"
    assert examples["basis"] == "4 examples, seed 0"

    assert pooled["mean"] == pytest.approx(0) and pooled["basis"] == "3 examples, seed 0"
    assert pooled["unit"] == "right answers, %"
    assert {task: found["why"] for task, found in compared.items() if "why" in found} == {
        "cola": "one seed, and the predictions are of different test examples",
        "wnli": "one seed, and no stored predictions that are either right or wrong",
        "generate": "the suite measures costs only",
        "rte": "no seed in common",
        "mnli": "no score of vera: oom",
    }
