"""Plain text for a terminal: aligned tables and figures."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

LINE = 300  # characters
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories: controls, invisible marks, halves of pairs, separators


def plain(text: str) -> str:
    """The text with everything that steers a terminal or turns the direction of writing spelt out (`\\x1b`).

    Line breaks and tabs stay.
    """
    if text.isprintable():
        return text
    return "".join(
        character
        if character in "\n\t" or unicodedata.category(character) not in HIDDEN
        else character.encode("unicode_escape").decode()
        for character in text
    )


def is_line(text: str) -> bool:
    """Whether a text is one line of at most LINE characters, all of them visible."""
    return len(text) <= LINE and "\n" not in text and "\t" not in text and plain(text) == text


def table(rows: Sequence[dict]) -> str:
    """Aligned columns under their names; lists are joined, truth values are yes and no."""
    if not rows:
        return "none"
    lines = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def figures(values: dict, indent: int = 2) -> str:
    """A nested mapping as aligned lines, whole numbers with thousands separators."""
    width = max((len(str(name)) for name in values), default=0)
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{' ' * indent}{name}", figures(value, indent + 2)]
        else:
            lines.append(f"{' ' * indent}{name:<{width}}  {_shown(value)}")
    return "\n".join(lines)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return plain(" ".join(map(str, value)) if isinstance(value, list | tuple) else str(value))
