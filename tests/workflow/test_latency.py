"""Latencies that are dominated by a delay of known length."""

import time

import numpy as np
import pytest
import torch

from methods.lowrank.lora import LoRA
from tests.helpers import attach, backbone, lively, text
from workflow import latency, toy

CPU = torch.device("cpu")
DELAY = 0.02


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(latency, "SECONDS", 0.0)


def test_quantiles_by_hand():
    assert latency.quantiles([4.0, 1.0, 2.0, 3.0, 5.0]) == {"median": 3.0, "p25": 2.0, "p75": 4.0, "n": 5}
    assert latency.quantiles([7.0]) == {"median": 7.0, "p25": 7.0, "p75": 7.0, "n": 1}


def sleeper(order, name, seconds):
    def call():
        order.append(name)
        start = time.perf_counter()
        time.sleep(seconds)
        return {"": time.perf_counter() - start}

    return call


def test_timings_tell_a_known_sleep_and_take_turns():
    order = []
    found = latency.interleaved({"short": sleeper(order, "short", 0.004), "long": sleeper(order, "long", DELAY)})
    short, long = ([one[""] for one in found[name]] for name in ("short", "long"))
    assert 0.004 <= np.median(short) < DELAY <= np.median(long) < 0.1
    assert order == ["short", "long"] * (len(short) + 1), "the first round is dropped"
    assert len(short) == len(long) == latency.REPEATS[0]


def test_slow_calls_are_few_and_none_is_dropped(monkeypatch):
    monkeypatch.setattr(latency, "SLOW", 0.01)
    order = []
    found = latency.interleaved({"one": sleeper(order, "one", DELAY)})
    assert len(found["one"]) == len(order) == latency.SLOW_REPEATS


class Slow(LoRA):
    """A method that sleeps in every map until it is merged."""

    class Map(LoRA.Map):
        def forward(self, x, base):
            time.sleep(DELAY / 4)  # tiny-bert has two blocks with two maps
            return super().forward(x, base)


def attached(plugin, model="tiny-bert"):
    on, method = backbone(model, "generation" if model == "tiny-llama" else None), plugin()
    attach(method, on)
    lively(method.parts)
    return on, method


def test_a_method_that_delays_is_slower_attached_and_not_merged():
    on, method = attached(Slow)
    batch = text("tiny-bert")
    before = on.forward(batch).logits
    found = latency.latency(on, method, lambda: latency.forward(on, method, batch))[""]
    assert set(found) == {"bare", "attached", "merged", "attached_over_bare", "merged_over_bare"}
    assert DELAY < found["attached"]["median"] < DELAY + found["bare"]["median"] + 0.02
    assert found["attached_over_bare"]["median"] > 2 > found["merged_over_bare"]["median"]
    assert torch.equal(on.forward(batch).logits, before), "the method is left as it was"


def test_a_text_that_is_generated_has_a_prefill_and_a_time_a_token():
    on, method = attached(Slow, "tiny-llama")
    found = latency.figures(on, method, toy.examples("tiny-llama", 10, (10, 10)), "generation")
    assert found["length"] == 7, "the prompt: ten tokens without the answer of three"
    assert set(found) == {"length", *(f"{what}_batch_{n}" for what in ("prefill", "token") for n in (1, 8))}
    assert found["prefill_batch_1"]["attached"]["median"] > DELAY
    assert (
        DELAY < found["token_batch_1"]["attached"]["median"] < DELAY + 0.02 + found["token_batch_1"]["bare"]["median"]
    )
    assert found["token_batch_8"]["merged"]["median"] < DELAY
    assert found["token_batch_8"]["attached_over_bare"]["median"] > 2


def test_an_encoder_decoder_too():
    on, method = attached(LoRA, "tiny-t5")
    found = latency.figures(on, method, toy.examples("tiny-t5", 10, (10, 10)), "generation")
    assert found["length"] == 10 and found["prefill_batch_1"]["merged"]["median"] > 0


def test_the_batch_is_of_the_examples_of_middle_length():
    data = toy.examples("tiny-bert", 21, (6, 14))
    (batch,) = latency.batches(data, (1,), CPU).values()
    assert batch.padded == np.sort(data.lengths)[10] == latency.middle_length(data)
