"""GSM8K: Training Verifiers to Solve Math Word Problems (Cobbe et al., 2021, arXiv:2110.14168).

`main` learns GSM8K's own worked answers; `metamathqa` learns MetaMathQA (Yu et al., 2023, arXiv:2309.12284), whose
problems are reworded from the training sets of GSM8K and MATH. Both are tested on GSM8K's test set by generating.
The protocol says how a problem is asked, what the loss is on and which rows are validation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tasks import _answers
from tasks.base import (
    HubData,
    Option,
    Protocol,
    Source,
    Split,
    Suite,
    TaskData,
    TaskInfo,
    at_most,
    divided,
    generation_task,
    simple_draw,
)
from workflow.errors import AtlasError

GSM8K_ID, GSM8K_REVISION = "openai/gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee"
METAMATHQA_ID, METAMATHQA_REVISION = "meta-math/MetaMathQA", "aa4f34d3d2d3231299b5b03d9b3e5a20da45aa18"
PEFT_VALIDATION = 50  # rows
CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")

ZERO_SHOT = Protocol(
    name="zero-shot-completion",
    version=1,
    report="last",
    options={
        "revision": Option(GSM8K_REVISION, str),
        "metamathqa_revision": Option(METAMATHQA_REVISION, str),
        "calculator_marks": Option(False, bool),
        "validation": Option(500, int, minimum=1, maximum=5000),
        "split_seed": Option(0, int, minimum=0),
        "max_train": Option(None, int, minimum=1, optional=True),
        "max_test": Option(None, int, minimum=1, optional=True),
        "new_tokens": Option(256, int, minimum=1, maximum=2048),
    },
    text="""\
The prompt is `Question: `, the problem, and `Answer:` on a line of its own, without examples, in training as in test.
The worked answer is learned after it; the loss is on the answer alone, and examples are cut at 512 tokens. `main`
learns GSM8K's training answers as they are, `#### N` at the end, without the calculator's marks `<<...>>`
(`calculator_marks` keeps them). `metamathqa` learns the responses of MetaMathQA.

Splits: validation is `validation` rows of GSM8K's training set, drawn by a hash of row number and `split_seed`; test
is all 1,319 rows of GSM8K's test set. `main` trains on the other training rows. `metamathqa` leaves out every row
whose `original_question` is a validation row, because MetaMathQA is made from GSM8K's training set. `max_train` and
`max_test` take a subset, drawn in the same way; the test subset is the same for every `split_seed`. The `n` of a
result says how many rows were tested.

Generation is greedy, with at most `new_tokens` new tokens. `accuracy` wants the answer marked: the number that
directly follows the first `####` which a number follows, or, if there is none, the first such `The answer is`.
`accuracy_flexible` takes the last number of the text. Both are read from the same text; thousands separators,
currency and percent signs are dropped, fractions are evaluated, and numbers are compared to six decimals. The table
shows the last checkpoint; learning rates are chosen by `nll` on validation.

Comparable with other zero-shot numbers of models that were fine-tuned on the same answers; not with few-shot numbers
of lm-evaluation-harness, and not with numbers from another answer format.
""",
)

PEFT = Protocol(
    name="peft-method-comparison",
    version=1,
    report="last",
    options={
        "revision": Option(GSM8K_REVISION, str),
        "metamathqa_revision": Option(METAMATHQA_REVISION, str),
        "max_characters": Option(1300, int, minimum=1),
        "max_train": Option(20000, int, minimum=1, optional=True),
        "max_test": Option(None, int, minimum=1, optional=True),
        "new_tokens": Option(300, int, minimum=1, maximum=2048),
    },
    text="""\
