"""Bring to this machine what the cells of a grid will read: weights and data sets, each once, before the jobs run."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from models.entries import ModelEntry
from tasks.base import Source
from workflow import registry
from workflow.errors import AtlasError
from workflow.grid import Grid

MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "tokenizer*")  # pickles are never loaded
NOT_MODEL_FILES = ("*/*", "consolidated*")  # other formats in folders, and the same weights under the maker's own names
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def main(grid: Grid, data_root: Path | None = None) -> int:
    """Fetch everything and print a line for each; returns how many failed.

    With a data root nothing is downloaded for data: every task is loaded from it, as its cells will do.
    """
    for name in OFFLINE:  # whoever asks for a download has switched the hub on, whatever is exported for the jobs
        os.environ.pop(name, None)
    failed = 0
    for what, fetch in (*_models(grid), *_data(grid, data_root or grid.data_root)):
        try:
            state, detail = fetch()
        except AtlasError as problem:
            state, detail = "failed", "; ".join(filter(None, [problem.message, str(problem.file or ""), problem.mend]))
        except Exception as problem:  # the hub's clients raise dozens of kinds of exception
            state, detail = "failed", _reason(problem)
        failed += state == "failed"
        print(f"{state:<13}  {what}: {detail}", flush=True)
    return failed


Fetch = tuple[str, Callable[[], tuple[str, str]]]  # what it is, and what fetches it: gives a state and where it lies


def _models(grid: Grid) -> Iterator[Fetch]:
    entries = registry.models()
    for name in dict.fromkeys(cell.model for cell in grid.cells):
        if entries[name].source != "random":
            yield f"model {name}", lambda entry=entries[name]: _model(entry)


def _model(entry: ModelEntry) -> tuple[str, str]:
    if entry.source == "package":
        from models.load import packaged

        return "there already", ", ".join(map(str, packaged(entry)))
    if entry.source != "hub":
        from models.load import folder

        return "there already", str(folder(entry))
    state, where = _snapshot(entry.location, entry.revision, "model", MODEL_FILES, NOT_MODEL_FILES)
    if not any(where.glob("*.safetensors")):
        raise AtlasError("the repository has no *.safetensors", file=where, mend="name a revision that has them")
    return state, _identity(entry.location, entry.revision)


def _data(grid: Grid, data_root: Path | None) -> Iterator[Fetch]:
    suites = registry.suites()
    tasks = {(c.suite, c.task, json.dumps(c.protocol, sort_keys=True)): c for c in grid.cells}.values()
    seen: set[Source] = set()
    for cell in tasks:
        suite, what = suites[cell.suite], f"data {cell.suite}/{cell.task}"
        sources = [] if data_root else [Source(*source) for source in suite.sources(cell.task, cell.protocol)]
        for source in sources:
            if source not in seen:
                yield what, lambda source=source: _source(source)
        seen.update(sources)
        if not sources and not suite.demo:
            yield what, lambda suite=suite, cell=cell: _local(suite.load(cell.task, cell.protocol, data_root))


def _local(data) -> tuple[str, str]:
    sizes = " + ".join(f"{len(split):,}" for split in (data.train, data.validation, data.test))
    return "there already", f"{data.source} ({sizes} examples)"


def _source(source: Source) -> tuple[str, str]:
    """Download files of a repository as they are, or whole splits into the cache of `datasets`."""
    shown = _identity(source.hub_id, source.revision) + (f" {source.config}" if source.config else "")
    if source.files:
        return _snapshot(source.hub_id, source.revision, "dataset", source.files)[0], shown
    import datasets

    datasets.disable_progress_bars()
    builder = datasets.load_dataset_builder(source.hub_id, source.config, revision=source.revision)
    if re.fullmatch("[0-9a-f]{40}", source.revision) and Path(builder.cache_dir).name != source.revision:
        raise AtlasError("the hub cannot be reached, and its cache holds another revision", file=builder.cache_dir)
    there = Path(builder.cache_dir, "dataset_info.json").is_file()
    builder.download_and_prepare()
    present = builder.info.splits or ()
    if missing := [split for split in source.splits if split not in present]:
        raise AtlasError(f"no split {', '.join(missing)} in {shown}", mend=f"there are {', '.join(present)}")
    return "there already" if there else "downloaded", shown


def _snapshot(
    hub_id: str, revision: str, repo_type: str, files: tuple[str, ...], but: tuple[str, ...] = ()
) -> tuple[str, Path]:
    """The state, and the folder of the cache with these files of a repository."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    chosen = {"revision": revision, "repo_type": repo_type, "allow_patterns": files, "ignore_patterns": but or None}
    try:
        before = _files(huggingface_hub.snapshot_download(hub_id, local_files_only=True, **chosen))
    except LocalEntryNotFoundError:
        before = set()
    where = Path(huggingface_hub.snapshot_download(hub_id, **chosen))
    return "there already" if before and _files(where) == before else "downloaded", where


def _files(folder: str | Path) -> set[Path]:
    return {path for path in Path(folder).rglob("*") if path.is_file()}


def _identity(hub_id: str, revision: str) -> str:
    return f"{hub_id}@{revision[:12]}"


def _reason(problem: Exception) -> str:
    """One line on what went wrong, with the mend where access is what is missing."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if isinstance(problem, GatedRepoError) or "gated" in str(problem).lower():
        return "gated; accept its licence on its page on the hub, then log in (`hf auth login`)"
    if isinstance(problem, RepositoryNotFoundError | DatasetNotFoundError):
        return "not on the hub, or not open to you; if it is private, log in (`hf auth login`)"
    if isinstance(problem, ConnectionError | LocalEntryNotFoundError):
        return "the hub cannot be reached, and its cache does not have this"
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0] if lines else ''}"
