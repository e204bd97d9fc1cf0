"""Numbers that must not move by themselves.

When a change moves them on purpose, bump BUILDING_BLOCKS or TRAINING_LOOP in workflow/versions.py (every cell then gets
a new key) and write the new numbers here under the new versions.
"""

from fnmatch import fnmatch

import pytest

from workflow import registry
from workflow.conformance import Case, begin
from workflow.versions import BUILDING_BLOCKS, TRAINING_LOOP

METHODS = ("full", "lora", "houlsby", "ia3", "bitfit")
# mean training loss and sum of the magnitudes of the trained parameters after 20 steps of a toy task on a tiny BERT,
# by (BUILDING_BLOCKS, TRAINING_LOOP)
GOLDEN = {
    (1, 1): {
        "full": [0.098698, 3298.077],
        "lora": [0.345491, 183.716],
        "houlsby": [0.173373, 1154.492],
        "ia3": [0.594614, 253.19],
        "bitfit": [0.528796, 54.637],
    }
}


def size(method) -> float:
    """Sum of the magnitudes of what is trained. Where a gradient is nothing but rounding (key biases), AdamW makes a
    step of it whose sign depends on the number of threads: those are left out."""
    state = method.state_dict().items()
    return sum(t.abs().sum().item() for n, t in state if not any(fnmatch(n, p) for p in method.no_gradient))


def test_training_gives_what_it_gave_under_these_versions():
    found = {}
    for name in METHODS:
        training = begin(Case(registry.methods()[name], "tiny-bert"), max_steps=20, weight_decay=0.1)
        training.run()
        found[name] = [training.log.train_loss[-1][1], round(size(training.method), 3)]
    golden = GOLDEN.get((BUILDING_BLOCKS, TRAINING_LOOP))
    assert golden is not None, f"write the numbers of these versions: {found}"
    assert found == {name: pytest.approx(values, rel=1e-4) for name, values in golden.items()}
