"""No test leaves a process behind, also when it fails."""

import pytest

from tests.faults import runs


@pytest.fixture(autouse=True)
def none_is_left():
    yield
    for run in runs.STARTED:
        run.kill()
    runs.STARTED.clear()
