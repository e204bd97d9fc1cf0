"""A table with units, marks and footnotes, and its renderings: data frame, Markdown, LaTeX and aligned text."""

from __future__ import annotations

import math
import string
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from workflow.text import plain

DASH = "—"
NOT_IN_GRID = "not in grid"  # status of an entry for which the grid names no cell
TERMINAL = 110  # columns
MOST_LISTED = 20  # cases that a note lists
SYMBOLS = {
    "†": "one seed: the interval is 1.96 standard errors of sampling and knows nothing of other seeds",
    "↓": "below control: the mean is worse than that of a control that should be easy to beat",
    "‡": "from one run: another would give another figure",
    "≠": "the count found is not the one the paper's closed form gives",
}
LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"$\sim$",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≠": r"$\neq$",
    "↓": r"$\downarrow$",
    "†": r"\dag{}",
    "–": "--",
    "—": "---",
    "[": "{[}",
    "]": "{]}",
}


@dataclass(frozen=True)
class Column:
    """A figure with its unit. `group` is what the figure was taken on: a place, or a suite on a model."""

    title: str
    unit: str
    group: str
    marks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The column's name in CSV and Parquet."""
        return f"{self.group}: {self.title} [{self.unit}]"


@dataclass(frozen=True, slots=True)
class Entry:
    """What stands in one place of a table: a figure in the column's unit, or a word that says why there is none."""

    text: str
    value: float | None = None
    half: float | None = None
    seeds: int | None = None
    status: str = "ok"
    marks: tuple[str, ...] = ()
    best: bool = False

    def marked(self, *marks: str) -> Entry:
        return replace(self, marks=self.marks + marks)


@dataclass(frozen=True, slots=True)
class TableRow:
    label: str
    section: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Block:
    """The part of a table that is printed for the groups of columns that have the same contents."""

    groups: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class Table:
    """`notes` are (mark, text) pairs, the mark being empty for a note on the whole table."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[tuple[str, str], ...]

    def blocks(self) -> tuple[Block, ...]:
        """What is printed: a block a group of columns, without the rows that have no cell there."""
        return self._blocks

    @cached_property
    def _blocks(self) -> tuple[Block, ...]:
        titles: dict[tuple, list[str]] = {}
        for group in dict.fromkeys(column.group for column in self.columns):
            chosen = [index for index, column in enumerate(self.columns) if column.group == group]
            rows = (replace(row, entries=tuple(row.entries[index] for index in chosen)) for row in self.rows)
            kept = tuple(row for row in rows if any(entry.status != NOT_IN_GRID for entry in row.entries))
            columns = tuple(replace(self.columns[index], group="") for index in chosen)
            titles.setdefault((columns, kept), []).append(group)
        return tuple(Block(tuple(found), *contents) for contents, found in titles.items())


@dataclass
class Notes:
    """The footnotes of a table as it is built: letters for single notes, symbols for kinds that collect cases."""

    general: list[str] = field(default_factory=list)
    letters: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, dict[str, None]] = field(default_factory=dict)

    def add(self, text: str) -> str:
        """The letter of this footnote; the same text gets the same letter."""
        return self.letters.setdefault(text, letter(len(self.letters)))

    def case(self, symbol: str, case: str = "") -> str:
        """Count a case under one of SYMBOLS, whose footnote lists the cases."""
        cases = self.kinds.setdefault(symbol, {})
        if case:
            cases[case] = None
        return symbol

    def listed(self) -> tuple[tuple[str, str], ...]:
        """(mark, text): notes on the whole table, then symbols, then letters."""
        kinds = [
            (symbol, meaning + (f": {'; '.join(some(list(self.kinds[symbol])))}" if self.kinds[symbol] else ""))
            for symbol, meaning in SYMBOLS.items()
            if symbol in self.kinds
        ]
        whole = [("", text) for text in dict.fromkeys(self.general)]
        return tuple(whole + kinds + [(mark, text) for text, mark in self.letters.items()])


def letter(index: int) -> str:
    """a, b, …, z, aa, ab, …"""
    tail = string.ascii_lowercase[index % 26]
    return tail if index < 26 else letter(index // 26 - 1) + tail


def some(names: Sequence[str], most: int = MOST_LISTED) -> list[str]:
    """The first of these names, and how many more there are."""
    return [*names] if len(names) <= most + 1 else [*names[:most], f"{len(names) - most:,} more"]


def significant(value: float) -> str:
    """Three significant digits without an exponent; thousands separated."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def sections(rows: Iterable[TableRow]) -> list[tuple[str, list[TableRow]]]:
    found: dict[str, list[TableRow]] = {}
    for row in rows:
        found.setdefault(row.section, []).append(row)
    return list(found.items())


def to_frame(table: Table):
    """One row a method. Each column gives its figure and a status; scores also their half-width and seeds."""
    import pandas as pd

    data: dict[str, list] = {
        "method": [row.label for row in table.rows],
        "section": [row.section for row in table.rows],
    }
    for index, column in enumerate(table.columns):
        entries = [row.entries[index] for row in table.rows]
        data[column.name] = pd.array([entry.value for entry in entries], dtype="Float64")
        if any(entry.seeds is not None for entry in entries):
            data[f"{column.name} half-width of 95 % interval"] = pd.array([e.half for e in entries], dtype="Float64")
            data[f"{column.name} seeds"] = pd.array([entry.seeds for entry in entries], dtype="Int64")
        data[f"{column.name} status"] = [entry.status for entry in entries]
    return pd.DataFrame(data)


