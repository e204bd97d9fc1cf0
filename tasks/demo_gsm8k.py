"""Demo suite: word problems in arithmetic with worked answers, made by code from a seed. Not a benchmark of anything.

    Question: Mia has 3 bags of 4 coins. She finds 5 more. How many coins does Mia have now?
    Answer: 3*4=12, 12+5=17 #### 17

It stands in for GSM8K, so that a study of a small language model runs offline; numbers on it say only that the harness
works and that methods differ. One to three steps with numbers up to 60. No computation of a test problem is the whole
computation of another split's problem.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tasks import _answers
from tasks._draw import Draw, generated, held_out
from tasks.base import Option, Protocol, Split, Suite, TaskData, generation_task

SMALLEST, LARGEST = 2, 40  # answers
LARGEST_ON_THE_WAY = 60
COMMONEST = 0.06  # share of a split that has the same answer, at most
STEPS = (1, 1, 2, 2, 3)  # of the problems of a split, in turn

NAMES = {
    "she": ("Ann", "Carla", "Eva", "Gina", "Ida", "Kim", "Mia", "Olga"),
    "he": ("Ben", "Dan", "Finn", "Hugo", "Jack", "Leo", "Noah", "Paul"),
}
THINGS = ("apples", "coins", "books", "cards", "shells", "stamps", "marbles", "pens", "cookies", "stickers", "eggs")
HOLDERS = ("bags", "boxes", "baskets", "piles")
GAINS = ("{She} buys {n} more.", "{She} finds {n} more.", "{She} gets {n} from {Other}.", "{Other} brings {her} {n}.")
LOSSES = ("{She} loses {n}.", "{She} sells {n}.", "{She} gives {n} to {Other}.", "{Other} takes {n} of them.")


class DemoGSM8K(Suite):
    name, title, version, demo = "demo_gsm8k", "Demo word problems", 1, True
    tasks = {
        "arithmetic": generation_task(
            suite="demo_gsm8k",
            name="arithmetic",
            fields=("question",),
            metrics=("accuracy", "accuracy_flexible", "unparsed", "nll"),
            max_length=96,
            new_tokens=36,
            title="Arithmetic (demo)",
            chance=0.0,
            demo=True,
        )
    }
    protocols = (
        Protocol(
            name="generated",
            version=1,
            report="last",
            options={
                "data_seed": Option(0, int, minimum=0),
                "train": Option(1000, int, minimum=1, maximum=10000),
                "validation": Option(50, int, minimum=1, maximum=1000),
                "test": Option(60, int, minimum=1, maximum=1000),
            },
            text="""\
