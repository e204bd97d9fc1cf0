"""The demo's word problems are right, never repeated, and not to be had without reckoning."""

import re
import subprocess
import sys
from collections import Counter

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from tasks._draw import Draw
from tasks.demo_gsm8k import LARGEST_ON_THE_WAY, SMALLEST, example, suite

# a change here is a change of the data: bump the protocol's version
FINGERPRINT = "4fc5b3bf24d9a6f61955c95d767c5ada151b7b73c0b1ac5cd9905b4741907a06"
PROTOCOL = suite.protocol("arithmetic")


@pytest.fixture(scope="module")
def data():
    return suite.load("arithmetic", PROTOCOL, None)


def splits(data):
    return data.train, data.validation, data.test


def questions(split):
    return [prompt for (prompt,) in split.inputs]


def numbers(question):
    return [int(number) for number in re.findall("[0-9]+", question)]


def computation(completion):
    return completion.partition(" ####")[0].strip()


def test_sizes_are_those_of_the_protocol(data):
    assert [len(split) for split in splits(data)] == [1000, 50, 60]


def test_prompts_and_completions_have_the_form_of_gsm8k(data):
    for split in splits(data):
        assert all(re.fullmatch(r"Question: [A-Z].*\?\nAnswer:", prompt) for prompt in questions(split))
        assert all(re.fullmatch(r" ([0-9*/+-]+=[0-9]+(, )?){1,3} #### [0-9]+", text) for text in split.labels)


def test_every_step_is_right_and_leads_on_to_the_answer(data):
    for split in splits(data):
        for text, answer in zip(split.labels, split.answers, strict=True):
            value = None
            for step in computation(text).split(", "):
                left, operator, right, result = re.fullmatch(r"([0-9]+)([*/+-])([0-9]+)=([0-9]+)", step).groups()
                assert value is None or left == value
                assert eval(f"{left}{operator}{right}") == int(result)
                assert 0 < int(result) <= LARGEST_ON_THE_WAY
                value = result
            assert value == answer and int(answer) >= SMALLEST


def test_every_number_of_the_question_is_used(data):
    for split in splits(data):
        for question, text in zip(questions(split), split.labels, strict=True):
            first, *rest = (numbers(step) for step in computation(text).split(", "))
            used = Counter(first[:2]) + Counter(step[1] for step in rest)
            assert used == Counter(numbers(question))


def test_extraction_finds_the_answer(data):
    for split in splits(data):
        found = [suite.extract("arithmetic", PROTOCOL, text) for text in split.labels]
        assert all(
            rules == {"strict": answer, "flexible": answer} for rules, answer in zip(found, split.answers, strict=True)
        )


def test_no_question_comes_twice_in_or_between_splits(data):
    texts = [text for split in splits(data) for text in questions(split)]
    assert len(set(texts)) == len(texts)


def test_test_has_computations_that_no_other_split_has(data):
    train, validation, test = ({computation(text) for text in split.labels} for split in splits(data))
    assert not test & (train | validation)


def test_no_answer_is_common(data):
    for split in splits(data):
        assert max(Counter(split.answers.tolist()).values()) / len(split) <= 0.06
    assert len(set(data.train.answers)) >= 30


def test_problems_have_one_to_three_steps(data):
    for split in splits(data):
        steps = Counter(text.count("=") for text in split.labels)
        assert {number: count / len(split) for number, count in steps.items()} == {1: 0.4, 2: 0.4, 3: 0.2}


@pytest.mark.parametrize(
    "guess",
    [
        lambda given: given[-1],
        lambda given: given[0],
        max,
        sum,
        lambda given: abs(given[0] - given[1]),
        lambda given: given[0] * given[1],
        lambda given: given[0] - sum(given[1:]),
    ],
    ids=["last", "first", "largest", "sum", "difference", "product", "all taken away"],
)
def test_no_fixed_rule_on_the_numbers_solves_it(data, guess):
    for split in (data.train, data.test):
        hits = [
            guess(numbers(question)) == int(answer)
            for question, answer in zip(questions(split), split.answers, strict=True)
        ]
        assert sum(hits) / len(split) <= 0.3


def test_single_words_and_numbers_do_not_give_the_answer_away(data):
    model = make_pipeline(CountVectorizer(token_pattern=r"\w+"), LogisticRegression(max_iter=300))
    model.fit(questions(data.train), data.train.answers)
    assert model.score(questions(data.test), data.test.answers) <= 0.15


def test_questions_are_short(data):
    assert max(len(text.split()) for split in splits(data) for text in questions(split)) <= 40


def test_stories_never_run_below_two_things():
    draw = Draw("stories")
    assert min(number for _ in range(3000) for number in numbers(" ".join(example(draw, 3).steps))) >= 1


def test_other_seeds_give_other_data(data):
    assert (
        suite.load("arithmetic", suite.protocol("arithmetic", {"data_seed": 1}), None).fingerprint != data.fingerprint
    )


def test_more_rows_can_be_had():
    protocol = suite.protocol("arithmetic", {"train": 10000, "validation": 1000, "test": 1000})
    assert [len(split) for split in splits(suite.load("arithmetic", protocol, None))] == [10000, 1000, 1000]


def test_data_is_what_it_was(data):
    assert data.fingerprint == FINGERPRINT


def test_data_does_not_depend_on_the_hash_seed_of_the_process(data):
    code = (
        "from tasks.demo_gsm8k import suite;"
        "print(suite.load('arithmetic', suite.protocol('arithmetic'), None).fingerprint)"
    )
    for seed in ("1", "2"):
        run = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert run.stdout.strip() == data.fingerprint
