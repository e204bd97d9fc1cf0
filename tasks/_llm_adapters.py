"""Files and prompt of LLM-Adapters (Hu et al., 2023, arXiv:2304.01933): rows of instruction, input, output, answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from workflow.errors import AtlasError

ORIGIN = "https://github.com/AGI-Edgerunners/LLM-Adapters"
AS_PUBLISHED = f"use the files of {ORIGIN} as they are"
TASK = "Below is an instruction that describes a task"
REQUEST = "Write a response that appropriately completes the request."


def prompt(instruction: str, given: str = "", indent: str = "") -> str:
    """The Alpaca prompt, which ends where the answer begins on a new line; `given` is the input, mostly none.

    indent: white space before every line of the template but the first.
    """
    about = f"{TASK}, paired with an input that provides further context" if given else TASK
    middle = f"{indent}### Input:\n{indent}{given}\n\n" if given else ""
    asked = f"{indent}### Instruction:\n{indent}{instruction}\n\n{middle}"
    return f"{about}. {REQUEST}\n\n{asked}{indent}### Response:"


def folder(suite: str, data_root: Path | None, mend: str) -> Path:
    """Where a suite's files lie; AtlasError with `mend` where there is no data root."""
    if data_root is None:
        raise AtlasError(f"suite '{suite}' is read from local files only", key="data_root", mend=mend)
    return Path(data_root) / suite


def places(folder: Path, name: str, split: str, original: str) -> list[Path]:
    """Where the file of a data set may lie, in order of preference; `original`: its path in the repository."""
    return [folder / name / f"{split}.parquet", folder / name / f"{split}.json", folder / original]


def first_file(places: Sequence[Path], problem: str, mend: str) -> Path:
    """The first of these files that is there; AtlasError with `problem` and `mend` if none is."""
    for path in places:
        if path.is_file():
            return path
    raise AtlasError(problem, file=places[0], mend=mend)


def columns(path: Path, names: Sequence[str]) -> dict[str, list]:
    """Columns of a parquet file, or of a JSON file that is a list of rows. AtlasError where they are not there."""
    import pyarrow
    import pyarrow.parquet

    try:
        if path.suffix == ".json":
            table = pyarrow.Table.from_pylist(json.loads(path.read_text(encoding="utf-8")))
        else:
            table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError, ValueError, AttributeError) as error:
        mend = "copy or write the file again"
        raise AtlasError(f"not a readable {path.suffix[1:]} file ({error})", file=path, mend=mend) from error
    missing = [name for name in names if name not in table.column_names]
    if missing or not len(table):
        problem = f"no column {', '.join(missing)}" if missing else "no rows"
        raise AtlasError(problem, file=path, mend=AS_PUBLISHED)
    return {name: table.column(name).to_pylist() for name in names}


def check_size(suite: str, what: str, found: int, published: int, path: Path) -> None:
    """AtlasError, naming the suite's option `check_sizes`, if a data set has not the published number of rows."""
    if found != published:
        raise AtlasError(
            f"{what} has {found:,} rows; {published:,} are published",
            file=path,
            key=f"protocol.{suite}.check_sizes",
            mend="get the whole file, or set `check_sizes: false` where a part of it is meant",
        )
