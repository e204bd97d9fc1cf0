"""The demo images are fair: balanced, never repeated, not to be had from colours or single pixels, always the same."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tasks.demo_vtab import suite
from workflow.errors import AtlasError

# a change here is a change of the data: bump the protocol's version
FINGERPRINTS = {
    "digits": "8c4d1ed2c75356731b7b98a86f9aa748118b4fef82b2a21d8129ca648a026539",
    "texture": "4be36e8e78621e261a3bd22bd3c2a9cf625b48b908521940ee366e55e0841914",
    "count": "a5aa78d76bec5334bba5b2d509cf3e846d22ed755988acaf47c1fdc089ffe9e7",
    "position": "3f845f44ff764406da4d06ca3cf21c365951d68962713b12a8ed6610629baa93",
    "orientation": "6c37c614053fe98eafa0f236c5cb7106424529064d828018e3246fb558900189",
}
# bounds on the accuracy of logistic regression on raw pixels; found: 0.12, 0.22, 0.20, 0.20, 0.14
LINEAR = {"digits": 0.16, "texture": 0.27, "count": 0.26, "position": 0.25, "orientation": 0.19}


@pytest.fixture(scope="module", params=list(suite.tasks))
def task(request):
    return request.param


@pytest.fixture(scope="module")
def data(task):
    return suite.load(task, suite.protocol(task), None)


def splits(data):
    return data.train, data.validation, data.test


def test_images_are_small_and_coloured_and_as_many_as_the_protocol_says(data):
    assert [split.inputs.shape for split in splits(data)] == [(n, 32, 32, 3) for n in (800, 200, 500)]
    assert all(split.inputs.dtype == np.uint8 for split in splits(data))


def test_classes_are_balanced(task, data):
    for split in splits(data):
        counts = np.bincount(split.labels, minlength=len(suite.tasks[task].labels))
        assert counts.max() - counts.min() <= 1


def test_labels_are_not_in_order(data):
    assert len(set(data.train.labels[:20].tolist())) > 2


def test_no_image_comes_twice_in_or_between_splits(data):
    images = [image.tobytes() for split in splits(data) for image in split.inputs]
    assert len(set(images)) == len(images)


def test_no_scan_of_a_digit_is_in_two_splits(monkeypatch):
    used = []
    monkeypatch.setattr("tasks._demo_vtab.digits._enlarged", lambda scan, size: used.append(scan.tobytes()) or 0)
    suite.load("digits", suite.protocol("digits"), None)
    assert len(used) == len(set(used)) == 1500


def test_the_mean_colour_says_little(task, data):
    train, test = (split.inputs.mean(axis=(1, 2)) / 255 for split in (data.train, data.test))
    model = LogisticRegression(max_iter=1000).fit(train, data.train.labels)
    assert model.score(test, data.test.labels) <= suite.tasks[task].chance + 0.07


def test_single_pixels_say_little(task, data):
    train, test = (split.inputs.reshape(len(split), -1) / 255 - 0.5 for split in (data.train, data.test))
    model = LogisticRegression(max_iter=100, C=0.01).fit(train, data.train.labels)
    assert model.score(test, data.test.labels) <= LINEAR[task]


def test_other_seeds_give_other_images(task, data):
    other = suite.load(task, suite.protocol(task, {"data_seed": 1, "train": 20, "validation": 20, "test": 20}), None)
    assert not {image.tobytes() for image in other.train.inputs} & {image.tobytes() for image in data.train.inputs}


def test_data_is_what_it_was(task, data):
    assert data.fingerprint == FINGERPRINTS[task]


def test_groups_are_those_of_vtab():
    groups = [info.group for info in suite.tasks.values()]
    assert groups == ["natural", "specialized", "structured", "structured", "structured"]


def test_more_digits_than_there_are_are_refused():
    with pytest.raises(AtlasError, match="more digits than there are") as error:
        suite.load("digits", suite.protocol("digits", {"train": 1700}), None)
    assert "1740" in str(error.value)
