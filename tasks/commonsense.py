"""Eight commonsense tasks as instructions (LLM-Adapters: Hu et al., 2023, arXiv:2304.01933): each item is multiple
choice, and the model is to write `the correct answer is X`.

The files are those of AGI-Edgerunners/LLM-Adapters, and nothing here rewrites their instructions. They are read from
`<data_root>/commonsense/`, in any of these places (columns instruction, input, output, answer):

    <task>/<split>.parquet     <task>/<split>.json     dataset/<the repository's name of the task>/<split>.json
    joint/170k.parquet         joint/commonsense_170k.json         ft-training_set/commonsense_170k.json

so that a clone of the repository under the name `commonsense` will do; 15k likewise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tasks import _llm_adapters
from tasks._commonsense import items
from tasks.base import (
    Option,
    Protocol,
    Split,
    Suite,
    TaskData,
    TaskInfo,
    at_most,
    generation_task,
    joined,
    stratified_draw,
)
from workflow.errors import AtlasError, suggest

COLUMNS = ("instruction", "input", "output", "answer")
MIXTURES = {"170k": 170_420, "15k": None, "available": None}  # rows, where they are known
JOINT = "joint"

GENERATED = ("accuracy", "accuracy_flexible", "unparsed", "accuracy_likelihood", "nll")
LIKELIHOOD = ("accuracy_likelihood", "nll")


@dataclass(frozen=True)
class _Source:
    """One of the eight: its folder in the repository, rows of its test file, score of a fixed answer, answer words."""

    title: str
    folder: str
    test_rows: int
    chance: float
    words: tuple[str, ...]


# the chance of BoolQ is the share of `true` among its test rows
SOURCES = {
    "boolq": _Source("BoolQ, closed book", "boolq", 3270, 0.622, items.TRUTH),
    "piqa": _Source("PIQA", "piqa", 1838, 1 / 2, items.SOLUTIONS),
    "siqa": _Source("Social IQa", "social_i_qa", 1954, 1 / 3, items.ANSWERS),
    "hellaswag": _Source("HellaSwag", "hellaswag", 10_042, 1 / 4, items.ENDINGS),
    "winogrande": _Source("WinoGrande", "winogrande", 1267, 1 / 2, items.BLANKS),
    "arc_easy": _Source("ARC-Easy", "ARC-Easy", 2376, 1 / 4, items.ANSWERS),
    "arc_challenge": _Source("ARC-Challenge", "ARC-Challenge", 1172, 1 / 4, items.ANSWERS),
    "obqa": _Source("OpenBookQA", "openbookqa", 500, 1 / 4, items.ANSWERS),
}


def _task(name: str, title: str, parts: Sequence[str]) -> TaskInfo:
    return generation_task(
        suite="commonsense",
        name=name,
        fields=("prompt",),
        metrics=GENERATED,
        max_length=256,
        title=title,
        chance=_chance(parts),
        parts=tuple(parts) if name == JOINT else (),
        ranked=name != JOINT,
        new_tokens=16,
    )


def _chance(parts: Sequence[str]) -> float:
    return sum(SOURCES[part].chance for part in parts) / len(parts)


OPTIONS = {
    "mixture": Option("170k", str, optional=True),
    "parts": Option(None, list, optional=True),
    "validation": Option(120, int, minimum=1),
    "split_seed": Option(0, int, minimum=0),
    "max_train": Option(None, int, minimum=1, optional=True),
    "max_test": Option(None, int, minimum=1, optional=True),
    "check_sizes": Option(True, bool),
}

SHARED_TEXT = """\
Data: the files of AGI-Edgerunners/LLM-Adapters, identified by the fingerprint stored with every result; where they \
are put is said in `tasks/commonsense.py`. The instructions are used byte for byte. BoolQ comes without its passage, \
and the test rows of BoolQ, PIQA, Social IQa, HellaSwag and WinoGrande are the official validation splits. \
A per-task run trains on the task's own file. `joint` trains one model on `mixture` (`170k`, `15k`, or `available`: \
all per-task training files under the data root) and tests it on all eight, or on `parts`; its headline is their \
unweighted mean. `check_sizes` compares the rows of test files, and of the 170k file, with the published counts.

