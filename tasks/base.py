"""What a suite is: tasks, a versioned protocol, and data as three splits. Nothing heavy is imported at the top.

A suite file declares `tasks` (facts of each data set) and `protocols` (everything about reading, splitting and scoring
that could move a number), and says in `load` how to make train, validation and test from them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from workflow.errors import AtlasError, suggest


@dataclass(frozen=True)
class TaskInfo:
    """The facts of one data set. `labels` are names in id order, empty where the answer is a number or a text."""

    suite: str
    name: str
    kind: str  # classification | regression | generation
    modality: str  # text | image
    fields: tuple[str, ...]  # input columns, in the order in which they are read
    labels: tuple[str, ...]
    metrics: tuple[str, ...]  # names known to tasks.metrics, or for generation to workflow.evaluate
    primary: str  # the metric of the tables
    max_length: int  # tokens, the default of the recipe's max_length
    title: str
    chance: float | None = None  # value of the primary metric by chance
    demo: bool = False
    select: str | None = None  # metric that chooses on validation data, if not the primary one
    ranked: bool = True  # whether it counts in averages over the suite's tasks
    group: str = ""  # the group of a suite's tasks that it belongs to (VTAB-1k: natural, specialized, structured)
    parts: tuple[str, ...] = ()  # parts of the test split that are scored apart, `accuracy/<part>`
    headline: str = "mean"  # the plain metric of a task with parts: the mean over them, or the name of one
    contaminated: tuple[str, ...] = ()  # parts whose test questions occur in training data: left out of the mean
    learn: str = "completion"  # generation: the loss is on the `completion`, or on `all` tokens
    new_tokens: int = 0  # generation: tokens of an answer at most
    total_tokens: int | None = None  # generation: tokens of prompt and answer at most
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # images, in 0 to 1: what is taken off each channel
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)  # images: by what each channel is then divided
    resample: str = "bicubic"  # images: how they are brought to the square that the network wants
    cost_only: bool = False  # nothing is scored: a network with random weights on synthetic inputs


# what the tasks that are answered by generated text have in common
generation_task = partial(TaskInfo, kind="generation", modality="text", labels=(), primary="accuracy", select="nll")


class Images:
    """Images that are read when they are asked for, because a test set of them does not fit into memory.

    Abstract: where the images lie is the suite's business, so a subclass writes all four.
    """

    def __len__(self) -> int:
        raise NotImplementedError

    def take(self, rows: Sequence[int] | np.ndarray) -> Images:
        """The images at these positions, in this order, still unread."""
        raise NotImplementedError

    def read(self, row: int) -> np.ndarray:
        """One image, uint8 (H, W, 3), as it is stored: images may differ in size."""
        raise NotImplementedError

    def digest(self) -> str:
        """sha256 (hex) over the content of all images, in order."""
        raise NotImplementedError


@dataclass
class Split:
    """n examples.

    inputs: texts, n tuples in the order of TaskInfo.fields (generation: n 1-tuples with the whole prompt); or images,
    an array (n, H, W, 3) of uint8 or an `Images` that reads them when they are asked for; or, of a task that is only
    costed, an array (n, length) of numbers to be made into token ids (its labels likewise). labels: (n,) class ids,
    scores, or for generation the texts to be learned after the prompt (dtype object). ids: (n,) the data set's own
    row ids. Generation only: answers, (n,) strings in the form that `Suite.extract` gives; choices, n tuples of
    completions whose likelihoods are compared, in which the right one is among the row's own `labels`.
    parts: (n,) names from TaskInfo.parts, where the split has parts.
    """

    inputs: list[tuple[str, ...]] | np.ndarray | Images
    labels: np.ndarray
    ids: np.ndarray
    answers: np.ndarray | None = None
    choices: list[tuple[str, ...]] | None = None
    parts: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int] | np.ndarray) -> Split:
        """The examples at these positions, in this order."""

        def pick(values):
            if values is None:
                return None
            if isinstance(values, Images):
                return values.take(rows)
            return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows]

        return Split(*(pick(getattr(self, field.name)) for field in fields(self)))


@dataclass
class TaskData:
    """Train for learning, validation for choosing, test for reporting only."""

    train: Split
    validation: Split
    test: Split
    fingerprint: str  # sha256 over the content of the three splits
    source: str  # where the data came from: a path, hub id and revision, or "generated"

    @classmethod
    def of(cls, train: Split, validation: Split, test: Split, source: str) -> TaskData:
        return cls(train, validation, test, fingerprint(train, validation, test), source)


@dataclass(frozen=True)
class Option:
    """One choice of a protocol: its default, its type, and its bounds (inclusive)."""

    default: Any
    type: type
    minimum: float | None = None
    maximum: float | None = None
    optional: bool = False  # null is allowed

    def accepts(self, value: Any) -> bool:
        if value is None:
            return self.optional
        types = (int, float) if self.type is float else self.type
        if not isinstance(value, types) or (isinstance(value, bool) and self.type is not bool):
            return False
        return (self.minimum is None or value >= self.minimum) and (self.maximum is None or value <= self.maximum)

    def __str__(self) -> str:
        least = [] if self.minimum is None else [f"at least {self.minimum}"]
        most = [] if self.maximum is None else [f"at most {self.maximum}"]
        return " ".join([self.type.__name__, *least, *most]) + (" or null" if self.optional else "")


@dataclass(frozen=True)
class Protocol:
    """A named way of using a suite. Bump `version` with any change that could move a number.

    report: whether the number of the tables is that of the checkpoint `selected` on validation data or of the `last`.
    """

    name: str
    version: int
    options: Mapping[str, Option]
    report: str = "selected"
    text: str = ""  # what docs/protocols.md says of it: splits, prompt, selection, scoring, and what it departs from


class Source(NamedTuple):
    """A data set on the hub, as `snakemake fetch` downloads it: whole splits, or for a repository of files the `files`
    (patterns such as `ft-training_set/*.json`)."""

    hub_id: str
    config: str | None
    revision: str
    splits: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


class Suite:
    """One benchmark. Subclasses declare the class attributes and write `load`."""

    name: ClassVar[str]
    title: ClassVar[str]
    version: ClassVar[int]
    demo: ClassVar[bool] = False
    tasks: ClassVar[dict[str, TaskInfo]]
    protocols: ClassVar[tuple[Protocol, ...]]  # the first is the default; option `name` picks another

    def protocol(self, task: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The resolved protocol, ready for JSON: name, suite version, protocol version and the value of every option.

        Raises AtlasError on an unknown task, protocol name or option, and on a value out of its bounds.
        """
        self.info(task)
        options = dict(options or {})
        known = {protocol.name: protocol for protocol in self.protocols}
        name = options.pop("name", self.protocols[0].name)
        if name not in known:
            raise AtlasError(
                f"suite '{self.name}' has no protocol '{name}'",
                key=f"protocol.{self.name}.name",
                mend=suggest(str(name), known),
            )
        declared = known[name].options
        for option, value in options.items():
            key = f"protocol.{self.name}.{option}"
            if option not in declared:
                raise AtlasError(f"protocol '{name}' has no option '{option}'", key=key, mend=suggest(option, declared))
            if not declared[option].accepts(value):
                raise AtlasError(f"{value!r} does not fit option '{option}'", key=key, mend=f"give {declared[option]}")
        values = {option: options.get(option, declared[option].default) for option in sorted(declared)}
        return {"name": name, "version": known[name].version, "suite_version": self.version, **values}

    def recipe(self, task: str) -> dict[str, Any]:
        """The suite's own defaults for how a cell on this task is trained."""
        self.info(task)
        return {}

    def facts(self, task: str, protocol: Mapping[str, Any]) -> TaskInfo:
        """The facts of a task under a resolved protocol, which may change metrics, loss and lengths."""
        return self.info(task)

    def start(self, task: str, protocol: Mapping[str, Any]) -> str | None:
        """The task from whose trained method a cell on this one continues under a resolved protocol, or None.

        The cell of that task has the same method, settings, model, protocol and seed; its head is not taken over.
        """
        return None

    def reported(self, protocol: Mapping[str, Any]) -> str:
        """`selected` or `last`: the checkpoint whose number the tables show."""
        return next(p.report for p in self.protocols if p.name == protocol["name"])

    def extract(self, task: str, protocol: Mapping[str, Any], text: str, prompt: str = "") -> dict[str, str]:
        """Generation: the answers found in a text generated after a prompt, by rule: `strict`, and `flexible`.

        task: of a test with parts, the part. An answer is in the one form that `Split.answers` has too, so that equal
        answers are equal strings; "" where none is found. Only suites that generate have answers to extract.
        """
        raise NotImplementedError

    def sources(self, task: str, protocol: Mapping[str, Any]) -> list[Source]:
        """What `load` reads from the hub where there is no data root, under a resolved protocol; mostly nothing."""
        return []

    def load(self, task: str, protocol: Mapping[str, Any], data_root: Path | None) -> TaskData:
        """The data of a task under a resolved protocol.

        Raises AtlasError, naming file or hub id and the mend, where the data is missing or not as declared.
        """
        raise NotImplementedError

    def info(self, task: str) -> TaskInfo:
        """The facts of a task; AtlasError if the suite does not have it."""
        if task not in self.tasks:
            raise AtlasError(
                f"suite '{self.name}' has no task '{task}'", key=f"tasks.{self.name}", mend=suggest(task, self.tasks)
            )
        return self.tasks[task]