# --- Markdown ---------------------------------------------------------------------------------------------------------


def to_markdown(table: Table) -> str:
    parts = [f"## {markdown(table.title)}"]
    for block in table.blocks():
        parts += [f"### {markdown('; '.join(block.groups))}", markdown_block(block)]
    parts.append("\n".join(f"- {f'[{mark}] ' if mark else ''}{markdown(text)}" for mark, text in table.notes))
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_block(block: Block) -> str:
    heads = ["method", *(markdown_heading(column) for column in block.columns)]
    lines = [heads, ["---", *("---:" for _ in block.columns)]]
    for section, rows in sections(block.rows):
        lines.append([f"*{section}*", *("" for _ in block.columns)])
        lines += [[markdown(row.label), *map(markdown_entry, row.entries)] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown_heading(column: Column) -> str:
    marks = f" [{', '.join(column.marks)}]" if column.marks else ""
    return f"{markdown(column.title)}, {markdown(column.unit)}{marks}"


def markdown_entry(entry: Entry) -> str:
    text = f"**{entry.text}**" if entry.best else entry.text
    return f"{text} [{', '.join(entry.marks)}]" if entry.marks else text


def markdown(text: str) -> str:
    text = " ".join(str(text).split()).replace("\\", "\\\\")
    for character in "|*_<[`":
        text = text.replace(character, f"\\{character}")
    return text


# --- LaTeX ------------------------------------------------------------------------------------------------------------


def to_latex(table: Table) -> str:
    """A floating table that needs only the booktabs package."""
    parts = [r"\begin{table}[tbp]", r"\centering\small", rf"\caption{{{latex(table.title)}}}"]
    parts.append(rf"\label{{tab:{table.name}}}")
    for block in table.blocks():
        parts.append(rf"\par\medskip\textbf{{{latex('; '.join(block.groups))}}}\par\smallskip")
        parts.append(latex_block(block))
    notes = [latex_marks(mark) + latex(text) + r"\par" for mark, text in table.notes]
    parts += [r"\par\smallskip", r"\begin{minipage}{\linewidth}\footnotesize\raggedright", *notes, r"\end{minipage}"]
    return "\n".join([*parts, r"\end{table}"]) + "\n"


def latex_block(block: Block) -> str:
    lines = [rf"\begin{{tabular}}{{l{'r' * len(block.columns)}}}", r"\toprule"]
    heads = (latex(column.title) + latex_marks(*column.marks) for column in block.columns)
    lines.append(latex_line(["method", *heads]))
    lines.append(latex_line(["", *(latex(column.unit) for column in block.columns)]))
    for section, rows in sections(block.rows):
        lines += [r"\midrule", rf"\multicolumn{{{len(block.columns) + 1}}}{{l}}{{\emph{{{latex(section)}}}}} \\"]
        lines += [latex_line([latex(row.label), *map(latex_entry, row.entries)]) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def latex_line(fields: Iterable[str]) -> str:
    return " & ".join(fields) + r" \\"


def latex_entry(entry: Entry) -> str:
    text = rf"\textbf{{{latex(entry.text)}}}" if entry.best else latex(entry.text)
    return text + latex_marks(*entry.marks)


def latex_marks(*marks: str) -> str:
    shown = latex(",".join(filter(None, marks)))
    return rf"\textsuperscript{{{shown}}}" if shown else ""


def latex(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in " ".join(str(text).split()))


# --- aligned text -----------------------------------------------------------------------------------------------------


def to_text(table: Table) -> str:
    """The table for a terminal: a star marks bold, footnotes follow."""
    parts = [table.title]
    for block in table.blocks():
        parts += ["; ".join(block.groups), text_block(block)]
    parts.append("\n".join(text_note(mark, text) for mark, text in table.notes))
    return plain("\n\n".join(parts))


def text_block(block: Block) -> str:
    heads = [column.title + text_marks(column.marks) for column in block.columns]
    lines = [["method", *heads], ["", *(column.unit for column in block.columns)]]
    body = [[row.label, *map(text_entry, row.entries)] for row in block.rows]
    widths = [max(map(len, column)) for column in zip(*lines, *body, strict=True)]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    printed = [text_line(line, widths) for line in lines]
    start = 0
    for _, rows in sections(block.rows):
        printed += [rule, *(text_line(line, widths) for line in body[start : start + len(rows)])]
        start += len(rows)
    return "\n".join(printed)


def text_line(fields: list[str], widths: list[int]) -> str:
    head, *rest = fields
    return "  ".join([head.ljust(widths[0]), *(f.rjust(w) for f, w in zip(rest, widths[1:], strict=True))]).rstrip()


def text_entry(entry: Entry) -> str:
    return f"{'*' if entry.best else ''}{entry.text}{text_marks(entry.marks)}"


def text_marks(marks: tuple[str, ...]) -> str:
    symbols = "".join(mark for mark in marks if mark in SYMBOLS)
    letters = ",".join(mark for mark in marks if mark not in SYMBOLS)
    return f"{symbols}[{letters}]" if letters else symbols


def text_note(mark: str, text: str) -> str:
    label = "" if not mark else mark + " " if mark in SYMBOLS else f"[{mark}] "
    return textwrap.fill(label + text, TERMINAL, subsequent_indent=" " * len(label), break_on_hyphens=False)
