"""Numbers in generated text: where an answer is looked for, and the one form in which answers are compared.

`strict` wants the answer marked, as `#### 18` or `The answer is 18`; `last` takes whatever number comes last.
"""

from __future__ import annotations

import re
from fractions import Fraction

PLACES = 6  # decimals to which answers are compared
LONGEST = 60  # characters of a number

# A number: a sign that is no minus between two terms, before or after a currency sign; digits, in groups of three
# between commas or without any; decimals; and a second number under a slash.
_NUMBER = re.compile(
    r"""
    (?P<sign> (?<![\w.)\]]) [-−])?
    [$€£]? (?P<minus> (?<=[$€£]) [-−])?
    (?P<value> (?: [0-9]{1,3} (?: ,[0-9]{3})+ (?! [0-9]) | [0-9]+) (?: \.[0-9]+)? | \.[0-9]+)
    (?: \s?/\s? (?P<under> [0-9]+ (?: \.[0-9]+)?))?
    """,
    re.VERBOSE,
)
_MARKS = (re.compile(r"####:?\s*"), re.compile(r"\bthe (?:final )?answer is\b:?\s*", re.IGNORECASE))


def strict(text: str, places: int = PLACES) -> str:
    """The number that directly follows the first `####` which a number follows; else the same of `The answer is` (or
    `The final answer is`); else "".

    Only a colon and white space may stand between mark and number. What comes after the number (a unit, another
    question) does not matter. `####` goes first because a worked answer may say `the answer is` on the way.
    """
    for kind in _MARKS:
        for mark in kind.finditer(text):
            if number := _NUMBER.match(text, mark.end()):
                return _canonical(number, places)
    return ""


def last(text: str, places: int = PLACES) -> str:
    """The last number of a text, or ""."""
    numbers = list(_NUMBER.finditer(text))
    return _canonical(numbers[-1], places) if numbers else ""


def canonical(text: str, places: int = PLACES) -> str:
    """A text that is one number (with a currency or percent sign, if need be), or "" if it is anything else.

    Equal numbers give equal strings: no separators, no zeros at the end of decimals, fractions evaluated and rounded
    to `places` decimals, `0` for minus zero. Percent signs are dropped: 50% is 50.
    """
    number = _NUMBER.fullmatch(text.strip().removesuffix("%").rstrip())
    return _canonical(number, places) if number else ""


def _canonical(number: re.Match, places: int) -> str:
    """The form in which answers are compared; "" for an endless row of digits, which is no answer."""
    if len(number[0]) > LONGEST:
        return ""
    value = Fraction(number["value"].replace(",", ""))
    if number["under"] and Fraction(number["under"]):
        value /= Fraction(number["under"])
    units = round(value * 10**places)
    digits = str(units).rjust(places + 1, "0")
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :].rstrip("0")
    sign = "-" if units and (number["sign"] or number["minus"]) else ""
    return sign + whole + ("." + decimals if decimals else "")
