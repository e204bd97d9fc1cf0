"""Numbers are found where the two rules say, and equal numbers are equal strings."""

import pytest

from tasks._answers import canonical, last, strict

# text, what the strict rule finds, what the last number is
CASES = [
    ("#### " + "9" * 5000, "", ""),
    ("#### 18", "18", "18"),
    ("####18", "18", "18"),
    ("#### 1,234", "1234", "1234"),
    ("#### 1,234,567.50", "1234567.5", "1234567.5"),
    ("The answer is 15", "15", "15"),
    ("The answer is: 15", "15", "15"),
    ("The answer is 15.", "15", "15"),
    ("the final answer is: -3", "-3", "-3"),
    ("She sold 48/2 = 24 clips.\nThe answer is: 24", "24", "24"),
    # signs, units and currency
    ("#### $18.", "18", "18"),
    ("#### -$18", "-18", "-18"),
    ("#### $-18", "-18", "-18"),
    ("#### 18$", "18", "18"),
    ("#### 18 dollars", "18", "18"),
    ("The answer is $1,000.00 in all.", "1000", "1000"),
    ("#### 15%", "15", "15"),
    ("#### -5", "-5", "-5"),
    ("#### −5", "-5", "-5"),
    ("#### - 5", "", "5"),
    ("16-3", "", "3"),
    ("(4+5)-3", "", "3"),
    ("16 - 3", "", "3"),
    ("it fell to -3", "", "-3"),
    # decimals and fractions
    ("#### 18.0", "18", "18"),
    ("#### 0.50", "0.5", "0.5"),
    ("#### .5", "0.5", "0.5"),
    ("#### 1/2", "0.5", "0.5"),
    ("#### 1 / 3", "0.333333", "0.333333"),
    ("#### 6/2", "3", "3"),
    ("#### 7/0", "7", "7"),
    ("#### -0.0", "0", "0"),
    ("#### 0018", "18", "18"),
    # more text, and more numbers, after the answer
    ("#### 18, over 2 days", "18", "2"),
    ("#### 18\nQuestion: Ann has 5 nuts.\nAnswer: 5\n#### 5", "18", "5"),
    ("The answer is 18...", "18", "18"),
    ("The answer is 18. Really, 18!", "18", "18"),
    ("#### 18 #### 20", "18", "20"),
    ("The answer is 7 in March.\n#### 8", "8", "8"),
    ("The answer is 7. The answer is 8.", "7", "8"),
    # a mark that no number follows is passed over
    ("The answer is not 7.\n#### 8", "8", "8"),
    ("####\n9", "9", "9"),
    ("The answer is twelve, or 12", "", "12"),
    ("The answer is: (C)", "", ""),
    ("So 4 + 5 = 9.", "", "9"),
    ("lists such as 1,2,3", "", "3"),
    ("1,2345", "", "2345"),
    ("answered at 3:30", "", "30"),
    # nothing to be found
    ("", "", ""),
    ("...", "", ""),
    ("####", "", ""),
    ("#### ...", "", ""),
    ("I do not know.", "", ""),
    ("The answer is", "", ""),
]


@pytest.mark.parametrize(("text", "by_mark", "by_place"), CASES)
def test_cases(text, by_mark, by_place):
    assert (strict(text), last(text)) == (by_mark, by_place)


@pytest.mark.parametrize(
    "same",
    [
        ("18", "18.0", "18.00", "$18", " 18 ", "018", "36/2", "18%"),
        ("1000", "1,000", "1000.00", "$1,000"),
        ("0.5", ".5", "1/2", "0.500", "2/4"),
        ("-3", "-3.0", "-6/2", "−3", "-$3"),
        ("0", "-0", "0.0", "0/7"),
    ],
    ids=lambda same: same[0],
)
def test_equal_numbers_have_one_form(same):
    assert {canonical(text) for text in same} == {same[0]}


@pytest.mark.parametrize("text", ["", "C", "18 dollars", "3 4", "1,23", "four", "1/2/3", "-", "."])
def test_what_is_not_one_number_has_no_form(text):
    assert canonical(text) == ""


def test_places_round_to_the_nearest():
    assert [canonical(text, places=3) for text in ("1.8333333333333335", "1.8334", "2.9999", "0.0004")] == [
        "1.833",
        "1.833",
        "3",
        "0",
    ]
