"""The verdict of the conformance checks: kept for each plugin, believed while file and checks are the same, shown."""

import json

import pytest

from tests.workflow import projects, studies
from tests.workflow.studies import cell, grid, result, store
from workflow import conformance, registry, report_facts, tables, verdicts
from workflow.__main__ import main

PLUGIN = "methods/control/head.py"


@pytest.fixture
def info(tmp_path):
    """A plugin of a small project; `lora_plus` imports `lora`."""
    return registry.methods(root=projects.make(tmp_path))["lora_plus"]


def test_a_verdict_holds_until_the_plugin_s_file_changes(info, tmp_path):
    made = verdicts.made(info, 20, 3, [])
    assert verdicts.read("lora_plus", tmp_path) is None, "not run here"
    assert verdicts.write(made, tmp_path) == tmp_path / "results/.conformance/lora_plus.json"
    found = verdicts.read("lora_plus", tmp_path)
    assert found == made and found.conforms and verdicts.outdated(found, info) == ""
    info.path.write_text(info.path.read_text() + "\n# of no meaning\n")
    assert verdicts.outdated(found, info) == "the plugin file has changed"


def test_a_verdict_holds_until_a_plugin_that_it_imports_changes(info, tmp_path):
    found = verdicts.made(info, 20, 3, [])
    other = registry.methods(root=tmp_path)["lora"].path
    other.write_text(other.read_text() + "\n# of no meaning\n")
    assert verdicts.outdated(found, registry.methods(root=tmp_path)["lora_plus"]) == "the plugin file has changed"


def test_a_verdict_holds_until_the_checks_or_the_building_blocks_change(info, monkeypatch):
    found = verdicts.made(info, 20, 3, ["3.1 count: expected 2, found 1"])
    assert not found.conforms
    monkeypatch.setattr(verdicts.versions, "BUILDING_BLOCKS", 10**6)
    monkeypatch.setattr(verdicts, "digest_of_checks", verdicts.digest_of_checks.__wrapped__)
    assert verdicts.outdated(found, info) == "the checks have changed"


DAMAGES = {
    "cut short": lambda path, said: path.write_text(json.dumps(said)[:40]),
    "of another plugin": lambda path, said: path.write_text(json.dumps(said | {"plugin": "lora"})),
    "a count that is none": lambda path, said: path.write_text(json.dumps(said | {"passed": "many"})),
    "a list of numbers": lambda path, said: path.write_text(json.dumps(said | {"failed": [1]})),
    "another form": lambda path, said: path.write_text(json.dumps({"verdict": "good"})),
    "a list": lambda path, said: path.write_text("[]"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_verdict_that_cannot_be_read_is_none(info, tmp_path, damage):
    path = verdicts.write(verdicts.made(info, 20, 3, []), tmp_path)
    DAMAGES[damage](path, json.loads(path.read_text()))
    assert verdicts.read("lora_plus", tmp_path) is None


def test_names_lead_nowhere_else_and_texts_hide_nothing(info, tmp_path):
    path = verdicts.write(verdicts.made(info, 20, 3, ["a \x1b[2J b"]), tmp_path)
    assert verdicts.read("../.conformance/lora_plus", tmp_path) is None and path.exists()
    assert verdicts.read("lora_plus", tmp_path).failed == ["a \\x1b[2J b"]


def test_the_command_keeps_the_verdict_of_each_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(conformance.toy, "MODELS", ("tiny-bert",))
    monkeypatch.setattr(conformance, "RULES", {name: conformance.RULES[name] for name in ("metadata", "padding")})
    other = registry.methods()["bitfit"].path
    assert main(["check", str(registry.ROOT / PLUGIN), str(other)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "verdict: results/.conformance/bitfit.json"
    assert verdicts.read("bitfit").plugin == "bitfit"
    found = verdicts.read("head")
    assert (found.passed, found.skipped, found.failed) == (2, 0, [])
    assert verdicts.outdated(found, registry.methods()["head"]) == ""


def test_the_report_is_told_what_the_checks_said(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "suites", studies.suites)
    monkeypatch.setattr(registry, "methods", studies.methods)
    cells = [cell(name) for name in ("lora", "vera", "ia3")]
    store(tmp_path, *(result(one, 0.9) for one in cells))
    known = studies.methods()
    verdicts.write(verdicts.made(known["lora"], 20, 3, []), tmp_path)
    old = verdicts.made(known["ia3"], 21, 0, ["3.1 count: expected 2, found 1"])
    verdicts.write(
        verdicts.Verdict("vera", **{name: getattr(old, name) for name in vars(old) if name != "plugin"}), tmp_path
    )
    built = tables.build(grid(*cells), tmp_path)
    said = {facts["label"]: facts["conformance"] for facts in report_facts.methods(built.study, built.grid)}
    assert said["lora"] == {"date": old.date, "passed": 20, "skipped": 3, "failed": [], "outdated": ""}
    assert said["vera"]["outdated"] == "the plugin file has changed" and said["vera"]["failed"] == old.failed
    assert said["ia3"] is None