@dataclass(frozen=True)
class HubData:
    """A data set on the hub and its local twin, `<data_root>/<suite>/<task>/<split>.parquet` in the same columns."""

    hub_id: str
    revision: str
    config: str | None = None  # of the data set on the hub; None: the task's name

    def source(self, data_root: Path | None) -> str:
        return f"{self.hub_id}@{self.revision}" if data_root is None else str(data_root)

    def read(self, info: TaskInfo, split: str, columns: Sequence[str], data_root: Path | None):
        """These columns of a split as a pyarrow.Table: from the local root if one is given, else from the hub.

        A local root is never completed from the hub: a file that is missing there is an AtlasError.
        """
        if data_root is not None:
            return self._read_local(info, split, columns, Path(data_root))
        return self._read_hub(info, split, columns)

    def _read_local(self, info: TaskInfo, split: str, columns: Sequence[str], data_root: Path):
        import pyarrow
        import pyarrow.parquet

        path = data_root / info.suite / info.name / f"{split}.parquet"
        if not data_root.is_dir():
            raise AtlasError("the data root is not a folder", file=data_root, key="data_root", mend=self._mend(columns))
        if not path.is_file():
            raise AtlasError(
                f"{info.suite}/{info.name} has no '{split}' split under the data root",
                file=path,
                mend=self._mend(columns),
            )
        try:
            table = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise AtlasError(
                f"not a readable parquet file ({error})", file=path, mend="copy or write the file again"
            ) from error
        return _select(table, columns, path, self._mend(columns))

    def _read_hub(self, info: TaskInfo, split: str, columns: Sequence[str]):
        from datasets import load_dataset

        try:
            dataset = load_dataset(self.hub_id, self.config or info.name, split=split, revision=self.revision)
        except Exception as error:  # the hub's client raises a dozen kinds of exception: offline, refused, not found, …
            reason = (str(error).splitlines() or [""])[0]
            raise AtlasError(
                f"cannot read the '{split}' split of {info.suite}/{info.name} from the hub or its cache "
                f"({type(error).__name__}: {reason})",
                file=f"{self.hub_id}@{self.revision}",
                mend=f"run `snakemake fetch --config grid=FILE` where there is a network; or {self._mend(columns)}",
            ) from error
        self._check_revision(dataset.cache_files)
        return _select(dataset.data.table, columns, f"{self.hub_id}@{self.revision}", self._mend(columns))

    def _check_revision(self, files: Sequence[Mapping[str, str]]) -> None:
        """AtlasError if the cache gave another commit than the pinned one: with the hub switched off, `datasets` takes
        whichever it fetched last. It keeps each commit in a folder of that name."""
        held = {Path(file["filename"]).parent.name for file in files} - {self.revision}
        if re.fullmatch("[0-9a-f]{40}", self.revision) and held:
            folders = ", ".join(sorted({str(Path(file["filename"]).parent) for file in files}))
            raise AtlasError(
                f"the cache holds another revision of {self.hub_id} than {self.revision}",
                file=folders,
                mend="delete that folder, then run `snakemake fetch --config grid=FILE`",
            )

    def _mend(self, columns: Sequence[str]) -> str:
        return (
            "set `data_root: PATH` in the grid or give `--config data_root=PATH`, where "
            f"PATH/<suite>/<task>/<split>.parquet has the columns {', '.join(columns)}; "
            f"without data_root the data is that of {self.hub_id} on the hub, which `snakemake fetch` downloads"
        )


