"""Math word problems as instructions (LLM-Adapters: Hu et al., 2023, arXiv:2304.01933): one model is trained on a
mixture with model-written solutions and tested on up to seven sets.

The files are those of AGI-Edgerunners/LLM-Adapters. They are read from `<data_root>/math/`, in any of these places
(columns instruction, input, output for training; instruction, input, answer for test):

    math_10k/train.parquet     math_10k/train.json     ft-training_set/math_10k.json
    svamp/test.parquet         svamp/test.json         dataset/SVAMP/test.json

so that a clone of the repository under the name `math` will do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tasks import _answers, _llm_adapters
from tasks.base import (
    Option,
    Protocol,
    Split,
    Suite,
    TaskData,
    TaskInfo,
    at_most,
    divided,
    generation_task,
    joined,
    simple_draw,
)
from workflow.errors import AtlasError, suggest

PLACES = 3  # decimals that count: the published rule forgives a difference of 0.001
LETTER = re.compile(r"[A-E]")
MARKED_LETTER = re.compile(r"\b(?i:the (?:final )?answer is:?\s*(?:option\s*)?)\(?([A-E])\b")
STANDING_LETTER = re.compile(r"\b[A-E]\b")
INDENT = 16 * " "


@dataclass(frozen=True)
class _Test:
    """A test set: its folder in the repository, and its rows there."""

    folder: str
    rows: int


TESTS = {
    "gsm8k": _Test("gsm8k", 1319),
    "svamp": _Test("SVAMP", 1000),
    "aqua": _Test("AQuA", 254),
    "mawps": _Test("mawps", 238),
    "addsub": _Test("AddSub", 395),
    "multiarith": _Test("MultiArith", 600),
    "singleeq": _Test("SingleEq", 508),
}
SEEN_IN_MAWPS = ("addsub", "multiarith", "singleeq")

PROTOCOL = Protocol(
    name="generate-last-number",
    version=1,
    report="last",
    options={
        "parts": Option(None, list, optional=True),
        "validation": Option(120, int, minimum=1, maximum=2000),
        "split_seed": Option(0, int, minimum=0),
        "max_train": Option(None, int, minimum=1, optional=True),
        "max_test": Option(None, int, minimum=1, optional=True),
        "new_tokens": Option(256, int, minimum=1, maximum=2048),
        "indented": Option(False, bool),
        "check_sizes": Option(True, bool),
    },
    text="""\
Data: the files of AGI-Edgerunners/LLM-Adapters, identified by the fingerprint of a result; where to put them is said
in `tasks/math_reasoning.py`. `math_10k` is made of the training sets of GSM8K and MAWPS and 1,000 rows of AQuA, with
solutions written by a model; `math_7k` is the same without MAWPS, and `math_14k` has no MAWPS either and solutions of
two models. Test sets: GSM8K 1,319 rows, SVAMP 1,000, AQuA 254, MAWPS 238, AddSub 395, MultiArith 600, SingleEq 508;
`parts` names some of them only, and `check_sizes` compares their rows with these counts.

The headline is the mean over sets, each set with the same weight. For `math_10k` AddSub, MultiArith and SingleEq are
shown and do not count: of their questions 83, 82 and 86 percent stand word for word in the MAWPS training file, and
the authors have withdrawn them. Twelve percent of MAWPS's own test questions stand there too; it counts, as it does
in the authors' table. None of SVAMP's and GSM8K's do. MultiArith has 20 questions twice. Six- and seven-set means of
papers, in which the three count, are not comparable.

Splits: validation is `validation` rows of the training file, drawn by a hash of row number and `split_seed` (the
published split of 120 rows is random, and is not used for choosing). `max_train` and `max_test` (rows of each test
set, the same for every `split_seed`) take subsets, drawn in the same way. The number of tested rows is stored with
every metric.

Prompt: the Alpaca header for instructions without input, in training as in test; the answer begins on a new line. The
published strings have 16 spaces before every line but the first, and differ in white space between training and test.
`indented` puts the spaces back, in one form for both; those before the answer belong to what is learned and generated.
White space around the solutions themselves is taken off. Loss on all tokens, prompt included; examples are cut at 256
tokens, and a cut one does not learn its end.

Generation is greedy, with at most `new_tokens` new tokens; published numbers are from beam search with 4 beams.
`accuracy` is the published rule: the last number of the text, and for AQuA the first capital letter from A to E
anywhere in the text, be it in a word. `accuracy_flexible` takes what follows `The answer is` (or a `####`), a number
or for AQuA a letter, and where nothing does, the last number, or the last letter that stands alone. Numbers are rounded
to three decimals where the published rule forgives a difference of 0.001; fractions with a slash are evaluated, where
it takes the denominator; a hyphen between two digits is no minus sign, where it is one there.

