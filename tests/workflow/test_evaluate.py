"""Scores of generation, options and parts, against what is worked out one example at a time."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from methods.control.untrained import Untrained
from models.entries import model
from models.load import load
from tasks.base import Split, TaskInfo
from tests.helpers import attach, lively
from workflow import encode
from workflow.evaluate import Predictions, Scorer

INFO = TaskInfo(
    suite="toy",
    name="quiz",
    kind="generation",
    modality="text",
    fields=("prompt",),
    labels=(),
    metrics=("accuracy", "accuracy_flexible", "unparsed", "accuracy_likelihood", "nll"),
    primary="accuracy",
    max_length=32,
    title="Quiz",
    select="nll",
    new_tokens=3,
)
OPTIONS = [("red one", "red two", "blue"), ("yes", "no"), ("small green frog", "small green bird", "big green bird")]
SPLIT = Split(
    [("which colour",), ("is it so or is it not so",), ("what sits there",)],
    np.array(["red two", "no", "small green bird"], object),
    np.arange(3),
    answers=np.array(["2", "0", "1"]),
    choices=OPTIONS,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path))


def scorer(name: str = "tiny-llama", info: TaskInfo = INFO, extract=None) -> Scorer:
    backbone = load(model(name), "generation")
    lively(backbone.model)
    backbone.train(False)
    method = Untrained()
    attach(method, backbone)
    suite = SimpleNamespace(extract=extract or (lambda task, protocol, text, prompt: {"strict": "", "flexible": ""}))
    return Scorer(suite, info, {}, backbone, method)


def log_probability(made: Scorer, prompt: str, answer: str, end: bool) -> tuple[float, int]:
    """Summed log-probability of the answer's tokens, from one unpadded pass over all of the text."""
    tokenizer = made.backbone.tokenizer
    start = encode.prompt_ids([prompt], tokenizer)[0]
    tail = encode.completion_ids([answer], tokenizer)[0] + ([tokenizer.eos_token_id] if end else [])
    if made.backbone.kind == "encoder_decoder":
        ids, labels = torch.tensor([tokenizer([prompt])["input_ids"][0]]), torch.tensor([tail])
        scores = made.backbone.model(input_ids=ids, labels=labels).logits
        return scores.log_softmax(-1)[0, torch.arange(len(tail)), tail].sum().item(), len(tail)
    scores = made.backbone.model(torch.tensor([start + tail])).logits.log_softmax(-1)
    places = torch.arange(len(start) - 1, len(start) + len(tail) - 1)
    return scores[0, places, tail].sum().item(), len(tail)


class TestLoss:
    @torch.no_grad()
    @pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-gemma3"])
    def test_is_the_mean_over_tokens_of_the_answers(self, name):
        made = scorer(name, replace(INFO, metrics=("nll",), primary="nll"))
        data = encode.encode(INFO, SPLIT, made.backbone, None)
        pairs = zip(SPLIT.inputs, SPLIT.labels, strict=True)
        expected = [log_probability(made, prompt, answer, end=True) for (prompt,), answer in pairs]
        found = made.scores(SPLIT, made.predict(SPLIT, data))["nll"]
        assert found["value"] == pytest.approx(-sum(v for v, _ in expected) / sum(n for _, n in expected), rel=1e-5)
        assert made.select(data) == pytest.approx(-found["value"])

    def test_its_standard_error_by_hand(self):
        losses = np.array([[2.0, 2], [6.0, 2]])  # 8 nats over 4 tokens: 2; residuals -2 and 2, standard deviation 2.83
        found = scorer(info=replace(INFO, metrics=("nll",)))
        one = found.scores(SPLIT.take([0, 1]), Predictions(SPLIT.labels, SPLIT.labels, losses=losses))["nll"]
        assert one == {"value": 2.0, "stderr": pytest.approx(8**0.5 / 2 / 2**0.5), "n": 2}


