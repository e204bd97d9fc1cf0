"""The demo sentences are fair: balanced, never repeated, never contradictory, not to be had from single words."""

import subprocess
import sys

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from tasks._demo_glue import acceptability, entailment
from tasks._draw import Draw
from tasks.demo_glue import GENERATORS, suite
from workflow.errors import AtlasError

# a change here is a change of the data: bump the protocol's version
FINGERPRINTS = {
    "acceptability": "2b7a266e624b04d0a1c771a2d621fbdc49612b13bccc277a88509facafa3556e",
    "entailment": "9b09e05430283172328839952e74242f1e066242e267384182fabf3a176938cc",
}


@pytest.fixture(scope="module", params=list(suite.tasks))
def task(request):
    return request.param


@pytest.fixture(scope="module")
def data(task):
    return suite.load(task, suite.protocol(task, {}), None)


def splits(data):
    return data.train, data.validation, data.test


def test_sizes_are_those_of_the_protocol(data):
    assert [len(split) for split in splits(data)] == [2000, 300, 600]


def test_labels_are_balanced(data):
    for split in splits(data):
        assert 0.45 <= split.labels.mean() <= 0.55


def test_no_input_comes_twice_in_or_between_splits(data):
    inputs = [tuple(text.lower() for text in texts) for split in splits(data) for texts in split.inputs]
    assert len(set(inputs)) == len(inputs)


def test_no_input_could_have_the_other_label(task):
    example, _ = GENERATORS[task]
    made = {
        positive: {example(Draw("conflicts", positive, number), positive, False) for number in range(4000)}
        for positive in (True, False)
    }
    assert not made[True] & made[False]


def test_sentences_are_short(data):
    for split in splits(data):
        assert max(sum(len(text.split()) for text in texts) for texts in split.inputs) <= 30


def test_single_words_do_not_give_the_label_away(data):
    train, test = ([" ".join(texts) for texts in split.inputs] for split in (data.train, data.test))
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=2000)).fit(train, data.train.labels)
    assert model.score(test, data.test.labels) <= 0.65


def test_a_hypothesis_alone_does_not_give_the_label_away():
    data = suite.load("entailment", suite.protocol("entailment", {}), None)
    train, test = ([hypothesis for _, hypothesis in split.inputs] for split in (data.train, data.test))
    model = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=2000)).fit(train, data.train.labels)
    assert model.score(test, data.test.labels) <= 0.65


def test_other_seeds_give_other_data(task, data):
    other = suite.load(task, suite.protocol(task, {"data_seed": 1}), None)
    assert other.fingerprint != data.fingerprint


def test_data_is_what_it_was(task, data):
    assert data.fingerprint == FINGERPRINTS[task]


def test_data_does_not_depend_on_the_hash_seed_of_the_process(task, data):
    code = f"from tasks.demo_glue import suite; print(suite.load({task!r}, suite.protocol({task!r}), None).fingerprint)"
    for seed in ("1", "2"):
        run = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert run.stdout.strip() == data.fingerprint


def test_more_examples_than_the_grammar_has_are_refused():
    with pytest.raises(AtlasError, match="does not fit option 'train'"):
        suite.protocol("entailment", {"train": 10**9})


def test_acceptable_sentences_agree_and_have_their_determiners():
    sentences = [acceptability.example(Draw("good", number), True, False)[0] for number in range(2000)]
    words = [sentence.lower().rstrip(".").split() for sentence in sentences]
    for before, after in ((a, b) for sentence in words for a, b in zip(sentence, sentence[1:], strict=False)):
        assert before not in ("he", "she") or after not in ("are", "were", "have")
        assert before not in ("they", "we") or after not in ("is", "was", "has")
        assert before != "a" or after[0] not in "aeiou"
        assert before != "an" or after[0] in "aeiou"


@pytest.mark.parametrize("error", acceptability.ERRORS, ids=lambda error: error.__name__)
def test_every_error_changes_the_sentence(error):
    changed = 0
    for number in range(300):
        draw = Draw("errors", number)
        clause = acceptability._clause(draw)
        spoilt = error(draw, clause)
        if spoilt is not None:
            changed += 1
            assert [word for word in spoilt if word] != [word for word in clause.words if word]
    assert changed > 5


@pytest.mark.parametrize("family", entailment.FAMILIES, ids=lambda family: family.__name__)
def test_every_family_makes_pairs_of_two_different_sentences_with_both_labels(family):
    draw, noun, verb = Draw("families"), entailment.ANIMATES[0], entailment.TRANSITIVE[0]
    pairs = {follows: {family(draw, noun, verb, follows) for _ in range(200)} for follows in (True, False)}
    assert not pairs[True] & pairs[False]
    assert all(premise != hypothesis for made in pairs.values() for premise, hypothesis in made)


def test_quantifiers_go_up_or_down_as_in_every_world_of_three_things():
    for quantifier, (restrictor_up, predicate_up) in entailment.QUANTIFIERS.items():
        assert _is_upward(quantifier, "restrictor") == restrictor_up
        assert _is_upward(quantifier, "predicate") == predicate_up


def _is_upward(quantifier, place):
    """Whether a true sentence stays true when one of its two sets of three things is replaced by a larger one."""
    sets = [frozenset(thing for thing in range(3) if bits >> thing & 1) for bits in range(8)]
    truth = {
        "some": lambda restrictor, predicate: bool(restrictor & predicate),
        "every": lambda restrictor, predicate: restrictor <= predicate,
        "no": lambda restrictor, predicate: not restrictor & predicate,
        "not every": lambda restrictor, predicate: not restrictor <= predicate,
    }[quantifier]
    for small in sets:
        for large in (other for other in sets if small <= other):
            for fixed in sets:
                before = truth(small, fixed) if place == "restrictor" else truth(fixed, small)
                after = truth(large, fixed) if place == "restrictor" else truth(fixed, large)
                if before and not after:
                    return False
    return True