Split: `validation` rows of the training file, drawn by a hash of seed and instruction with the shares of the answers \
kept; rows of train that repeat one of their instructions are left out. The published split is random. Test rows that \
also occur in train (two of ARC-Easy's, word for word) stay, as published. `max_train` and `max_test` (rows of each \
test file) are drawn in the same way; the number of rows is stored with every metric.

Prompt: the Alpaca header for instructions without input, without indentation, ending in `### Response:`. Training \
and test prompts are the same string; the answer begins on a new line. Historic code indents the two differently.

Training: learning rate 3e-4, batch 16, 3 epochs, linear decay after 100 steps of warm-up, 256 tokens. The number \
of the tables is that of the last step, because 120 rows are too few to choose among checkpoints.

These numbers never belong beside those of lm-evaluation-harness: the prompt, what is given (no passage in BoolQ) and \
the form of the answer all differ. Compare only runs with the same loss mask: on a Llama 3 8B, taking the prompt out \
of the loss has been seen to raise plain LoRA by more than most new methods claim to.
"""
GENERATE_TEXT = """\
Greedy decoding, at most 16 new tokens, in masked batches. `accuracy` is strict: the first lower-case answer word of \
the task's kind (`answer1` to `answer5`, `true` or `false`, ...) anywhere in the response, so `True` is no answer and \
`solution12` is `solution1`. `accuracy_flexible` lower-cases the response and, if it has no answer word, looks for the \
text of an option. `unparsed` is the share without a strict answer. A strict accuracy below chance is a failure of \
format, not of knowledge: read it beside `unparsed` and `accuracy_likelihood`, which compares the log-probabilities of \
`the correct answer is X` for every X that the item allows (two to five) and needs no parsing.
"""
LOSS_TEXT = "Loss on the response only.\n"
LIKELIHOOD_TEXT = """\
Nothing is generated: the answer is the X, of those that the item allows (two to five), for which \
`the correct answer is X` is the most probable. A knowledge of the format is not needed, so an untrained model is near \
chance and not near zero.
"""
LEGACY_TEXT = """\
Loss on all tokens, prompt included, as LLM-Adapters and DoRA trained. Of their protocol the rest is not reproduced: \
they decode with 4 beams and up to 32 tokens, LLM-Adapters without an attention mask on padded batches, and their \
prompts are indented by 16 spaces, differently in training and test. So a published figure is a landmark for these \
numbers and not a target: a difference of a point or two says nothing.
"""


class Commonsense(Suite):
    name, title, version = "commonsense", "Commonsense reasoning", 1
    tasks = {
        **{name: _task(name, source.title, (name,)) for name, source in SOURCES.items()},
        JOINT: _task(JOINT, "Commonsense, one model for all", tuple(SOURCES)),
    }
    protocols = (
        Protocol("generate", 1, OPTIONS, "last", f"{LOSS_TEXT}\n{GENERATE_TEXT}\n{SHARED_TEXT}"),
        Protocol("likelihood", 1, OPTIONS, "last", f"{LOSS_TEXT}\n{LIKELIHOOD_TEXT}\n{SHARED_TEXT}"),
        Protocol("legacy-prompt-loss", 1, OPTIONS, "last", f"{LEGACY_TEXT}\n{GENERATE_TEXT}\n{SHARED_TEXT}"),
    )

    def protocol(self, task: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As `Suite.protocol`; `mixture` and `parts` say nothing of a task that is trained alone, and are null there.

        Raises AtlasError on an unknown mixture or part, too.
        """
        resolved = super().protocol(task, options)
        mixture, parts = resolved["mixture"], resolved["parts"]
        if mixture not in MIXTURES:
            key = "protocol.commonsense.mixture"
            raise AtlasError(f"there is no mixture '{mixture}'", key=key, mend=suggest(str(mixture), MIXTURES))
        for part in parts or ():
            if part not in SOURCES:
                key = "protocol.commonsense.parts"
                raise AtlasError(f"there is no part '{part}'", key=key, mend=suggest(str(part), SOURCES))
        if task != JOINT:
            return resolved | {"mixture": None, "parts": None}
        return resolved | {"parts": [part for part in SOURCES if part in parts] if parts else None}

    def recipe(self, task: str) -> dict[str, Any]:
        self.info(task)
        return {"lr": 3e-4, "batch_size": 16, "epochs": 3.0, "schedule": "linear", "warmup": 100, "max_length": 256}

    def facts(self, task: str, protocol: Mapping[str, Any]) -> TaskInfo:
        info = self.info(task)
        if protocol["parts"]:
            info = replace(info, parts=tuple(protocol["parts"]), chance=_chance(protocol["parts"]))
        if protocol["name"] == "likelihood":
            return replace(info, metrics=LIKELIHOOD, primary=LIKELIHOOD[0])
        return replace(info, learn="all") if protocol["name"] == "legacy-prompt-loss" else info

    def extract(self, task: str, protocol: Mapping[str, Any], text: str, prompt: str = "") -> dict[str, str]:
        """`strict` and `flexible` answers, see the protocol's text. task: of a joint test, the part.

        Without the prompt, which tells what the options say, no option text is looked for.
        """
        return items.extract(text, SOURCES[task].words, prompt)

    def load(self, task: str, protocol: Mapping[str, Any], data_root: Path | None) -> TaskData:
        info = self.facts(task, protocol)
        folder = _llm_adapters.folder(self.name, data_root, _mend("data_root"))
        parts = _test_parts(folder, info.parts or (task,), protocol)
        train = _mixture(folder, protocol) if task == JOINT else _read(folder, task, "train")
        train, validation = _divide(train, protocol, folder)
        test = joined(parts)
        if task == JOINT:
            test.parts = np.repeat(info.parts, [len(part) for part in parts])
        return TaskData.of(train, validation, test, str(data_root))


# ---- files -----------------------------------------------------------------------------------------------------


def _mend(where: str) -> str:
    return (
        f"get dataset/ and ft-training_set/ of {_llm_adapters.ORIGIN} and put them under {where}/commonsense, or the "
        f"same rows as {where}/commonsense/<task>/{{train,test}}.parquet and "
        f"{where}/commonsense/joint/<mixture>.parquet with columns {', '.join(COLUMNS)}"
    )


def _places(folder: Path, task: str, split: str) -> list[Path]:
    """Where the file of a task's split may lie, in order of preference."""
    return _llm_adapters.places(folder, task, split, f"dataset/{SOURCES[task].folder}/{split}.json")


def _mixture_places(folder: Path, mixture: str) -> list[Path]:
    name = f"commonsense_{mixture}.json"
    return [folder / JOINT / f"{mixture}.parquet", folder / JOINT / name, folder / "ft-training_set" / name]


def _is_there(folder: Path, task: str, split: str) -> bool:
    return any(path.is_file() for path in _places(folder, task, split))


def _read(folder: Path, task: str, split: str) -> Split:
    places, problem = _places(folder, task, split), f"commonsense/{task} has no '{split}' file"
    return _split(_llm_adapters.first_file(places, problem, _mend(str(folder.parent))), task)


def _test_parts(folder: Path, names: Sequence[str], protocol: Mapping[str, Any]) -> list[Split]:
    """The test rows of each of these tasks. AtlasError if files are missing, or cut short and `check_sizes` is on."""
    missing = [name for name in names if not _is_there(folder, name, "test")]
    if missing:
        there = [name for name in SOURCES if name not in missing and _is_there(folder, name, "test")]
        mend = _mend(str(folder.parent))
        if there and len(names) > 1:
            mend += f"; or test the joint model on some tasks only, `protocol: {{commonsense: {{parts: {there}}}}}`"
        raise AtlasError(
            f"no test file of {', '.join(missing)}", file=_places(folder, missing[0], "test")[0], mend=mend
        )
    tests = []
    for name in names:
        test = _read(folder, name, "test")
        if protocol["check_sizes"]:
            what = f"the test file of {name}"
            _llm_adapters.check_size("commonsense", what, len(test), SOURCES[name].test_rows, folder)
        tests.append(at_most(test, protocol["max_test"], protocol["split_seed"], _draw))
    return tests


def _mixture(folder: Path, protocol: Mapping[str, Any]) -> Split:
    mixture = protocol["mixture"]
    if mixture == "available":
        names = [name for name in SOURCES if _is_there(folder, name, "train")]
        if not names:
            problem = "there is no training file of any task"
            raise AtlasError(problem, file=folder, mend=_mend(str(folder.parent)))
        return joined([_read(folder, name, "train") for name in names])
    places, problem = _mixture_places(folder, mixture), f"there is no mixture '{mixture}' under the data root"
    train = _split(_llm_adapters.first_file(places, problem, _mend(str(folder.parent))), mixture)
    if protocol["check_sizes"] and MIXTURES[mixture]:
        what = f"the mixture '{mixture}'"
        _llm_adapters.check_size("commonsense", what, len(train), MIXTURES[mixture], folder)
    return train


# ---- rows ------------------------------------------------------------------------------------------------------


def _split(path: Path, name: str) -> Split:
    """All rows of a file. ids: `<name>/<row>`. AtlasError on rows that are not as the suite's."""
    columns = _llm_adapters.columns(path, COLUMNS)
    instructions, answers = columns["instruction"], columns["answer"]
    choices = [items.allowed(text) for text in instructions]
    rows = zip(columns["input"], columns["output"], answers, choices, strict=True)
    for row, (given, output, answer, allowed) in enumerate(rows):
        if given or answer not in allowed or output != items.sentence(answer):
            raise AtlasError(
                f"row {row} is no item of this suite: input {given!r}, output {output!r}, answer {answer!r}, "
                f"answers allowed by its instruction {'/'.join(allowed) or 'none'}",
                file=path,
                mend=_llm_adapters.AS_PUBLISHED,
            )
    return Split(
        inputs=[(_llm_adapters.prompt(text),) for text in instructions],
        labels=np.array([_completion(answer) for answer in answers], object),
        ids=np.array([f"{name}/{row}" for row in range(len(answers))]),
        answers=np.array(answers),
        choices=[tuple(map(_completion, allowed)) for allowed in choices],
    )


def _completion(answer: str) -> str:
    return f"\n{items.sentence(answer)}"


def _divide(rows: Split, protocol: Mapping[str, Any], folder: Path) -> tuple[Split, Split]:
    """Train and validation, without a prompt in common."""
    size, seed = protocol["validation"], protocol["split_seed"]
    if size >= len(rows):
        raise AtlasError(
            f"the training file has {len(rows)} rows, of which {size} would be for validation",
            file=folder,
            key="protocol.commonsense.validation",
            mend="get the whole file, or set a smaller `validation`",
        )
    validation = rows.take(_draw(rows, size, seed))
    chosen = set(validation.inputs)
    rest = rows.take([row for row, prompt in enumerate(rows.inputs) if prompt not in chosen])
    return at_most(rest, protocol["max_train"], seed, _draw), validation


def _draw(rows: Split, size: int, seed: int) -> np.ndarray:
    """Positions of rows drawn by prompt, not by place: the same ones whatever the order of a file."""
    return stratified_draw(rows.answers, np.array([prompt for (prompt,) in rows.inputs], object), size, seed)


suite = Commonsense()
