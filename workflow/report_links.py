"""Where the report's pages are: hash routes inside its one file, which `reports/static/pages.js` reads."""

from __future__ import annotations

from urllib.parse import quote


def route(*parts: str) -> str:
    """`#/a/b`: every part percent-encoded, so that a slash in a name is no boundary."""
    return "#/" + "/".join(quote(part, safe="") for part in parts)


def method(label: str) -> str:
    """The page of a row of the tables."""
    return route("method", label)


def task(suite: str, task: str) -> str:
    return route("task", suite, task)


def model(name: str) -> str:
    return route("model", name)


def cell(key: str) -> str:
    """The page of one cell, by its key of 16 hex digits."""
    return route("cell", key)


def cells(status: str | None = None) -> str:
    """All cells, or those with one status."""
    return route("cells", *([status] if status else []))


def compare(first: str, second: str) -> str:
    """Two rows side by side; differences are first minus second."""
    return route("compare", first, second)