Word problems made from `data_seed`, of one, two and three steps in shares of two, two and one in five. No question
comes twice, no number of a question is its answer, and no answer has more than six percent of a split (of a split of
17 rows or more). Problems whose whole computation (as `3*4=12, 12+5=17`) falls into the quarter that a hash picks are
in test, the others in train and validation. The prompt is as in GSM8K's zero-shot protocol, the completion the
computation and `#### N`; the loss is on the completion. Generation is greedy, 36 new tokens at most; `accuracy` wants
the number marked, `accuracy_flexible` takes the last one. The table shows the last checkpoint.
""",
        ),
    )

    def recipe(self, task: str) -> dict[str, Any]:
        self.info(task)
        return {"batch_size": 8, "epochs": 1}

    def extract(self, task: str, protocol: Mapping[str, Any], text: str, prompt: str = "") -> dict[str, str]:
        return {"strict": _answers.strict(text), "flexible": _answers.last(text)}

    def load(self, task: str, protocol: Mapping[str, Any], data_root: Path | None) -> TaskData:
        """The data of a task; `data_root` is not looked at."""
        self.info(task)
        return generated(_generate, protocol)


@dataclass
class Problem:
    """A story so far: its sentences, its steps such as `3+4=7`, and the number that it has come to."""

    sentences: list[str]
    steps: list[str]
    value: int

    def step(self, sentence: str, operator: str, number: int, result: int) -> None:
        self.sentences.append(sentence)
        self.steps.append(f"{self.value}{operator}{number}={result}")
        self.value = result


def _generate(split: str, size: int, seed: int, seen: set[str]) -> Split:
    """A split of problems that are not in `seen`, which grows."""
    draw = Draw(seed, "arithmetic", split)
    rows: list[tuple[str, str, str]] = []
    answers: Counter[str] = Counter()
    most = max(1, int(COMMONEST * size))
    while len(rows) < size:
        problem = example(draw, STEPS[len(rows) % len(STEPS)])
        question, computation, answer = " ".join(problem.sentences), ", ".join(problem.steps), str(problem.value)
        fair = answer not in _numbers(question) and answers[answer] < most
        if fair and question not in seen and held_out(computation) == (split == "test"):
            seen.add(question)
            answers[answer] += 1
            rows.append((f"Question: {question}\nAnswer:", f" {computation} #### {answer}", answer))
    prompts, completions, finals = zip(*rows, strict=True)
    learned = np.array(completions, dtype=object)
    return Split([(prompt,) for prompt in prompts], learned, np.arange(size), np.array(finals))


def _numbers(question: str) -> list[str]:
    return [word.strip(".?") for word in question.split() if word[0].isdigit()]


def example(draw: Draw, steps: int) -> Problem:
    """A problem of so many steps whose answer lies between SMALLEST and LARGEST."""
    while True:
        problem = _story(draw, steps)
        if SMALLEST <= problem.value <= LARGEST:
            return problem


def _story(draw: Draw, steps: int) -> Problem:
    """Somebody has things, gets and loses some; the last step may be a comparison, a sum or a division instead."""
    she = draw.one(tuple(NAMES))
    owner, other = draw.two(NAMES[she])
    words = {"She": she.capitalize(), "her": {"she": "her", "he": "him"}[she], "Owner": owner, "Other": other}
    words["things"] = things = draw.one(THINGS)
    if draw.chance(0.3):
        holders, each = _between(draw, 2, 6), _between(draw, 2, 9)
        problem = Problem([], [], holders)
        problem.step(f"{owner} has {holders} {draw.one(HOLDERS)} of {each} {things}.", "*", each, holders * each)
    else:
        start = _between(draw, 3, 30)
        problem = Problem([f"{owner} has {start} {things}."], [], start)
    while len(problem.steps) < steps - 1:
        _change(draw, problem, words)
    question = f"How many {things} does {owner} have now?"
    if len(problem.steps) < steps:
        question = draw.one((_changed, _changed, _compared, _together, _shared))(draw, problem, words) or question
    problem.sentences.append(question)
    return problem


def _change(draw: Draw, problem: Problem, words: Mapping[str, str]) -> None:
    """Some more or some fewer."""
    if draw.chance(0.5) and problem.value > 3:
        number = _between(draw, 2, min(problem.value - 1, 20))
        problem.step(draw.one(LOSSES).format(n=number, **words), "-", number, problem.value - number)
    else:
        number = _between(draw, 2, max(2, min(20, LARGEST_ON_THE_WAY - problem.value)))
        problem.step(draw.one(GAINS).format(n=number, **words), "+", number, problem.value + number)


def _changed(draw: Draw, problem: Problem, words: Mapping[str, str]) -> str:
    _change(draw, problem, words)
    return ""


def _compared(draw: Draw, problem: Problem, words: Mapping[str, str]) -> str:
    """Another one has more or fewer."""
    fewer = draw.chance(0.5) and problem.value > 3
    number = _between(draw, 2, min(problem.value - 1, 12) if fewer else 12)
    sentence = f"{words['Other']} has {number} {'fewer' if fewer else 'more'} than {words['Owner']}."
    problem.step(sentence, "-" if fewer else "+", number, problem.value + (-number if fewer else number))
    return f"How many {words['things']} does {words['Other']} have?"


def _together(draw: Draw, problem: Problem, words: Mapping[str, str]) -> str:
    """Another one has some, too."""
    number = _between(draw, 2, 20)
    problem.step(f"{words['Other']} has {number} {words['things']}.", "+", number, problem.value + number)
    return f"How many {words['things']} do they have together?"


def _shared(draw: Draw, problem: Problem, words: Mapping[str, str]) -> str:
    """Packed into equal parts, where the number can be divided."""
    parts = [number for number in range(2, 10) if problem.value % number == 0 and problem.value > number]
    if not parts:
        return _changed(draw, problem, words)
    number, holders = draw.one(parts), draw.one(HOLDERS)
    sentence = f"{words['She']} puts them into {number} {holders}, equally many in each."
    problem.step(sentence, "/", number, problem.value // number)
    return f"How many {words['things']} are in each of the {holders}?"


def _between(draw: Draw, least: int, most: int) -> int:
    return draw.one(range(least, most + 1))


suite = DemoGSM8K()
