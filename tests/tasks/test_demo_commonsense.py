"""The demo's items are fair: balanced, never repeated, about facts that train lacks, and not to be had from words."""

import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from tasks._commonsense import items
from tasks._demo_commonsense.knowledge import RELATIONS
from tasks.demo_commonsense import CHOICES, FRAMES, suite
from workflow.errors import AtlasError

# a change here is a change of the data: bump the protocol's version
FINGERPRINTS = {
    "choice": "4673c515c5f73a9c8543ae1ed1e26b2f4dd46adbc71484658373acb39d3c5706",
    "truth": "55c1379accaced7e44307b3c9a3c7f1a66360a41967bc20fea7bf1010e3d9774",
}
MANY = {"train": 1200, "validation": 2, "test": 500}


@pytest.fixture(scope="module", params=list(suite.tasks))
def task(request):
    return request.param


@pytest.fixture(scope="module")
def data(task):
    return suite.load(task, suite.protocol(task, {}), None)


@pytest.fixture(scope="module")
def many(task):
    return suite.load(task, suite.protocol(task, MANY), None)


def splits(data):
    return data.train, data.validation, data.test


def prompts(split):
    return [text for (text,) in split.inputs]


def fact(prompt):
    """(relation, thing) that a prompt asks for."""
    found = []
    for number, relation in enumerate(RELATIONS):
        for form in (relation.question, relation.statement):
            pattern = re.escape(form).replace(re.escape("{}"), "(an? [a-z ]+?)")
            if match := re.search(rf"{pattern}(?: |\n|$)", prompt):
                found.append((number, match[1]))
    (only,) = found
    return only


def test_sizes_are_those_of_the_protocol(data):
    assert [len(split) for split in splits(data)] == [800, 40, 100]


def test_answers_are_balanced(task, data):
    for split in splits(data):
        counts = Counter(split.answers.tolist())
        assert set(counts) == set(CHOICES[task])
        assert max(counts.values()) - min(counts.values()) <= 1


def test_no_prompt_comes_twice_in_or_between_splits(data):
    made = [prompt for split in splits(data) for prompt in prompts(split)]
    assert len(set(made)) == len(made)


def test_test_asks_for_facts_that_train_and_validation_lack(many):
    known = {fact(prompt) for prompt in prompts(many.train) + prompts(many.validation)}
    assert not known & {fact(prompt) for prompt in prompts(many.test)}


def test_the_right_choice_is_the_label(task, data):
    for split in splits(data):
        for label, choices, answer in zip(split.labels, split.choices, split.answers, strict=True):
            assert choices == tuple(f" the correct answer is {word}" for word in CHOICES[task])
            assert label == f" the correct answer is {answer}"


def test_right_answers_are_right():
    data = suite.load("choice", suite.protocol("choice", {}), None)
    for prompt, answer in zip(prompts(data.test), data.test.answers, strict=True):
        number, thing = fact(prompt)
        options = items.options(prompt)
        assert len(set(options.values())) == 3
        right = [o for o, value in options.items() if thing.split(" ", 1)[1] in RELATIONS[number].things[value]]
        assert right == [answer]


def test_statements_are_true_or_false_as_labelled():
    data = suite.load("truth", suite.protocol("truth", {}), None)
    for prompt, answer in zip(prompts(data.test), data.test.answers, strict=True):
        number, thing = fact(prompt)
        relation = RELATIONS[number]
        said = [value for value in relation.things if f"{relation.statement.format(thing)} {value}" in prompt]
        assert (thing.split(" ", 1)[1] in relation.things[max(said, key=len)]) == (answer == "true")


def test_a_thing_has_one_value_in_a_relation():
    for relation in RELATIONS:
        things = [thing for named in relation.things.values() for thing in named]
        assert len(set(things)) == len(things)


def test_values_have_things_for_both_sides():
    for relation in RELATIONS:
        for value in relation.things:
            assert relation.of(value, test=True)
            assert len(relation.of(value, test=False)) >= 3


def test_every_frame_is_used():
    data = suite.load("truth", suite.protocol("truth", {}), None)
    starts = [frame.partition("{}")[0] for frame in FRAMES]
    assert all(any(prompt.startswith(start) for prompt in prompts(data.train)) for start in starts)


def test_words_do_not_give_the_answer_away(task, many):
    model = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=2000))
    model.fit(prompts(many.train), many.train.answers)
    assert model.score(prompts(many.test), many.test.answers) <= 1 / len(CHOICES[task]) + 0.08


def test_options_do_not_give_the_answer_away():
    """Each option is right about as often as one in three of the times that it is offered."""
    data = suite.load("choice", suite.protocol("choice", MANY), None)
    offered, right = Counter(), Counter()
    for prompt, answer in zip(prompts(data.train), data.train.answers, strict=True):
        options = items.options(prompt)
        offered.update(options.values())
        right[options[answer]] += 1
    shares = np.array([right[value] / offered[value] for value in offered if offered[value] >= 60])
    assert len(shares) > 20
    assert abs(shares - 1 / 3).max() < 0.2


def test_answers_are_extracted_as_in_the_suite(task, data):
    protocol = suite.protocol(task)
    for label, answer in zip(data.test.labels, data.test.answers, strict=True):
        assert suite.extract(task, protocol, label) == {"strict": answer, "flexible": answer}
    assert suite.extract(task, protocol, "nothing") == {"strict": "", "flexible": ""}


def test_other_seeds_give_other_data(task, data):
    assert suite.load(task, suite.protocol(task, {"data_seed": 1}), None).fingerprint != data.fingerprint


def test_data_is_what_it_was(task, data):
    assert data.fingerprint == FINGERPRINTS[task]


def test_data_does_not_depend_on_the_hash_seed_of_the_process(task, data):
    code = (
        "from tasks.demo_commonsense import suite; "
        f"print(suite.load({task!r}, suite.protocol({task!r}), None).fingerprint)"
    )
    run = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": "1"}, capture_output=True, text=True)
    assert run.stdout.strip() == data.fingerprint


def test_more_items_than_the_grammar_has_are_refused():
    with pytest.raises(AtlasError, match="does not fit option 'train'"):
        suite.protocol("truth", {"train": 10**6})
