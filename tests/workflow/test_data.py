"""Batches: every example once an epoch, little padding, the same order for the same seed, a place to resume at."""

import itertools

import numpy as np
import pytest

from tests.helpers import encoded
from workflow.data import POOL, Encoded, epoch_batches, sorted_batches, training_batches


def lengths(count=2000):
    """Lengths like those of short sentences: most about ten tokens, a few five times as long."""
    return np.random.default_rng(0).lognormal(2.4, 0.5, count).astype(int) + 3


def padding(lengths, batches):
    """Share of tensor places that hold no token."""
    places = sum(lengths[rows].max() * len(rows) for rows in batches)
    return 1 - lengths.sum() / places


@pytest.mark.parametrize("count", [1, 31, 32, 33, 2000])
def test_every_example_once_an_epoch(count):
    batches = epoch_batches(lengths(count), 32, seed=0, epoch=0)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert len(batches) == -(-count // 32) and max(map(len, batches)) <= 32


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return np.concatenate(epoch_batches(lengths(), 32, seed, epoch)).tolist()

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)


def test_bucketing_by_length_saves_most_of_the_padding():
    found, size = lengths(), 32
    order = np.random.default_rng(0).permutation(len(found))
    plain = [order[i : i + size] for i in range(0, len(order), size)]
    assert padding(found, plain) > 0.5
    assert padding(found, epoch_batches(found, size, 0, 0)) < 0.08


def test_batches_do_not_come_sorted_and_mix_the_whole_set():
    batches = epoch_batches(lengths(), 32, 0, 0)
    means = [lengths()[rows].mean() for rows in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4
    assert len(lengths()) > 32 * POOL, "more than one pool, else nothing is mixed"


@pytest.mark.parametrize("start", [0, 1, 3, 4, 9])
def test_a_resumed_stream_goes_on_where_it_was(start):
    data = encoded(14)
    whole = itertools.islice(training_batches(data, 4, seed=0), start, start + 5)
    resumed = itertools.islice(training_batches(data, 4, seed=0, start=start), 5)
    assert [b.rows.tolist() for b in whole] == [b.rows.tolist() for b in resumed]


def test_evaluation_runs_every_example_once_longest_first():
    data = encoded(11)
    rows = [batch.rows for batch in sorted_batches(data, 4)]
    order = np.concatenate(rows)
    assert sorted(order.tolist()) == list(range(11))
    assert (np.diff(data.lengths[order]) <= 0).all()


class TestPadding:
    data = Encoded([np.array([1, 2]), np.array([1, -100, 3])], [np.array([5, 6]), np.array([7, 8, 9])], pad=0)

    def test_is_on_the_right_with_labels_that_are_not_learned(self):
        batch = self.data.batch([0, 1])
        assert batch.inputs["input_ids"].tolist() == [[5, 6, 0], [7, 8, 9]]
        assert batch.inputs["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
        assert batch.labels.tolist() == [[1, 2, -100], [1, -100, 3]]
        assert (batch.tokens, batch.padded, batch.unpadded, batch.left_padded) == (5, 6, False, False)

    def test_is_on_the_left_where_asked(self):
        left = Encoded(self.data.labels, self.data.ids, pad=0, pad_left=True)
        batch = left.batch([0, 1])
        assert batch.inputs["input_ids"].tolist() == [[0, 5, 6], [7, 8, 9]]
        assert batch.inputs["attention_mask"].tolist() == [[0, 1, 1], [1, 1, 1]]
        assert batch.labels.tolist() == [[-100, 1, 2], [1, -100, 3]]
        assert batch.left_padded and not left.batch([1]).left_padded

    def test_equal_lengths_need_none(self):
        assert self.data.batch([1, 1]).unpadded
