"""The table of all models in docs/models.md, between two marks; the rest of the page is written by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from models.entries import ModelEntry
from workflow import registry
from workflow.errors import AtlasError

PAGE = registry.ROOT / "docs" / "models.md"
BEGIN = "<!-- made by `python -m workflow models --write` from models/*.yaml -->"
END = "<!-- end of the table -->"
COLUMNS = ("name", "title", "parameters", "kind", "source", "revision", "licence")


def table(entries: Mapping[str, ModelEntry] | None = None) -> str:
    """Every entry in Markdown: by kind, then by size."""
    known = (registry.models() if entries is None else entries).values()
    rows = sorted(known, key=lambda entry: (entry.source == "random", entry.kind, entry.parameters or 0, entry.name))
    lines = [COLUMNS, ["---:" if name == "parameters" else "---" for name in COLUMNS], *map(_row, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(entry: ModelEntry) -> tuple[str, ...]:
    source = f"{entry.source} `{entry.location}`" if entry.location else entry.source
    counted = f"{entry.parameters:,}" if entry.parameters else ""
    return f"`{entry.name}`", entry.title, counted, entry.kind, source, f"`{entry.revision[:12]}`", entry.licence


def write(page: Path = PAGE) -> Path:
    """Put the table of now into the page, and return the page's path."""
    text = page.read_text()
    if not re.search(f"{re.escape(BEGIN)}.*{re.escape(END)}", text, re.DOTALL):
        raise AtlasError("the page has no place for the table", file=page, mend=f"add the lines {BEGIN} and {END}")
    before, rest = text.split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}")
    return page