def _select(table, columns: Sequence[str], origin: object, mend: str):
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise AtlasError(
            f"no column {', '.join(missing)}; there are {', '.join(table.column_names)}", file=origin, mend=mend
        )
    return table.select(columns)


def label_ids(table, column: str, labels: Sequence[str], origin: object) -> np.ndarray:
    """A label column as int64 ids into `labels`, (n,).

    Where the table's own metadata names its labels they are matched by name, so another order on disk does no harm.
    Raises AtlasError on a name or an id that is not declared (the hub writes -1 for hidden labels).
    """
    ids = table.column(column).to_numpy()
    names = _names_on_disk(table, column) or list(labels)
    known = np.isin(ids, np.arange(len(names)))
    unknown = [str(value) for value in np.unique(ids[~known])] + [name for name in names if name not in labels]
    if unknown:
        raise AtlasError(
            f"unknown labels in column '{column}': {', '.join(unknown)}",
            file=origin,
            mend=f"labels are 0 to {len(labels) - 1}, in order: {', '.join(labels)}",
        )
    return np.array([list(labels).index(name) for name in names])[ids.astype(np.int64)]


def _names_on_disk(table, column: str) -> list[str] | None:
    """Label names in id order, from the metadata that `datasets` writes into arrow and parquet files."""
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    features = json.loads(metadata)["info"]["features"] if metadata else {}
    return features.get(column, {}).get("names")


