"""Texts of test examples beside their predictions: of the data that the result was made with alone, never fetched."""

from types import SimpleNamespace

import pytest

from tests.tasks import test_glue
from tests.workflow import studies
from tests.workflow.studies import result, store
from workflow import registry, report_cells, report_data, report_texts, tables
from workflow.errors import AtlasError
from workflow.report_texts import Texts


@pytest.fixture(autouse=True)
def hub_on(monkeypatch):
    monkeypatch.delenv(report_texts.OFFLINE, raising=False)


def loaded(suite, task, data_root=None):
    found = registry.suites()[suite]
    return found.load(task, found.protocol(task), data_root)


def outcome(suite, task, fingerprint="?"):
    protocol = registry.suites()[suite].protocol(task)
    cell = SimpleNamespace(suite=suite, task=task, protocol=protocol)
    return SimpleNamespace(
        cell=cell, value=lambda *path: {("provenance", "data", "fingerprint"): fingerprint}.get(path)
    )


def test_examples_of_a_demo_are_told_by_column():
    data = loaded("demo_glue", "entailment")
    example = data.test.ids[7]
    premise, hypothesis = data.test.inputs[7]
    texts = Texts(None)
    found = outcome("demo_glue", "entailment", data.fingerprint)
    assert texts.of(found, example) == {"premise": premise, "hypothesis": hypothesis}
    assert texts.of(found, 10**9) == {}


def test_examples_of_other_data_are_not_told():
    example = loaded("demo_glue", "entailment").test.ids[7]
    assert Texts(None).of(outcome("demo_glue", "entailment", "0" * 64), example) == {}


def test_a_prompt_is_told_by_its_end():
    data = loaded("demo_commonsense", "choice")
    found, prompt = outcome("demo_commonsense", "choice", data.fingerprint), data.test.inputs[0][0]
    assert Texts(None).of(found, data.test.ids[0]) == {"prompt": prompt}
    long = "x" * report_cells.LONGEST + prompt
    assert report_texts.end_of(long) == report_cells.cut(report_texts.end_of(long))
    assert report_texts.end_of(long).startswith("… xx") and report_texts.end_of(long).endswith(prompt)


def test_images_have_no_text():
    assert Texts(None).of(outcome("demo_vtab", "texture", loaded("demo_vtab", "texture").fingerprint), 0) == {}


def test_a_local_data_root_is_read_once(tmp_path, monkeypatch):
    test_glue.write(tmp_path, "sst2", "train", 300)
    test_glue.write(tmp_path, "sst2", "validation", 30)
    data, suite = loaded("glue", "sst2", tmp_path), registry.suites()["glue"]
    read = []
    monkeypatch.setattr(type(suite), "load", lambda *given: read.append(given) or data)
    texts, found = Texts(tmp_path), outcome("glue", "sst2", data.fingerprint)
    assert [texts.of(found, example) for example in (3, 5)] == [
        {"sentence": "sentence 3 of validation"},
        {"sentence": "sentence 5 of validation"},
    ]
    assert len(read) == 1


def test_nothing_is_fetched(monkeypatch):
    asked = []

    def load(*given):
        asked.append(given)
        raise AtlasError("not in the cache")

    monkeypatch.setattr(type(registry.suites()["glue"]), "load", load)
    assert Texts(None).of(outcome("glue", "sst2"), 3) == {} and not asked, "the hub might be asked"
    monkeypatch.setenv(report_texts.OFFLINE, "1")
    texts = Texts(None)
    assert [texts.of(outcome("glue", "sst2"), example) for example in (3, 5)] == [{}, {}] and len(asked) == 1


def test_the_page_has_the_texts_beside_the_predictions(tmp_path, monkeypatch):
    from tests.workflow.test_report_data import by_id, predictions, unpacked

    data = loaded("demo_glue", "acceptability")
    protocol = registry.suites()["demo_glue"].protocol("acceptability")
    of = studies.cell("lora", suite="demo_glue", task="acceptability", protocol=protocol)
    provenance = studies.PROVENANCE | {"data": {"fingerprint": data.fingerprint, "source": data.source}}
    store(tmp_path, result(of, provenance=provenance))
    predictions(tmp_path, of, [0, 1], [0, 0], ids=[4, 9])
    blocks = by_id(report_data.blocks(tables.build(studies.grid(of), tmp_path)))
    rows = unpacked(blocks["atlas-predictions-0"])[0]["rows"]
    assert [row["sentence"] for row in rows] == [data.test.inputs[4][0], data.test.inputs[9][0]]
    assert list(rows[0])[:2] == ["id", "sentence"]
