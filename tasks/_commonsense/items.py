"""A multiple-choice item as text: the answers that its instruction allows, and the one that a response gives.

An instruction ends with `Answer format: answer1/answer2/...`, and names the options before that as `Answer1: ...`
(or Solution, Ending, Option; items to be answered with true or false have no options of their own).
"""

from __future__ import annotations

import re

TRUTH = ("true", "false")
SOLUTIONS = ("solution1", "solution2")
ANSWERS = ("answer1", "answer2", "answer3", "answer4", "answer5")
ENDINGS = ("ending1", "ending2", "ending3", "ending4")
BLANKS = ("option1", "option2")
_FORMAT = re.compile(r"Answer format: (\S+)")
_OPTION = re.compile(r"(?:^|\s)(Answer|Solution|Ending|Option)([1-5]): ")


def sentence(answer: str) -> str:
    """What is learned and looked for after a prompt."""
    return f"the correct answer is {answer}"


def allowed(text: str) -> tuple[str, ...]:
    """The answers that an instruction, or a prompt around it, asks for; none where it has no answer format."""
    found = _FORMAT.findall(text)
    return tuple(found[-1].split("/")) if found else ()


def options(text: str) -> dict[str, str]:
    """Answer -> the text of the option in lower case, from an instruction or a prompt around it."""
    before, _, _ = text.rpartition("Answer format:")
    _, *pieces = _OPTION.split(before)
    words, numbers, texts = pieces[::3], pieces[1::3], pieces[2::3]
    named = zip(words, numbers, texts, strict=True)
    return {f"{word.lower()}{number}": " ".join(text.lower().split()) for word, number, text in named}


def extract(response: str, tokens: tuple[str, ...], prompt: str = "") -> dict[str, str]:
    """The answers in a response, "" where there is none.

    strict: the first of `tokens` anywhere, in lower case as written. flexible: the same in the response lower-cased;
    if there is none, the option of the prompt whose text comes first (of two that begin alike, the longer).
    """
    lower = " ".join(response.lower().split())
    return {"strict": _first(response, tokens), "flexible": _first(lower, tokens) or _option(lower, options(prompt))}


def _first(text: str, tokens: tuple[str, ...]) -> str:
    found = re.search("|".join(tokens), text)
    return found[0] if found else ""


def _option(text: str, texts: dict[str, str]) -> str:
    answers = {option.rstrip(" ."): answer for answer, option in texts.items()}
    written = "|".join(map(re.escape, sorted(filter(None, answers), key=len, reverse=True)))
    found = re.search(rf"(?<!\w)(?:{written})(?!\w)", text) if written else None
    return answers[found[0]] if found else ""
