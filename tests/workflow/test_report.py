"""The report is one well-formed page that needs nothing from outside and hides nothing."""

import re
from html.parser import HTMLParser

import pytest

from tests.workflow import studies
from tests.workflow.studies import cell, failed, grid, result, store
from workflow import quality, registry, report, tables

VOID = {"meta", "link", "br", "hr", "img", "input", "col"}


@pytest.fixture(autouse=True)
def made_up_tasks(monkeypatch):
    monkeypatch.setattr(registry, "suites", studies.suites)


class Page(HTMLParser):
    """Every element with its attributes; fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def demo(tmp_path):
    """A demo grid in a folder: controls, a good method, one below control, one out of memory, one that has not run."""
    made = [
        result(cell("head", suite="demo_glue"), 0.80, trained=0),
        result(cell("full", suite="demo_glue"), 0.95, trained=100_000),
        result(cell("lora", suite="demo_glue"), 0.93),
        result(cell("vera", suite="demo_glue"), 0.60, trained=300),
        failed(cell("oft", suite="demo_glue"), "oom", "<script>alert(1)</script> & no memory"),
    ]
    made[2]["parameters"]["expected"]["trained"] = 999
    store(tmp_path, *made)
    cells = [cell(name, suite="demo_glue") for name in ("head", "full", "lora", "vera", "oft", "boft")]
    return grid(*cells, demo=True), tmp_path


@pytest.fixture
def text(demo):
    return report.build(*demo).read_text()


def test_it_lies_in_the_results_of_its_grid(demo):
    assert report.build(*demo) == demo[1] / "results/study/report/index.html"


def test_the_page_is_well_formed_and_its_ids_are_unique(text):
    ids = [attributes["id"] for _, attributes in Page(text).elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_links_inside_the_page_lead_somewhere(text):
    page = Page(text)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {attributes["href"][1:] for attributes in page.all("a")} <= ids


def test_nothing_comes_from_outside(text):
    page = Page(text)
    assert not [a for tag, a in page.elements if tag in ("link", "img", "iframe") or "src" in a]
    assert not re.search(r"url\(\s*['\"]?(?!#)|@import", text)


def test_reasons_are_escaped(text):
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_tables_are_accessible_and_have_units(text):
    page = Page(text)
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert len(re.findall(r'<th scope="col"><button type="button">(?!method)', text)) == len(
        re.findall("<small>", text)
    )


def test_figures_say_in_words_what_they_show(text):
    labels = [attributes["aria-label"] for attributes in Page(text).all("svg")]
    assert len(labels) == 1
    assert "lora 93.0 ± 2.0 at 1,000" in labels[0] and "head 80.0 (line)" in labels[0]


def test_a_demo_says_so(text):
    assert '<span class="badge">demo</span>' in text


def test_the_quality_section_names_what_to_look_at(demo):
    built = tables.build(*demo)
    kinds = {finding.kind: finding for finding in quality.findings(built.study, built.ranked)}
    assert list(kinds) == ["failed cells", "missing cells", "below control", "parameter counts", "one seed"]
    assert kinds["below control"].where.startswith("vera")
    assert kinds["parameter counts"].text == "trained: 1,000 found, 999 expected from the closed form"
    assert kinds["one seed"].text == "every score"


def test_texts_without_an_answer_and_cut_test_sets_are_findings(tmp_path):
    of = cell(suite="math", task="gsm8k", protocol={"name": "p", "version": 1, "max_test": 500})
    store(tmp_path, result(of, 0.5, others={"unparsed": 0.25}))
    built = tables.build(grid(of), tmp_path)
    found = {finding.kind: finding.text for finding in quality.findings(built.study, built.ranked)}
    assert found["unparsed answers"] == "25 % of the texts have no strict answer"
    assert found["cut test sets"] == "n = 500 test examples, cut by the protocol's max_test of 500"


def test_parts_and_answers_have_sections_only_where_there_are_such_tasks(demo, text, tmp_path):
    assert 'id="parts"' not in text and 'id="answers"' not in text
    values = {f"accuracy/{part}": 0.5 for part in ("gsm8k", "svamp", "addsub")}
    of = cell(suite="math", task="math10k")
    store(tmp_path, result(of, 0.5, others=values))
    page = Page(report.build(grid(of), tmp_path).read_text())
    assert {"parts", "answers"} <= {attributes.get("id") for attributes in page.all("section")}
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {attributes["href"][1:] for attributes in page.all("a")} <= ids


def test_many_tables_are_folded(tmp_path):
    names = ("cifar", "dtd", "pets", "clevr", "dsprites")
    cells = [cell(suite="vtab", task=name, model=model) for name in names for model in ("a", "b")]
    store(tmp_path, *(result(one, latency=None, trained=100 + i) for i, one in enumerate(cells)))
    page = Page(report.build(grid(*cells), tmp_path).read_text())
    folded = [attributes for attributes in page.all("details") if attributes.get("class") == "block"]
    assert len(folded) == 10  # of parameters; memory, time and latency are the same everywhere
    assert len(page.all("caption")) == len(page.all("table"))


def test_provenance_gives_distinct_values(demo):
    other = result(cell("lora", suite="demo_glue"), 0.93)
    other["provenance"] = other["provenance"] | {"host": "node2", "git": {"commit": "f" * 40, "dirty": True}}
    store(demo[1], other)
    chapters = {
        title: {f.name: f.values for f in facts} for title, facts in report.provenance(tables.build(*demo).study)
    }
    assert chapters["Machines"]["host"] == ("node1 (4 cells)", "node2 (1 cells)")
    assert chapters["Machines"]["device"] == ("cpu",)
    assert chapters["Code"]["git commit"][1] == f"{'f' * 40}, with uncommitted changes (1 cells)"
    assert chapters["Software"]["torch"] == ("2.13.0",)
    assert chapters["Data"] == {"demo_glue/sst2": ("dddddddddddddddd from made from a seed",)}


def test_the_same_results_give_the_same_bytes(demo):
    assert report.build(*demo).read_bytes() == report.build(*demo).read_bytes()


def test_a_grid_that_has_not_run_still_has_a_report(tmp_path):
    text = report.build(grid(cell(), cell("vera")), tmp_path).read_text()
    Page(text)
    assert "No result has recorded its provenance yet" in text
    assert "missing" in text