`method_comparison/MetaMathQA` of huggingface/peft. On task `metamathqa`, training rows are those of MetaMathQA whose
query, a blank and response have at most `max_characters` characters, in the order of the file; the first `max_train`
of them are used, which is what 5,000 steps of 4 reach. The prompt is `Question: `, the query, ` Think step by step.`
and `Answer:` on a line of its own; the response follows directly. The loss is on all tokens, prompt included, and
examples are cut at 768 tokens. Validation is 50 rows of GSM8K's training set (the first 50 of its row numbers as
numpy's legacy generator shuffles them from seed 0), test all 1,319 rows of GSM8K's test set. Generation is greedy,
with at most 300 new tokens and 800 in all; the last checkpoint counts. The recipe of the task is the published one:
AdamW, learning rate 1e-4, weight decay 0.1, cosine with a tenth of warm-up, clip 1, batch 4, 5,000 steps, frozen
weights in bfloat16 and trained ones in float32. A method's own learning rate comes before it: set `lr` in the grid.

Validation is not clean, because MetaMathQA is made from GSM8K's training set; test is. Fifty rows move in steps of two
points, and nothing is chosen on them here.

What departs from the published harness:

- Batches. There, 80 consecutive rows of the file are sorted by length and cut into batches, the same in every run. Here
  the same 20,000 rows come in an order drawn from the seed, sorted by length within pools of 50 batches.
- Tokens. There, prompt and response are tokenised as one text, and the end-of-text token is not learned by the longest
  row of a batch. Here they are tokenised apart, so that training begins with the very tokens of the test prompt, and
  every row that is not cut learns its end. The loss of a batch is divided by the number of learned tokens.
- Weight decay. There, all trained parameters decay; here vectors and scalars do not.
- Validation during training is by `nll` of the worked answers, 20 times, and not by generating.
- Scoring. There, the text after the last `The answer is: ` (or the next of five delimiters that occurs) must be the
  number, commas are not removed and a unit makes it wrong. Here it is `accuracy` as in `zero-shot-completion`.
- Evaluation batches are formed by tokens and not of 50 rows, so that the limit of 800 tokens, which counts the padded
  prompt in both, leaves other rows less room.
- `forgetting` on encyclopedia text is not measured.

