"""Synthetic inputs: of the size that the protocol says, the same every time, and brought into any vocabulary."""

import numpy as np
import pytest

from tasks.cost import suite
from tests.helpers import backbone
from workflow.data import IGNORED
from workflow.encode import LOWEST_ID, encode


def drawn(task, **options):
    protocol = suite.protocol(task, options)
    return suite.facts(task, protocol), suite.load(task, protocol, None)


@pytest.mark.parametrize(
    ("task", "shape"), [("classify", (256, 128)), ("generate", (256, 256)), ("images", (256, 224, 224, 3))]
)
def test_sizes_by_default(task, shape):
    info, data = drawn(task)
    assert data.train.inputs.shape == shape and len(data.train) == 256
    if task == "generate":
        assert data.train.labels.shape == (256, 512) and info.max_length == 768


def test_the_same_numbers_every_time():
    assert drawn("classify")[1].fingerprint == drawn("classify")[1].fingerprint
    assert drawn("classify")[1].fingerprint != drawn("classify", length=64)[1].fingerprint


def test_a_class_for_a_text():
    info, data = drawn("classify", length=20)
    encoded = encode(info, data.train, backbone("tiny-bert"), None)
    assert set(encoded.lengths) == {20}
    ids = encoded.ids.values
    assert ids.min() >= LOWEST_ID and ids.max() < 97 and len(np.unique(ids)) == 97 - LOWEST_ID
    assert set(encoded.labels) == {0, 1}


def test_a_text_that_continues_another_has_exactly_the_length_and_learns_the_answer_and_its_end():
    info, data = drawn("generate", length=20, answer=6)
    encoded = encode(info, data.train, backbone("tiny-llama"), None)
    assert set(encoded.lengths) == {20}
    learned = encoded.labels[3] != IGNORED
    assert learned.tolist() == [False] * 13 + [True] * 7
    assert (encoded.ids[3][14:] == encoded.labels[3][13:19]).all(), "labels are the next tokens"
    batch = encoded.batch([0, 1])
    assert batch.unpadded and batch.learned_from == 13


def test_an_encoder_decoder_reads_the_one_and_writes_the_other():
    info, data = drawn("generate", length=20, answer=6)
    encoded = encode(info, data.train, backbone("tiny-t5"), None)
    assert set(encoded.lengths) == {14} and set(encoded.labels.lengths) == {7} and encoded.targets


def test_a_network_with_fewer_places_gets_shorter_texts():
    info, data = drawn("classify", length=500)
    assert set(encode(info, data.train, backbone("tiny-bert"), None).lengths) == {64}
