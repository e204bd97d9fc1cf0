"""The quick check of a document says yes exactly where the one that explains itself does."""

import copy
import random

import pytest

from tests.workflow import synthetic
from workflow import documents
from workflow.grid import BASE_RECIPE

VALUES = (None, True, -1, 0, 1.5, 3.0, 10**400, 1e301, float("nan"), "", "ok", "text", [], [1, 2], {}, {"value": 0.5})
ENTRY = {"method": "lora", "label": "a", "settings": {"rank": 8}, "seeds": [0, 1], "tasks": ["glue/sst2"]}


def places(part, path=()):
    """The path of every value inside a document."""
    yield path
    if isinstance(part, dict | list):
        for name, value in part.items() if isinstance(part, dict) else enumerate(part):
            yield from places(value, (*path, name))


def changed(document, random_):
    """A copy with one value replaced, removed, or added under a name that is not known."""
    document = copy.deepcopy(document)
    *path, last = random_.choice([path for path in places(document) if path])
    part = document
    for name in path:
        part = part[name]
    how = random_.randrange(3)
    if how == 0:
        part[last] = random_.choice(VALUES)
    elif how == 1:
        del part[last]
    elif isinstance(part, dict):
        part[random_.choice(("unknown", "x" * 5000, "batch_1", "value"))] = random_.choice(VALUES)
    return document


@pytest.mark.parametrize(
    ("schema", "definition", "document"),
    [("result", None, synthetic.real()), ("grid", "recipe", dict(BASE_RECIPE)), ("grid", "entry", ENTRY)],
)
def test_both_checks_agree_on_what_is_sound(schema, definition, document):
    random_, verdicts = random.Random(0), set()
    assert documents._fits(document, schema, definition)
    for _ in range(400):
        other = changed(document, random_)
        sound = documents.validator(schema, definition).is_valid(other)
        assert documents._fits(other, schema, definition) == sound, other
        verdicts.add(sound)
    assert verdicts == {True, False}
