"""The tables as files inside the report, so that a copy of it alone still gives them."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass

from workflow.tables import Tables, frame_files
from workflow.typeset import Table, to_frame, to_latex, to_markdown

ROOM = 2_000_000  # bytes in the page


@dataclass(frozen=True)
class File:
    """A text file: deflated (raw) and in base64."""

    name: str
    kind: str
    type: str
    packed: str


def embedded(built: Tables, room: int = ROOM) -> dict[str, list[File]]:
    """The files of every table, by its name; of what is too large for the room the files are left out."""
    found: dict[str, list[File]] = {}
    for table in built.typeset():
        found[table.name] = []
        for file in files(table):
            if len(file.packed) <= room:
                room -= len(file.packed)
                found[table.name].append(file)
    return found


def files(table: Table) -> list[File]:
    """The same bytes as those beside the report."""
    csv = frame_files(table.name, to_frame(table))[f"{table.name}.csv"]
    return [
        File(f"{table.name}.csv", "CSV", "text/csv", packed(csv)),
        File(f"{table.name}.md", "Markdown", "text/markdown", packed(to_markdown(table).encode())),
        File(f"{table.name}.tex", "LaTeX", "text/x-tex", packed(to_latex(table).encode())),
    ]


def packed(content: bytes) -> str:
    squeezer = zlib.compressobj(9, wbits=-15)
    return base64.b64encode(squeezer.compress(content) + squeezer.flush()).decode()