Validation is scored by `nll` alone, on which learning rates are chosen. Test sets have no `nll`, because not all
solutions in the test files are right, and MAWPS's have none. The table shows the last checkpoint. Recipe:
batch 16, 3 epochs, linear decay after 100 steps of warm-up, learning rate 3e-4 (for LoRA on q, k, v, up and down with
rank 32 and alpha 64). A method's own learning rate comes before it: set `lr` in the grid. Published runs are in
float16.
""",
)


def _task(name: str, title: str, contaminated: tuple[str, ...]) -> TaskInfo:
    return generation_task(
        suite="math",
        name=name,
        fields=("prompt",),
        metrics=("accuracy", "accuracy_flexible", "unparsed"),
        max_length=256,
        learn="all",
        new_tokens=256,
        title=title,
        parts=tuple(TESTS),
        contaminated=contaminated,
        ranked=False,  # the tasks are training sets for one set of tests
    )


class MathReasoning(Suite):
    name, title, version = "math", "Math word problems", 1
    tasks = {
        task.name: task
        for task in (
            _task("math_10k", "Math 10k", SEEN_IN_MAWPS),
            _task("math_7k", "Math 7k", ()),
            _task("math_14k", "Math 14k", ()),
        )
    }
    protocols = (PROTOCOL,)

    def protocol(self, task: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        resolved = super().protocol(task, options)
        for part in resolved["parts"] or ():
            if part not in TESTS:
                mend = suggest(str(part), TESTS)
                raise AtlasError(f"there is no test set '{part}'", key="protocol.math.parts", mend=mend)
        parts = [part for part in TESTS if part in (resolved["parts"] or TESTS)]
        if set(parts) <= set(self.info(task).contaminated):
            mend = "name one that counts, too"
            raise AtlasError(f"{task} was trained on {', '.join(parts)}", key="protocol.math.parts", mend=mend)
        return resolved | {"parts": parts}

    def recipe(self, task: str) -> dict[str, Any]:
        self.info(task)
        return {"lr": 3e-4, "batch_size": 16, "epochs": 3, "schedule": "linear", "warmup": 100}

    def facts(self, task: str, protocol: Mapping[str, Any]) -> TaskInfo:
        info = self.info(task)
        parts = tuple(protocol["parts"])
        contaminated = tuple(part for part in info.contaminated if part in parts)
        return replace(info, parts=parts, contaminated=contaminated, new_tokens=protocol["new_tokens"])

    def extract(self, task: str, protocol: Mapping[str, Any], text: str, prompt: str = "") -> dict[str, str]:
        """`task` is the test set that the text answers."""
        if task == "aqua":
            letter, marked = LETTER.search(text), MARKED_LETTER.search(text)
            standing = STANDING_LETTER.findall(text)
            flexible = marked[1] if marked else standing[-1] if standing else ""
            return {"strict": letter[0] if letter else "", "flexible": flexible}
        last = _answers.last(text, PLACES)
        return {"strict": last, "flexible": _answers.strict(text, PLACES) or last}

    def load(self, task: str, protocol: Mapping[str, Any], data_root: Path | None) -> TaskData:
        self.info(task)
        folder, seed = _llm_adapters.folder(self.name, data_root, _mend("data_root")), protocol["split_seed"]
        whole = _train(folder, task, protocol)
        train, validation = divided(whole, simple_draw(whole, protocol["validation"], seed))
        test = joined([_test(folder, part, protocol) for part in protocol["parts"]])
        return TaskData.of(at_most(train, protocol["max_train"], seed), validation, test, str(data_root))


def _train(folder: Path, task: str, protocol: Mapping[str, Any]) -> Split:
    places = _llm_adapters.places(folder, task, "train", f"ft-training_set/{task}.json")
    path = _llm_adapters.first_file(places, f"there is no training set '{task}'", _mend(str(folder.parent)))
    rows = _llm_adapters.columns(path, ("instruction", "input", "output"))
    if len(rows["output"]) <= protocol["validation"]:
        problem = f"{len(rows['output'])} rows are too few for {protocol['validation']} rows of validation"
        raise AtlasError(problem, file=path, key="protocol.math.validation", mend="use the whole file, or lower it")
    return _split(rows, [output.strip() for output in rows["output"]], task, protocol)


def _test(folder: Path, part: str, protocol: Mapping[str, Any]) -> Split:
    source = TESTS[part]
    places = _llm_adapters.places(folder, part, "test", f"dataset/{source.folder}/test.json")
    mend = f"{_mend(str(folder.parent))}; or name those that are there, `protocol: {{math: {{parts: [gsm8k]}}}}`"
    path = _llm_adapters.first_file(places, f"there is no test set '{part}'", mend)
    rows = _llm_adapters.columns(path, ("instruction", "input", "answer"))
    if protocol["check_sizes"]:
        _llm_adapters.check_size("math", f"the test set '{part}'", len(rows["answer"]), source.rows, path)
    answers = [_reference(part, str(answer), path, row) for row, answer in enumerate(rows["answer"])]
    split = _split(rows, [f"The answer is {answer}." for answer in answers], part, protocol)
    split.answers, split.parts = np.array(answers), np.repeat(part, len(answers))
    return at_most(split, protocol["max_test"], 0)


def _reference(part: str, written: str, path: Path, row: int) -> str:
    """The answer of a file in the form that extraction has: a letter in AQuA, else a number."""
    letter = written if LETTER.fullmatch(written) else ""
    answer = letter if part == "aqua" else _answers.canonical(written, PLACES)
    if not answer:
        problem = f"row {row} has the answer {written!r}"
        raise AtlasError(problem, file=path, key="answer", mend=_llm_adapters.AS_PUBLISHED)
    return answer


def _split(rows: Mapping[str, list], answers: Sequence[str], name: str, protocol: Mapping[str, Any]) -> Split:
    """The examples as a model reads them. ids: `<name>/<row>`."""
    indent = INDENT if protocol["indented"] else ""
    pairs = zip(rows["instruction"], rows["input"], strict=True)
    prompts = [(_llm_adapters.prompt(instruction, given, indent),) for instruction, given in pairs]
    learned = np.array([f"\n{indent}{answer}" for answer in answers], dtype=object)
    ids = np.array([f"{name}/{row}" for row in range(len(answers))])
    return Split(prompts, learned, ids)


def _mend(where: str) -> str:
    return (
        f"get dataset/ and ft-training_set/ of {_llm_adapters.ORIGIN} and put them under {where}/math, or the same "
        f"rows as {where}/math/<training set>/train.parquet and {where}/math/<test set>/test.parquet"
    )


suite = MathReasoning()
