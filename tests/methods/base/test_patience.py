"""`patience`: how many steps a method may take until the loss of the toy task has fallen."""

import ast

import pytest

from workflow import conformance, registry
from workflow.source import canonical


class Enough(Exception):
    """The check has asked for what the test wants to know."""


@pytest.mark.parametrize(("method", "steps"), [("lora", 15), ("prompt_tuning", 100)])
def test_the_check_takes_as_many_steps(method, steps, monkeypatch):
    asked = []

    def noted(case, **more):
        asked.append(more["max_steps"])
        raise Enough

    monkeypatch.setattr(conformance, "begin", noted)
    with pytest.raises(Enough):
        conformance.loss_falls(conformance.Case(registry.methods()[method], "tiny-bert"))
    assert asked == [steps]


def test_it_is_in_no_key():
    sources = (f"class M(Method):\n    name = 'm'\n{line}" for line in ("", "    patience = 60\n"))
    plain, patient = (canonical(ast.parse(source)) for source in sources)
    assert plain == patient
