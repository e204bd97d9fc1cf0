"""The report is one well-formed page that needs nothing from outside and hides nothing."""

import base64
import hashlib
import re
import zlib
from html.parser import HTMLParser

import pytest

from tests.workflow import studies
from tests.workflow.studies import cell, failed, grid, result, store
from workflow import figure_scores, published, quality, registry, report, tables

VOID = {"meta", "link", "br", "hr", "img", "input", "col"}


@pytest.fixture(scope="module", autouse=True)
def made_up_tasks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "suites", studies.suites)
        patch.setattr(registry, "methods", studies.methods)
        yield


class Page(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles; fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.raw = [], [], []
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

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.raw.append((self.open[-1], self.elements[-1][1], data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def raw_texts(self, tag, **wanted):
        return [text for name, has, text in self.raw if name == tag and wanted.items() <= has.items()]

    def dangling(self):
        """Links inside the page that lead to no element; `#/…` are pages that scripts make."""
        ids = {attributes.get("id") for _, attributes in self.elements}
        links = {attributes["href"] for attributes in self.all("a")}
        assert all(link.startswith("#") for link in links)
        return {link for link in links if not link.startswith("#/")} - {f"#{name}" for name in ids}


def made_demo(tmp_path):
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
def demo(tmp_path):
    return made_demo(tmp_path)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """The demo's grid, its folder, and the path of its report."""
    made = made_demo(tmp_path_factory.mktemp("demo"))
    return *made, report.build(*made)


@pytest.fixture(scope="module")
def text(once):
    return once[2].read_text()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_it_lies_in_the_results_of_its_grid(once):
    assert once[2] == once[1] / "results/study/report/index.html"


def test_the_page_is_well_formed_and_its_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_links_inside_the_page_lead_somewhere(page):
    assert page.dangling() == set()
    assert {"#/method/lora", "#/task/demo_glue/sst2", "#/model/minilm-l6", "#/cells/oom"} <= {
        attributes["href"] for attributes in page.all("a")
    }


def test_nothing_comes_from_outside(page):
    assert not [a for tag, a in page.elements if tag in ("link", "img", "iframe") or "src" in a]
    styles = page.raw_texts("style") + [attributes.get("style", "") for _, attributes in page.elements]
    assert not [style for style in styles if re.search(r"url\(\s*['\"]?(?!#)|@import", style)]


def test_the_page_may_fetch_nothing_and_runs_only_its_own_scripts(page):
    (meta,) = [a for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    policy = dict(rule.strip().split(" ", 1) for rule in meta["content"].split(";"))
    assert policy["default-src"] == "'none'" and "connect-src" not in policy
    scripts = page.raw_texts("script", type="module")
    hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(one.encode()).digest()).decode()}'" for one in scripts]
    assert policy["script-src"].split() == hashes and len(hashes) == 5
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]


def test_the_table_library_is_whole_and_exports_nothing():
    text = report.data_tables()
    assert "globalThis.DataTable" in text and not re.search(r"\bexport\s*\{", text)
    assert "SpryMedia" in text  # its licence stays with it


def test_reasons_are_escaped(text):
    assert "<script>alert" not in text and "&lt;script&gt;alert" in text


def test_tables_are_accessible_and_have_units(page):
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    columns = [a for a in page.all("th") if a["scope"] == "col" and a["data-label"] != "method"]
    assert len(columns) == len(page.all("small")) and all(", " in column["data-label"] for column in columns)


def test_figures_say_in_words_what_they_show(page):
    labels = [attributes["aria-label"] for attributes in page.all("svg")]
    assert "lora 93.0 ± 2.0 at 1,000" in labels[0] and "head 80.0 (line)" in labels[0]
    assert "Pareto front: vera, lora." in labels[0]
    figures = [(a["data-view"], a["id"].split("-")[1]) for a in page.all("figure")]
    assert figures == [
        *((view, "front") for view in ("parameters", "memory", "step time", "latency")),
        ("", "curves"),
        ("time", "costs"),
    ]
    assert len(labels) == len(figures)


def test_what_cannot_be_drawn_says_why(text):
    assert "The grid has one model a task; a ladder needs two sizes or more." in text
    assert "minilm-l6: 1 task with scores, 2 methods with a score on all of them." in text


def test_the_top_says_what_was_run_and_who_is_best(text):
    assert "4 methods and 2 controls × 1 task × 1 model × 1 seed" in text
    best = r'<h3>demo_glue/sst2, minilm-l6 \(demo\)</h3>\s*<p><b><a href="#/method/lora">lora</a> 93.0 ± 2.0</b></p>'
    assert re.search(best, text)
    assert "full fine-tuning: 95.0 ± 2.0" in text


def test_rows_and_tables_have_what_they_are_filtered_by(page):
    rows = {a["data-method"]: a for a in page.all("tr") if "data-method" in a}
    assert {name: rows[name]["data-status"] for name in ("lora", "oft", "boft")} == {
        "lora": "ok",
        "oft": "oom",
        "boft": "missing",
    }
    assert rows["head"]["data-family"] == "control" and rows["lora"]["data-family"] == "lowrank"
    blocks = [a for tag, a in page.elements if "data-suite" in a]
    assert {(a["data-suite"], a["data-model"]) for a in blocks} == {('["demo_glue"]', '["minilm-l6"]')}
    chosen = [a["name"] for a in page.all("select")]
    assert chosen == ["family", "status"]  # one suite, one model, one division: nothing to choose


def test_the_tables_are_in_the_page_as_the_files_that_are_written(once, page):
    own, root, _ = once
    written = tables.write(tables.build(own, root), root / "tables")
    packed = {a["data-file"]: text for name, a, text in page.raw if a.get("class") == "atlas-file"}
    expected = {path.name: path.read_bytes() for path in written if path.suffix in (".csv", ".md", ".tex")}
    expected.pop("cells.csv")
    assert {name: zlib.decompress(base64.b64decode(one), wbits=-15) for name, one in packed.items()} == expected
    assert {a["data-file"] for a in page.all("button") if "data-file" in a} == set(expected)


def test_tables_too_large_for_the_page_are_named(demo, monkeypatch):
    made = [cell("lora", task=task) for task in ("sst2", "rte")]
    store(demo[1], *(result(one, trained=100 + index) for index, one in enumerate(made)))
    monkeypatch.setattr(report, "MOST_ENTRIES", 1)
    page = report.Page(tables.build(grid(*made), demo[1]))
    inside, left = page.shown(page.built.parameters)
    assert [block.groups for block in inside] == [("glue/sst2, minilm-l6",)]
    assert [block.groups for block in left] == [("glue/rte, minilm-l6",)]


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


def test_diverged_cells_old_results_and_unlike_data_are_findings(tmp_path):
    same, moved, split, lost = cell("lora"), cell("vera"), cell("oft"), cell("boft", settings={"rank": 4})
    older = [cell("vera", plugin="1" * 64, training_loop=0), cell("boft", settings={"rank": 8}, plugin="1" * 64)]
    other = result(split)
    other["provenance"] = other["provenance"] | {"data": {"fingerprint": "f" * 16, "source": "elsewhere"}}
    nan = cell("hira")
    store(tmp_path, result(same), other, failed(nan, "diverged", "loss is nan"), *map(result, older))
    built = tables.build(grid(same, moved, split, lost, nan), tmp_path)
    found = [(one.kind, one.severity, one.where, one.text) for one in quality.findings(built.study, built.ranked)]
    place = "glue/sst2, minilm-l6"
    assert ("diverged cells", "serious", f"hira on {place}, seed 0", "diverged: loss is nan") in found
    old = "changed since the last result: the method's code, the training loop"
    assert [one for one in found if one[0] == "out of date"] == [
        ("out of date", "warning", f"vera on {place}, seed 0", old)
    ]
    unlike = "dddddddddddd of lora, seed 0; ffffffffffff of oft, seed 0"
    assert ("unlike data", "serious", place, unlike) in found


def test_parts_and_answers_have_sections_only_where_there_are_such_tasks(demo, text, tmp_path):
    assert 'id="parts"' not in text and 'id="answers"' not in text
    values = {f"accuracy/{part}": 0.5 for part in ("gsm8k", "svamp", "addsub")}
    of = cell(suite="math", task="math10k")
    store(tmp_path, result(of, 0.5, others=values))
    page = Page(report.build(grid(of), tmp_path).read_text())
    assert {"parts", "answers"} <= {attributes.get("id") for attributes in page.all("section")}
    assert page.dangling() == set()


def test_many_tables_are_folded(tmp_path, monkeypatch):
    monkeypatch.setattr(figure_scores, "MOST_PLACES", 1)  # drawing takes time, and this is about tables
    names = ("cifar", "dtd", "pets", "clevr", "dsprites")
    cells = [cell(suite="vtab", task=name, model=model) for name in names for model in ("a", "b")]
    store(tmp_path, *(result(one, latency=None, trained=100 + i) for i, one in enumerate(cells)))
    page = Page(report.build(grid(*cells), tmp_path).read_text())
    folded = [attributes for attributes in page.all("details") if attributes.get("class") == "block"]
    assert len(folded) == 10  # of parameters; memory, time and latency are the same everywhere
    assert len(page.all("caption")) == len(page.all("table"))


def test_tables_without_any_figure_are_folded_and_say_so(tmp_path):
    one = cell()
    store(tmp_path, result(one, latency=None))
    text = report.build(grid(one), tmp_path).read_text()
    page = Page(text)
    assert [
        attributes["class"] for attributes in page.all("details") if "block" in (attributes.get("class") or "")
    ] == [
        "block empty",
        "block empty",
    ]  # latency, operations
    assert text.count("glue/sst2, minilm-l6: no figures</summary>") == 2
    assert len(page.all("caption")) == len(page.all("table"))


def test_provenance_gives_distinct_values(demo):
    other = result(cell("lora", suite="demo_glue"), 0.93)
    other["provenance"] = other["provenance"] | {"host": "node2", "git": {"commit": "f" * 40, "dirty": True}}
    store(demo[1], other)
    chapters = {
        title: {f.name: f.values for f in facts} for title, facts in report.provenance(tables.build(*demo).study)
    }
    assert chapters["Machines"]["host"] == ("node1 (4 cells)", "node2 (1 cell)")
    assert chapters["Machines"]["device"] == ("cpu",)
    assert chapters["Code"]["git commit"][1] == f"{'f' * 40}, with uncommitted changes (1 cell)"
    assert chapters["Software"]["torch"] == ("2.13.0",)
    assert chapters["Data"] == {"demo_glue/sst2": ("dddddddddddddddd from made from a seed",)}


def test_the_same_results_give_the_same_bytes(once, text):
    own, root, path = once
    assert report.build(own, root) == path and path.read_bytes() == text.encode()


def test_a_grid_that_has_not_run_still_has_a_report(tmp_path):
    text = report.build(grid(cell(), cell("vera")), tmp_path).read_text()
    Page(text)
    assert "No result has recorded its provenance yet" in text
    assert "missing" in text


def test_published_scores_stand_beside_those_of_the_grid(tmp_path, monkeypatch):
    of = cell("lora", settings={"rank": 8})
    store(tmp_path, result(of, 0.9, 0.01))
    known = published.Target(
        "paper", "glue", "sst2", "minilm-l6", "lora", (("rank", 8),), "accuracy", 95.1, 0.2, None, "a note"
    )
    monkeypatch.setattr(published, "targets", lambda: (known,))
    text = report.build(grid(of), tmp_path).read_text()
    Page(text)
    assert "below by more than the interval" in text and "a note" in text and "-5.1 ±2.0" in text
