"""Demo suite: multiple choice made by code from a seed, so that a study runs offline. Not a benchmark of anything.

`choice` stands in for the tasks of `commonsense` that are answered by number, `truth` for BoolQ; numbers on them say
only that the harness works and that methods differ. Test items ask for facts that train does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tasks._commonsense import items
from tasks._demo_commonsense.knowledge import RELATIONS
from tasks._draw import Draw, generated
from tasks.base import Option, Protocol, Split, Suite, TaskData, TaskInfo, generation_task

CHOICES = {"choice": items.ANSWERS[:3], "truth": items.TRUTH}
METRICS = ("accuracy", "accuracy_flexible", "unparsed", "accuracy_likelihood", "nll")
FRAMES = (
    "Is it true that {}?",
    "True or false: {}.",
    "Would you agree that {}?",
    "Is it right to say that {}?",
    "Somebody says that {}. Is that so?",
    "A book says that {}. Is the book right?",
)


def _task(name: str, title: str) -> TaskInfo:
    return generation_task(
        suite="demo_commonsense",
        name=name,
        fields=("prompt",),
        metrics=METRICS,
        max_length=96,
        title=title,
        chance=1 / len(CHOICES[name]),
        demo=True,
        new_tokens=8,
    )


class DemoCommonsense(Suite):
    name, title, version, demo = "demo_commonsense", "Demo multiple choice", 1, True
    tasks = {task.name: task for task in (_task("choice", "Choice (demo)"), _task("truth", "Truth (demo)"))}
    protocols = (
        Protocol(
            name="generated",
            version=1,
            options={
                "data_seed": Option(0, int, minimum=0),
                "train": Option(800, int, minimum=2, maximum=1200),
                "validation": Option(40, int, minimum=2, maximum=200),
                "test": Option(100, int, minimum=2, maximum=500),
            },
            report="last",
            text=(
                "Items about uses, places, colours and the like, made from `data_seed`. No fact of the test occurs in "
                "train or validation; every position is right equally often, and every option is right as often as "
                "its rivals. The model is to write `the correct answer is X`; greedy, 8 new tokens. Scores are those "
                "of the commonsense suite: strict, flexible, unparsed, and by likelihood. The number of the tables is "
                "that of the last step.\n"
            ),
        ),
    )

    def extract(self, task: str, protocol: Mapping[str, Any], text: str, prompt: str = "") -> dict[str, str]:
        """`strict` and `flexible` answers as in `commonsense`; option texts are looked for if the prompt is given."""
        return items.extract(text, CHOICES[task], prompt)

    def load(self, task: str, protocol: Mapping[str, Any], data_root: Path | None) -> TaskData:
        """The data of a task; `data_root` is not looked at."""
        self.info(task)
        return generated(partial(_generate, task), protocol)


def _generate(task: str, split: str, size: int, seed: int, seen: set[str]) -> Split:
    """A split with every answer in turn, then shuffled. No prompt that is in `seen` comes again; `seen` grows."""
    answers, example = CHOICES[task], _EXAMPLES[task]
    draw = Draw(seed, task, split)
    rows: list[tuple[str, str]] = []
    while len(rows) < size:
        answer = answers[len(rows) % len(answers)]
        question = example(draw, answer, split == "test")
        prompt = f"{question}\nAnswer format: {'/'.join(answers)}\nResponse:"
        if prompt not in seen:
            seen.add(prompt)
            rows.append((prompt, answer))
    rows = draw.shuffled(rows)
    return Split(
        inputs=[(prompt,) for prompt, _ in rows],
        labels=np.array([_completion(answer) for _, answer in rows], object),
        ids=np.arange(size),
        answers=np.array([answer for _, answer in rows]),
        choices=[tuple(map(_completion, answers))] * size,
    )


def _completion(answer: str) -> str:
    return f" {items.sentence(answer)}"


def _choice(draw: Draw, answer: str, test: bool) -> str:
    """A question with three values of one relation as options, the right one at the place that `answer` names."""
    relation = draw.one(RELATIONS)
    right, *others = draw.shuffled(relation.things)
    thing = draw.one(relation.of(right, test))
    place = CHOICES["choice"].index(answer)
    texts = [*others[:place], right, *others[place : len(CHOICES["choice"]) - 1]]
    question = relation.question.format(thing) if draw.chance(0.5) else f"Complete: {relation.statement.format(thing)}"
    options = " ".join(f"Answer{number}: {text}" for number, text in enumerate(texts, 1))
    return f"{question}\n{options}"


def _truth(draw: Draw, answer: str, test: bool) -> str:
    """A statement that gives a thing its own value, or another one of the same relation."""
    relation = draw.one(RELATIONS)
    said, other, *_ = draw.shuffled(relation.things)
    thing = draw.one(relation.of(said if answer == "true" else other, test))
    return draw.one(FRAMES).format(f"{relation.statement.format(thing)} {said}")


_EXAMPLES = {"choice": _choice, "truth": _truth}
suite = DemoCommonsense()
