"""Details of what is read and how it is scored, each of which could change a number without another test noticing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from methods.control.untrained import Untrained
from models.entries import model
from models.load import load
from tasks.base import Split
from tests.helpers import attach, lively
from tests.workflow.test_evaluate import INFO, SPLIT, scorer
from workflow import encode
from workflow.data import Encoded, budgeted_batches
from workflow.evaluate import Scorer
from workflow.train import task_loss

CLASSES = replace(
    INFO,
    kind="classification",
    fields=("first", "second"),
    labels=("no", "yes"),
    metrics=("accuracy",),
    select=None,
    new_tokens=0,
)
PAIRS = Split(
    [("one two", "three"), ("four", "five six seven"), ("eight nine", "ten"), ("eleven", "twelve")],
    np.array([0, 1, 1, 1]),
    np.arange(4),
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path))


@pytest.fixture(scope="module")
def bert():
    made = load(model("tiny-bert"), "classification", labels=2)
    lively(made.model)
    return made


def test_a_prompt_keeps_its_opening_token_and_has_no_end_token():
    tokenizer = load(model("tiny-llama"), "generation").tokenizer
    opening, *words, end = tokenizer(["two and two"])["input_ids"][0]
    assert end == tokenizer.eos_token_id
    assert encode.prompt_ids(["two and two"], tokenizer) == [[opening, *words]]


def test_a_text_ends_before_its_end_token(monkeypatch):
    made = scorer()
    end = made.backbone.tokenizer.eos_token_id
    rows = torch.tensor([[7, end, 9], [end, 8, 9], [7, 8, 9]])
    monkeypatch.setattr(made.backbone, "generate", lambda batch, *_, **__: rows[batch.rows])
    assert made._generate(encode.prompts(SPLIT, made.backbone, 3)) == ["t7", "", "t7 t8 t9"]


def test_answers_of_a_part_are_extracted_by_the_rule_of_the_part():
    seen = []

    def extract(task, protocol, text, prompt):
        seen.append((task, prompt))
        return {"strict": "", "flexible": ""}

    info = replace(INFO, metrics=("accuracy",), parts=("easy", "hard"))
    made = scorer(info=info, extract=extract)
    parts = np.array(["hard", "easy", "hard"])
    made.predict(replace(SPLIT, parts=parts), None)
    assert seen == [(part, prompt) for part, (prompt,) in zip(parts, SPLIT.inputs, strict=True)]


def test_what_chooses_classifiers_is_larger_when_better(bert):
    method = Untrained()
    attach(method, bert)
    made = Scorer(SimpleNamespace(), CLASSES, {}, bert, method)
    data = encode.encode(CLASSES, PAIRS, bert, None)
    predicted = made.predict(PAIRS, data).predicted
    for labels, share in ((predicted, 1.0), (1 - predicted, 0.0), (np.append(predicted[:3], 1 - predicted[3]), 0.75)):
        assert made.select(replace(data, labels=labels)) == share


def test_the_texts_of_a_pair_are_told_apart(bert):
    batch = encode.encode(CLASSES, PAIRS, bert, None).batch(np.array([0, 1]))
    assert batch.inputs["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_images_are_resized_as_pillow_does(resample):
    image = np.random.default_rng(0).integers(0, 256, (1, 9, 7, 3), dtype=np.uint8)
    found = encode.Pixels(image, 4, (0.0,) * 3, (1.0,) * 3, resample)[np.array([0])]
    expected = Image.fromarray(image[0]).resize((4, 4), getattr(Image.Resampling, resample.upper()))
    assert np.allclose(found[0], np.asarray(expected).transpose(2, 0, 1) / 255, atol=1e-6)


def test_a_batch_without_anything_to_learn_has_no_loss():
    made = scorer()
    data = encode.encode(INFO, SPLIT, made.backbone, 3)
    batch = data.batch(np.arange(3))
    assert (batch.labels == -100).all()
    assert task_loss(made.backbone.forward(batch), batch).item() == 0.0
    assert made.select(data) == 0.0


def test_outputs_that_carry_no_labels_are_scored_against_the_end_of_the_batch():
    made = scorer()
    data = encode.encode(INFO, SPLIT, made.backbone, None)
    expected = made._losses(data)
    made.method.forward = lambda batch, call: replace(call(batch), labels=None)
    assert np.allclose(made._losses(data), expected)
    assert made._choose(SPLIT).shape == (3,)


def test_options_know_where_their_prompt_ends():
    made = scorer()
    found, prompts = encode.choices(SPLIT, made.backbone), encode.prompts(SPLIT, made.backbone, 6)
    assert found.encoded.prompt.tolist() == [prompts.prompt[example] for example in found.example]


class TestBatches:
    def test_images_are_few(self):
        data = Encoded(np.zeros(300, int), pixels=np.zeros((300, 3, 2, 2), np.float32))
        assert [len(batch) for batch in budgeted_batches(data, 8192, images=128)] == [128, 128, 44]

    def test_texts_are_as_many_as_the_longest_of_them_allows(self):
        lengths = [50, 10, 10, 2, 2, 2, 2, 2, 2, 2, 2]
        data = Encoded(np.zeros(11, int), [np.arange(length) for length in lengths])
        batches = list(budgeted_batches(data, 20, images=1))
        assert [batch.inputs["input_ids"].shape for batch in batches] == [(1, 50), (2, 10), (8, 2)]
        assert sorted(row for batch in batches for row in batch.rows) == list(range(11))

    def test_room_is_left_for_what_is_to_come(self):
        data = Encoded(np.zeros(6, int), [np.arange(2) for _ in range(6)])
        assert [len(batch) for batch in budgeted_batches(data, 20, images=1, more=3)] == [4, 2]
