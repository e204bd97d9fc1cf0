"""Names that become parts of paths. They are checked where they come in, so that no path leaves the results folder."""

from __future__ import annotations

import re

PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
RULE = "letters, digits and _ . - after a letter or digit, 64 characters at most"
RESERVED = ("cells", "state", "reference")  # folders of results/ that are no grid's


def is_part(name: object) -> bool:
    """Whether a name can be a folder, or part of a file's name, anywhere."""
    return isinstance(name, str) and PART.fullmatch(name) is not None
