"""What a result, a grid or a plugin says is shown as text, wherever it is shown."""

import csv
import io
import re
from html.parser import HTMLParser

import pytest

from tests.workflow import studies
from tests.workflow.studies import cell, failed, grid, result, store
from workflow import __main__ as cli
from workflow import registry, report, tables, text, typeset
from workflow.registry import MethodInfo

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script></title></textarea><svg/onload=alert(1)>",
    "javascript:alert(1)//'\";--></style>",
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2-cmd()",
    "@SUM(A1)",
    "| a | b |\n| --- |\n[x](javascript:alert(1)) ![y](//evil/z) `c` **d** <b>",
    r"\input{/etc/passwd} \write18{touch pwned} %$#_&~^{}",
    "{{ 7 * 7 }} {% raw %}",
    "\x1b[2J\x1b]0;pwned\x07 \u202eevil\u2066 \ud800 \0 \r",
)


@pytest.fixture(autouse=True)
def made_up_tasks(monkeypatch):
    monkeypatch.setattr(registry, "suites", studies.suites)


def study(root, say):
    """Tables of a grid in which everything that anybody can choose is `say`: labels, title, reasons, provenance,
    names of metrics, a broken plugin. Labels and titles are as a grid may have them: one line of visible characters."""
    label = " ".join(text.plain(say).split())
    good = result(cell("lora", label=label), 0.9, others={say: 0.5})
    good["metrics"] = good["metrics"] | {"select": say}
    good["provenance"] = good["provenance"] | {
        **dict.fromkeys(("host", "device", "cpu", "platform", "driver", "python", "started", "finished"), say),
        "packages": {"torch": say, say: "1"},
        "git": {"commit": say, "dirty": True},
        "data": {"fingerprint": say, "source": say},
        "model": {"fingerprint": say, "source": say},
        "scheduler": {"job": say, say: say},
    }
    odd = result(cell("vera", task="rte"), 0.7, metric=say)
    bad = failed(cell("oft", label=f"{label} 2"), "error", say)
    store(root, good, odd, bad)
    fields = {name: None for name in MethodInfo.__dataclass_fields__} | {"name": f"{say} 3", "error": say}
    cells = [cell("lora", label=label), cell("vera", task="rte"), cell("oft", label=f"{label} 2")]
    return grid(*cells, title=label, broken=[MethodInfo(**fields)])


@pytest.fixture(params=HOSTILE)
def built(request, tmp_path):
    return tables.build(study(tmp_path, request.param), tmp_path)


SHAPES = {"path", "use", "g", "text"}


class Page(HTMLParser):
    """Tags and attribute names in their order, and the contents of scripts and styles. Names and addresses of single
    cells and labels differ between two pages; what runs does not."""

    RUNS = ("script", "style", "iframe", "object", "embed", "base", "form", "link", "meta", "img")

    def __init__(self, page):
        super().__init__()
        self.tags, self.running, self.links = [], [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, tuple(name for name, _ in attributes)))
        self.running += [name for name, _ in attributes if name.startswith("on")]
        self.links += [value for name, value in attributes if name in ("href", "src", "xlink:href", "action")]
        if tag in self.RUNS:
            self.running.append(tag)


@pytest.fixture(scope="module")
def harmless(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "suites", studies.suites)
        root = tmp_path_factory.mktemp("harmless")
        return Page(report.build(study(root, "word"), root).read_text())


def test_the_report_has_the_same_elements_whatever_is_said(tmp_path, harmless):
    page = Page(report.build(study(tmp_path, " ".join(HOSTILE)), tmp_path).read_text())
    assert page.running == harmless.running
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in harmless.tags}
    other = set(page.tags) - set(harmless.tags)
    assert {tag for tag, _ in other} <= SHAPES  # figures of longer words have other shapes
    assert all(link.startswith(("#", "data:")) for link in page.links if link)


def test_markdown_is_text_but_for_its_tables(built):
    for table in built.typeset():
        for line in typeset.to_markdown(table).splitlines():
            bare = re.sub(r"\\[\\|*_<\[`]", "", line)
            bare = re.sub(r"\[[^\]]{1,3}(, [^\]]{1,3})*\]", "", bare)  # marks
            assert not re.search(r"[<`\[]", bare), line
            assert text.plain(line) == line
        for block in table.blocks():
            fields = {len(re.findall(r"(?<!\\)\|", line)) for line in typeset.markdown_block(block).splitlines()}
            assert fields == {len(block.columns) + 2}


OWN_COMMANDS = {
    *("begin", "end", "centering", "small", "caption", "label", "par", "medskip", "smallskip", "textbf", "emph"),
    *("toprule", "midrule", "bottomrule", "multicolumn", "footnotesize", "raggedright", "textsuperscript", "linewidth"),
    *("textbackslash", "sim", "textasciicircum", "textquotedbl", "pm", "times", "neq", "downarrow", "dag"),
}


def test_latex_has_no_commands_but_its_own(built):
    for table in built.typeset():
        source = typeset.to_latex(table)
        assert set(re.findall(r"\\([A-Za-z]+)", source)) <= OWN_COMMANDS
        bare = re.sub(r"\\[\\&%$#_{}]", "", source)
        assert bare.count("{") == bare.count("}")
        assert "^^" not in source and "%" not in bare


def test_no_field_of_a_csv_file_is_a_formula(built, tmp_path):
    for path in tables.write(built, tmp_path / "out"):
        if path.suffix == ".csv":
            rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
            assert len({len(row) for row in rows}) == 1
            for field in (field for row in rows for field in row):
                assert not field.startswith(("=", "+", "-", "@", "\t", "\r")) or re.fullmatch(r"-?[0-9.e-]+", field)


def test_nothing_steers_the_terminal(tmp_path, monkeypatch, capsys):
    say = HOSTILE[-1]
    of = study(tmp_path, say)
    monkeypatch.setattr(cli, "_grid", lambda _: of)
    monkeypatch.chdir(tmp_path)
    cli.main(["status"])
    cli.main(["tables", "--print"])
    cli.main(["list", "cells"])
    cli.main(["describe", say])
    shown = capsys.readouterr()
    assert "3 cells" in shown.out and "unknown method" in shown.err
    for part in (shown.out, shown.err):
        assert text.plain(part) == part


def test_plain_text_spells_out_what_cannot_be_seen():
    assert text.plain("a\x1b[2J\u202eb\ud800\n\tc é ± — 文") == "a\\x1b[2J\\u202eb\\ud800\n\tc é ± — 文"
