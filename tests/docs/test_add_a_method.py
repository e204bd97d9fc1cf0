"""The example of docs/add_a_method.md conforms, and its table of rules is the list of rules."""

import re
from pathlib import Path

from workflow import conformance

PAGE = (Path(__file__).parents[2] / "docs/add_a_method.md").read_text()


def test_the_example_conforms_and_is_short(tmp_path, capsys, monkeypatch):
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    path = tmp_path / "frozen_a.py"
    path.write_text(code)
    monkeypatch.setattr(conformance.toy, "MODELS", ("tiny-bert", "tiny-llama", "tiny-vit"))
    verdict = conformance.check(path)
    assert verdict.conforms, capsys.readouterr().out
    assert verdict.passed + verdict.skipped == len(conformance.RULES)
    assert 20 <= len(code.splitlines()) <= 60


def test_the_page_lists_every_rule():
    listed = re.findall(r"^\| (\d+\.\d) `(\w+)` \|", PAGE, re.MULTILINE)
    assert listed == [(rule.number, name) for name, rule in conformance.RULES.items()]
