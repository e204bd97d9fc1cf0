"""The checks themselves: sound plugins pass, and each fault is found by the rule that is meant for it."""

from pathlib import Path

import pytest
import torch
from mutants import LORA, MUTANTS, PARALLEL, SOUND

from workflow import conformance, registry, toy
from workflow.conformance import RULES
from workflow.errors import AtlasError

QUICK = [name for name in RULES if name != "fresh_process"]


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def failures(path: Path, text: str, model: str, rules=QUICK) -> dict[str, str]:
    """Rule -> message, of those that the plugin breaks on a network."""
    path.write_text(text)
    results = [r for found in conformance.run(registry.read_method(path), [model], rules) for r in found]
    return {r.rule.name: r.text for r in results if r.status == "FAILED"}


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-llama", "tiny-vit", "tiny-t5"])
@pytest.mark.parametrize("name", SOUND)
def test_a_sound_plugin_passes(name, model, tmp_path):
    assert failures(tmp_path / "mutant.py", SOUND[name], model) == {}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_is_found_by_its_rule_and_by_no_other(mutant, tmp_path):
    rules = RULES if "fresh_process" in mutant.fails else QUICK
    assert set(failures(tmp_path / "mutant.py", mutant.text, mutant.model, rules)) == mutant.fails


def test_a_start_that_is_never_written_is_found_whatever_the_memory_holds(tmp_path):
    text = LORA.replace("self.B.zero_()", "pass")
    assert text != LORA
    found = failures(tmp_path / "mine.py", text, "tiny-bert", ["same_seed"])["same_seed"]
    assert found.startswith("expected numbers, found NaN, or memory that was never written, in 0/attn/q.B, ")


def test_every_rule_but_discovery_has_a_mutant():
    assert set(RULES) - set().union(*(mutant.fails for mutant in MUTANTS)) == {"discovery"}


def test_a_name_that_is_taken_fails_discovery(tmp_path):
    text = PARALLEL.replace('"mutant"', '"lora"')
    assert "lora.py" in failures(tmp_path / "mine.py", text, "tiny-bert", ["discovery"])["discovery"]


@pytest.mark.parametrize("model", toy.MODELS)
def test_every_copy_of_a_network_is_whole_and_its_own(model):
    one, other = toy.backbone(model), toy.backbone(model)
    before, facts = conformance.tensors(one), conformance.structure(one)
    conformance.same_tensors(before, conformance.tensors(other), model)
    same = {k: v for k, v in conformance.structure(other).items() if "identity" not in k}
    assert same == {k: v for k, v in facts.items() if "identity" not in k}
    assert one.shape == other.shape == toy.meta(model).shape
    assert {id(m) for m in one.model.modules()}.isdisjoint(id(m) for m in other.model.modules())
    assert all(one.site(s).module in set(one.model.modules()) for s in one.shape.linears)
    with torch.no_grad():
        for tensor in [*other.model.parameters(), *other.model.buffers()]:
            tensor.zero_()
    conformance.same_tensors(before, conformance.tensors(one), model)


def test_messages_say_expected_found_and_where(tmp_path):
    mutant = next(m for m in MUTANTS if m.name == "count off by one")
    found = failures(tmp_path / "mutant.py", mutant.text, mutant.model, ["count"])["count"]
    assert found == (
        "expected 2049 trained, found 2048 (0.attn.q.A 256, 0.attn.q.B 256, 0.attn.v.A 256, 0.attn.v.B 256, "
        "1.attn.q.A 256, 1.attn.q.B 256 and 2 more), at attach"
    )


def test_the_verdict_of_a_file_outside_the_project(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(conformance.toy, "MODELS", ("tiny-bert",))
    path = tmp_path / "mine.py"
    path.write_text(PARALLEL)
    verdict = conformance.check(path)
    assert verdict.conforms and verdict.passed + verdict.skipped == len(RULES)
    assert capsys.readouterr().out.splitlines()[-1] == "conforms"
    path = tmp_path / "other.py"
    path.write_text(PARALLEL.replace("2 * 8 * b.width + 8", "2 * 8 * b.width"))
    verdict = conformance.check(path)
    assert not verdict.conforms and verdict.failed[0].startswith("3.1 count: expected ") and len(verdict.failed) == 4
    assert verdict.passed + verdict.skipped == len(RULES) - 4
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"does not conform: 4 of {len(RULES)} checks failed"
    assert any(line.startswith("3.1   count ") and "FAILED" in line for line in lines)


@pytest.mark.parametrize("text", ["class (", "import nothing_like_this\nclass A:\n    name = 'a'\n", "x = 1\n"])
def test_a_file_that_cannot_be_imported_is_one_clear_error(text, tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(AtlasError, match="broken"):
        conformance.check(path)