class TestOptions:
    @torch.no_grad()
    @pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-t5"])
    def test_the_likeliest_is_chosen(self, name):
        made = scorer(name, replace(INFO, metrics=("accuracy_likelihood",), primary="accuracy_likelihood"))
        found = made.predict(SPLIT, None)
        for row, options in enumerate(OPTIONS):
            sums = [log_probability(made, SPLIT.inputs[row][0], option, end=False)[0] for option in options]
            assert found.chosen[row] == int(np.argmax(sums))
        assert found.predicted.tolist() == [OPTIONS[row][found.chosen[row]] for row in range(3)]
        hits = np.mean(found.predicted == SPLIT.labels)
        assert made.scores(SPLIT, found)["accuracy_likelihood"]["value"] == pytest.approx(hits)


class TestAnswers:
    def test_are_extracted_from_the_continuation_alone(self):
        seen = []

        def extract(task, protocol, text, prompt):
            seen.append((task, text))
            assert (prompt,) == SPLIT.inputs[len(seen) - 1]
            return {"strict": "2" if len(seen) == 1 else "", "flexible": "2"}

        made = scorer(info=replace(INFO, metrics=("accuracy", "accuracy_flexible", "unparsed")), extract=extract)
        found = made.scores(SPLIT, made.predict(SPLIT, None))
        assert {task for task, _ in seen} == {"quiz"}
        assert all(len(text.split()) <= 3 for _, text in seen)
        assert found["accuracy"]["value"] == pytest.approx(1 / 3)
        assert found["accuracy_flexible"]["value"] == pytest.approx(1 / 3)
        assert found["unparsed"]["value"] == pytest.approx(2 / 3)
        assert found["accuracy"]["stderr"] == pytest.approx((1 / 3 * 2 / 3 / 3) ** 0.5)

    def test_are_the_same_alone_and_in_a_batch(self):
        made = scorer(info=replace(INFO, new_tokens=6))
        together = made._generate(encode.prompts(SPLIT, made.backbone, 6))
        alone = [made._generate(encode.prompts(SPLIT.take([row]), made.backbone, 6))[0] for row in range(3)]
        assert together == alone and any(together)

    def test_end_with_the_total_length(self):
        made = scorer(info=replace(INFO, new_tokens=6, total_tokens=10))
        texts = made._generate(encode.prompts(SPLIT.take([1]), made.backbone, 6))
        assert len(texts[0].split()) <= 10 - 8


class TestParts:
    info = replace(INFO, metrics=("accuracy",), parts=("easy", "hard", "seen"), contaminated=("seen",), headline="mean")
    split = replace(SPLIT.take([0, 1, 2, 0, 1]), parts=np.array(["easy", "easy", "hard", "seen", "seen"]))
    found = Predictions(split.answers, split.answers, answers={"strict": np.array(["2", "x", "x", "2", "0"])})

    def test_are_scored_apart_and_seen_ones_leave_the_mean(self):
        scores = scorer(info=self.info).scores(self.split, self.found)
        values = {name: estimate["value"] for name, estimate in scores.items()}
        assert values == {"accuracy": 0.25, "accuracy/easy": 0.5, "accuracy/hard": 0.0, "accuracy/seen": 1.0}
        assert scores["accuracy"]["n"] == 3
        assert scores["accuracy"]["stderr"] == pytest.approx((0.5 * 0.5 / 2) ** 0.5 / 2)

    def test_the_headline_may_be_one_of_them(self):
        scores = scorer(info=replace(self.info, headline="easy")).scores(self.split, self.found)
        assert scores["accuracy"] == scores["accuracy/easy"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2", "tiny-qwen3"])
@pytest.mark.parametrize("left", [False, True])
def test_places_before_the_first_learned_one_are_not_scored(name, left):
    made = scorer(name)
    data = replace(encode.encode(INFO, SPLIT, made.backbone, None), pad_left=left)
    short = made.backbone.forward(data.batch(np.arange(3)))
    whole = made.backbone.forward(replace(data, first=None).batch(np.arange(3)))
    places = short.logits.shape[1]
    assert places < whole.logits.shape[1]
    assert short.labels.shape == short.logits.shape[:2]
    assert (short.labels != -100).sum() == (whole.labels != -100).sum()
    assert torch.allclose(short.logits, whole.logits[:, -places:], atol=1e-5)
