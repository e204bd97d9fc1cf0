"""The inputs of test examples, where the data that a result was made with is on this machine: results hold only ids."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from workflow import registry
from workflow.errors import AtlasError
from workflow.outcomes import Outcome
from workflow.report_cells import LONGEST
from workflow.text import plain

OFFLINE = "HF_DATASETS_OFFLINE"  # set: what is read of the hub is its cache


class Texts:
    """Texts by the id of their example, read once a task and protocol."""

    def __init__(self, data_root: Path | None):
        self.data_root = data_root
        self._suites = registry.suites()
        self._known: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {}

    def of(self, outcome: Outcome, example: Any) -> dict[str, str]:
        """The texts of a test example by the names of their columns; {} where the data is not at hand, is not text, or
        is not that of the result. Of a prompt its end, which asks the question."""
        cell = outcome.cell
        facts = self._suites[cell.suite].facts(cell.task, cell.protocol)
        if facts.modality != "text" or facts.cost_only:
            return {}
        fingerprint, texts = self._read(outcome, facts)
        if str(example) not in texts or fingerprint != outcome.value("provenance", "data", "fingerprint"):
            return {}
        if facts.kind == "generation":
            return {"prompt": end_of(plain(texts[str(example)][0]))}
        return dict(zip(facts.fields, map(plain, texts[str(example)]), strict=True))

    def _read(self, outcome: Outcome, facts: Any) -> tuple[str, dict[str, tuple[str, ...]]]:
        """The fingerprint of a task's data, and the inputs of its test split by id."""
        cell = outcome.cell
        at = repr((cell.suite, cell.task, sorted(cell.protocol.items())))
        if at not in self._known:
            self._known[at] = "", {}
            if facts.demo or self.data_root or os.environ.get(OFFLINE):  # nothing is ever fetched for a report
                try:
                    data = self._suites[cell.suite].load(cell.task, cell.protocol, self.data_root)
                except AtlasError:
                    return self._known[at]
                by_id = {str(id): texts for id, texts in zip(data.test.ids, data.test.inputs, strict=True)}
                self._known[at] = data.fingerprint, by_id
        return self._known[at]


def end_of(text: str) -> str:
    return "… " + text[2 - LONGEST :] if len(text) > LONGEST else text