On task `main` the same protocol learns GSM8K's own training answers, marks of the calculator included, without the 50
rows of validation.
""",
)


def _task(name: str, title: str) -> TaskInfo:
    return generation_task(
        suite="gsm8k",
        name=name,
        fields=("question",),
        metrics=("accuracy", "accuracy_flexible", "unparsed", "nll"),
        max_length=512,
        new_tokens=256,
        title=title,
        chance=0.0,
        ranked=False,  # two ways of training for one test set
    )


class GSM8K(Suite):
    name, title, version = "gsm8k", "GSM8K", 1
    tasks = {task.name: task for task in (_task("main", "GSM8K"), _task("metamathqa", "MetaMathQA to GSM8K"))}
    protocols = (ZERO_SHOT, PEFT)

    def recipe(self, task: str) -> dict[str, Any]:
        self.info(task)
        if task == "main":
            return {"epochs": 3, "batch_size": 16, "schedule": "cosine", "warmup": 0.03, "evaluations": 3}
        return {
            "lr": 1e-4,
            "weight_decay": 0.1,
            "schedule": "cosine",
            "warmup": 0.1,
            "clip": 1.0,
            "batch_size": 4,
            "max_steps": 5000,
            "evaluations": 20,
            "dtype": "bfloat16",
        }

    def facts(self, task: str, protocol: Mapping[str, Any]) -> TaskInfo:
        info = replace(self.info(task), new_tokens=protocol["new_tokens"])
        return replace(info, max_length=768, total_tokens=800, learn="all") if _is_peft(protocol) else info

    def extract(self, task: str, protocol: Mapping[str, Any], text: str, prompt: str = "") -> dict[str, str]:
        return {"strict": _answers.strict(text), "flexible": _answers.last(text)}

    def sources(self, task: str, protocol: Mapping[str, Any]) -> list[Source]:
        gsm8k = Source(GSM8K_ID, "main", protocol["revision"], ("train", "test"))
        metamathqa = Source(METAMATHQA_ID, "default", protocol["metamathqa_revision"], ("train",))
        return [gsm8k] if task == "main" else [gsm8k, metamathqa]

    def load(self, task: str, protocol: Mapping[str, Any], data_root: Path | None) -> TaskData:
        info = self.info(task)
        hub = HubData(GSM8K_ID, protocol["revision"])
        train, test = (self._gsm8k(hub, split, protocol, data_root) for split in ("train", "test"))
        train, validation = divided(train, _validation_rows(train, protocol))
        source = hub.source(data_root)
        if task == "metamathqa":
            hub = HubData(METAMATHQA_ID, protocol["metamathqa_revision"], config="default")
            train = _metamathqa(hub, info, protocol, validation, data_root)
            source = source if data_root else f"{hub.source(None)}, {source}"
        if _is_peft(protocol):
            train = train.take(np.arange(len(train))[: protocol["max_train"]])
        else:
            train = at_most(train, protocol["max_train"], protocol["split_seed"])
        return TaskData.of(train, validation, at_most(test, protocol["max_test"], 0), source)

    def _gsm8k(self, hub: HubData, split: str, protocol: Mapping[str, Any], data_root: Path | None) -> Split:
        info = self.info("main")
        table = hub.read(info, split, ("question", "answer"), data_root)
        questions, worked = (table.column(column).to_pylist() for column in ("question", "answer"))
        answers = [_answers.canonical(text.rpartition("####")[2]) for text in worked]
        if "" in answers:
            raise AtlasError(
                f"row {answers.index('')} of gsm8k/main/{split} does not end in `#### N`",
                file=hub.source(data_root),
                key="answer",
                mend=f"the file should have the answers of {GSM8K_ID} as they are",
            )
        if not _is_peft(protocol) and not protocol["calculator_marks"]:
            worked = [CALCULATOR_MARK.sub("", text) for text in worked]
        return _split(questions, worked, np.arange(len(worked)), protocol, np.array(answers))


def _is_peft(protocol: Mapping[str, Any]) -> bool:
    return protocol["name"] == PEFT.name


def _split(questions, worked, ids: np.ndarray, protocol: Mapping[str, Any], answers: np.ndarray | None = None) -> Split:
    """The examples as a model reads them; `answers` where there is something to be scored."""
    prompts = [(_prompt(question, protocol),) for question in questions]
    blank = "" if _is_peft(protocol) else " "
    return Split(prompts, np.array([blank + text for text in worked], dtype=object), ids, answers)


def _prompt(question: str, protocol: Mapping[str, Any]) -> str:
    nudge = " Think step by step." if _is_peft(protocol) else ""
    return f"Question: {question}{nudge}\nAnswer:"


def _metamathqa(hub: HubData, info: TaskInfo, protocol, validation: Split, data_root: Path | None) -> Split:
    """The rows of MetaMathQA that the protocol trains on, in the order of the file."""
    table = hub.read(info, "train", ("query", "response", "original_question"), data_root)
    queries, responses, originals = (table.column(column).to_pylist() for column in table.column_names)
    if _is_peft(protocol):
        limit = protocol["max_characters"]
        kept = [row for row, pair in enumerate(zip(queries, responses, strict=True)) if len(" ".join(pair)) <= limit]
    else:
        held_out = {tuple(prompt.split()) for (prompt,) in validation.inputs}
        kept = [row for row, text in enumerate(originals) if tuple(_prompt(text, protocol).split()) not in held_out]
    return _split([queries[row] for row in kept], [responses[row] for row in kept], np.array(kept), protocol)


def _validation_rows(train: Split, protocol: Mapping[str, Any]) -> np.ndarray:
    if _is_peft(protocol):
        rows = np.arange(len(train))
        np.random.RandomState(0).shuffle(rows)
        return rows[:PEFT_VALIDATION]
    return simple_draw(train, protocol["validation"], protocol["split_seed"])


suite = GSM8K()