def stratified_draw(labels: np.ndarray, ids: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Positions of `size` rows, drawn with each label's share kept (largest remainder), in ascending order.

    Rows are ranked by sha256 of (seed, id): the draw does not depend on the order of the rows, on any random
    generator or its version, and a row that is missing changes the draw by about one row.
    """
    ranks = [hashlib.sha256(f"{seed}:{row_id}".encode()).digest() for row_id in ids.tolist()]
    order = np.array(sorted(range(len(ids)), key=ranks.__getitem__), dtype=np.int64)
    values, counts = np.unique(labels, return_counts=True)
    shares = counts * (size / len(labels))
    quota = np.floor(shares).astype(int)
    quota[np.argsort(quota - shares, kind="stable")[: size - quota.sum()]] += 1
    drawn = [order[labels[order] == value][:take] for value, take in zip(values, quota, strict=True)]
    return np.sort(np.concatenate(drawn))


def simple_draw(split: Split, size: int, seed: int) -> np.ndarray:
    """Positions of `size` rows, as `stratified_draw` with all labels alike."""
    return stratified_draw(np.zeros(len(split)), split.ids, size, seed)


def at_most(
    split: Split, size: int | None, seed: int, draw: Callable[[Split, int, int], np.ndarray] = simple_draw
) -> Split:
    """The split, cut to `size` drawn rows where it has more; None: as it is."""
    return split if size is None or size >= len(split) else split.take(draw(split, size, seed))


def divided(split: Split, rows: np.ndarray) -> tuple[Split, Split]:
    """All rows but those at these positions, and those."""
    return split.take(np.setdiff1d(np.arange(len(split)), rows)), split.take(rows)


def joined(splits: Sequence[Split]) -> Split:
    """The rows of these splits of texts one after the other."""

    def join(name: str):
        values = [getattr(split, name) for split in splits]
        if values[0] is None:
            return None
        if isinstance(values[0], np.ndarray):
            return np.concatenate(values)
        return [row for value in values for row in value]

    return Split(*(join(field.name) for field in fields(Split)))


def fingerprint(*splits: Split) -> str:
    """sha256 (hex) over the ids, labels and inputs of the splits, in this order."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(json.dumps([split.ids.tolist(), split.labels.tolist()]).encode())
        if isinstance(split.inputs, Images):
            digest.update(split.inputs.digest().encode())
        elif isinstance(split.inputs, np.ndarray):
            digest.update(f"{split.inputs.dtype} {split.inputs.shape}".encode() + split.inputs.tobytes())
        else:
            digest.update(json.dumps(split.inputs).encode())
        for extra in (split.answers, split.parts):
            if extra is not None:
                digest.update(json.dumps(extra.tolist()).encode())
        if split.choices is not None:
            digest.update(json.dumps(split.choices).encode())
    return digest.hexdigest()
