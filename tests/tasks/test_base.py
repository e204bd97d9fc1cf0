"""What every suite relies on: protocols, splits, slices, fingerprints, reading from a local root or the hub."""

import subprocess
import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tasks.base import (
    HubData,
    Option,
    Protocol,
    Split,
    Suite,
    TaskData,
    TaskInfo,
    at_most,
    divided,
    fingerprint,
    joined,
    label_ids,
    simple_draw,
    stratified_draw,
)
from workflow.errors import AtlasError

INFO = TaskInfo(
    suite="toy",
    name="colours",
    kind="classification",
    modality="text",
    fields=("sentence",),
    labels=("red", "blue"),
    metrics=("accuracy",),
    primary="accuracy",
    max_length=16,
    title="Colours",
)
OPTIONS = {
    "fraction": Option(0.5, float, minimum=0.0, maximum=1.0),
    "rows": Option(None, int, minimum=1, optional=True),
    "text": Option("a", str),
}


class Toy(Suite):
    name, title, version = "toy", "Toy", 2
    tasks = {"colours": INFO}
    protocols = (Protocol("first", 3, OPTIONS), Protocol("second", 1, {}))


def split(texts=("a", "b"), labels=(0, 1), ids=(0, 1)):
    return Split([(text,) for text in texts], np.array(labels), np.array(ids))


class TestProtocol:
    def test_holds_names_versions_and_every_option(self):
        assert Toy().protocol("colours", {"rows": 5}) == {
            "name": "first",
            "version": 3,
            "suite_version": 2,
            "fraction": 0.5,
            "rows": 5,
            "text": "a",
        }

    def test_another_protocol_is_picked_by_name(self):
        assert Toy().protocol("colours", {"name": "second"}) == {"name": "second", "version": 1, "suite_version": 2}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"fractoin": 0.1}, "did you mean 'fraction'"),
            ({"name": "frist"}, "did you mean 'first'"),
            ({"fraction": 2}, "float at least 0.0 at most 1.0"),
            ({"fraction": "half"}, "does not fit option 'fraction'"),
            ({"rows": True}, "int at least 1 or null"),
            ({"text": None}, "does not fit option 'text'"),
        ],
    )
    def test_what_it_does_not_know_is_an_error_with_the_mend(self, options, message):
        with pytest.raises(AtlasError) as error:
            Toy().protocol("colours", options)
        assert message in str(error.value) and "key: protocol.toy." in str(error.value)

    def test_an_unknown_task_is_an_error_with_a_suggestion(self):
        with pytest.raises(AtlasError, match="did you mean 'colours'"):
            Toy().protocol("colors", {})


class TestSplit:
    def test_take_keeps_inputs_labels_and_ids_together(self):
        taken = split(("a", "b", "c"), (0, 1, 0), (7, 8, 9)).take([2, 0])
        assert (taken.inputs, taken.labels.tolist(), taken.ids.tolist()) == ([("c",), ("a",)], [0, 0], [9, 7])

    def test_take_works_on_images(self):
        images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(3, axis=3)
        taken = Split(images, np.array([0, 1, 0]), np.arange(3)).take([1])
        assert taken.inputs.shape == (1, 1, 1, 3) and taken.inputs[0, 0, 0, 0] == 1


class TestFingerprint:
    def test_is_the_same_for_the_same_content(self):
        assert fingerprint(split(), split()) == fingerprint(split(), split())

    @pytest.mark.parametrize("other", [split(("a", "B")), split(labels=(1, 1)), split(ids=(0, 2))])
    def test_changes_with_texts_labels_and_ids(self, other):
        assert fingerprint(split(), other) != fingerprint(split(), split())

    def test_knows_which_rows_are_in_which_split(self):
        whole, empty = split(), split((), (), ())
        assert fingerprint(whole, empty) != fingerprint(empty, whole)

    def test_changes_with_a_pixel(self):
        images = np.zeros((2, 4, 4, 3), np.uint8)
        before = fingerprint(Split(images, np.array([0, 1]), np.arange(2)))
        images[1, 2, 3, 0] = 1
        assert fingerprint(Split(images, np.array([0, 1]), np.arange(2))) != before

    def test_is_part_of_task_data(self):
        data = TaskData.of(split(), split(), split(), source="here")
        assert data.fingerprint == fingerprint(split(), split(), split()) and data.source == "here"


class TestStratifiedDraw:
    labels = np.array([0] * 60 + [1] * 40)
    ids = np.arange(100) + 1000

    def test_keeps_the_shares_of_the_labels(self):
        drawn = stratified_draw(self.labels, self.ids, 20, seed=0)
        assert len(set(drawn.tolist())) == 20 and (self.labels[drawn] == 1).sum() == 8

    def test_gives_the_size_asked_for_when_shares_are_not_whole(self):
        assert len(stratified_draw(np.array([0, 0, 0, 1, 1, 2, 2]), np.arange(7), 4, seed=0)) == 4

    def test_is_fixed_by_the_seed_and_not_by_the_order_of_rows(self):
        order = np.random.default_rng(0).permutation(100)
        drawn = self.ids[stratified_draw(self.labels, self.ids, 20, seed=0)]
        again = self.ids[order][stratified_draw(self.labels[order], self.ids[order], 20, seed=0)]
        assert set(drawn) == set(again)
        assert set(drawn) != set(self.ids[stratified_draw(self.labels, self.ids, 20, seed=1)])


class TestPartsOfASplit:
    whole = split("abcdef", [0] * 6, range(6))

    def test_a_split_is_cut_only_where_it_is_longer(self):
        assert at_most(self.whole, None, 0) is self.whole and at_most(self.whole, 6, 0) is self.whole
        assert at_most(self.whole, 2, 0).ids.tolist() == simple_draw(self.whole, 2, 0).tolist()
        assert at_most(self.whole, 2, 0, lambda of, size, seed: np.arange(size)).inputs == [("a",), ("b",)]

    def test_a_division_has_every_row_once(self):
        rest, drawn = divided(self.whole, np.array([4, 1]))
        assert rest.ids.tolist() == [0, 2, 3, 5] and drawn.inputs == [("e",), ("b",)]

    def test_joined_splits_keep_what_they_have(self):
        one = Split([("a",)], np.array([" 1"], object), np.array(["x/0"]), np.array(["1"]), [(" 1", " 2")])
        both = joined([one, one])
        assert both.inputs == [("a",), ("a",)] and both.choices == [(" 1", " 2")] * 2 and both.parts is None
        assert both.labels.dtype == object and both.ids.tolist() == ["x/0"] * 2
        assert both.answers.tolist() == ["1", "1"]


class TestLocalRoot:
    hub = HubData("someone/toy", "abc")
    columns = ("sentence", "label", "idx")

    def write(self, root, table):
        path = root / "toy" / "colours" / "train.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table(table), path)
        return path

    def failure(self, root):
        with pytest.raises(AtlasError) as error:
            self.hub.read(INFO, "train", self.columns, root)
        return str(error.value)

    def test_reads_the_columns_asked_for(self, tmp_path):
        self.write(tmp_path, {"idx": [0], "sentence": ["a"], "label": [1], "more": [5]})
        assert self.hub.read(INFO, "train", self.columns, tmp_path).column_names == list(self.columns)

    def test_a_missing_root_names_it_and_says_how_to_give_one(self, tmp_path):
        message = self.failure(tmp_path / "nowhere")
        assert f"file: {tmp_path / 'nowhere'}" in message
        assert "`data_root: PATH` in the grid" in message and "`--config data_root=PATH`" in message

    def test_a_missing_file_is_named_with_the_layout(self, tmp_path):
        message = self.failure(tmp_path)
        assert str(tmp_path / "toy" / "colours" / "train.parquet") in message
        assert "PATH/<suite>/<task>/<split>.parquet has the columns sentence, label, idx" in message

    def test_a_missing_column_is_named_with_those_there_are(self, tmp_path):
        path = self.write(tmp_path, {"text": ["a"], "label": [1], "idx": [0]})
        message = self.failure(tmp_path)
        assert "no column sentence; there are text, label, idx" in message and str(path) in message

    def test_a_file_that_is_not_parquet_is_named(self, tmp_path):
        path = self.write(tmp_path, {"idx": [0]})
        path.write_text("not parquet")
        message = self.failure(tmp_path)
        assert "not a readable parquet file" in message and str(path) in message


def test_an_unreachable_hub_is_one_error_with_the_id_and_the_mend(tmp_path):
    code = (
        "from tests.tasks.test_base import INFO, HubData\n"
        "from workflow.errors import AtlasError\n"
        "try: HubData('someone/toy', 'abc').read(INFO, 'train', ('sentence',), None)\n"
        "except AtlasError as error: print(error)"
    )
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    message = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout
    assert "cannot read the 'train' split of toy/colours from the hub" in message
    assert "file: someone/toy@abc" in message and "data_root: PATH" in message


@pytest.mark.parametrize(("revision", "fits"), [("a" * 40, True), ("b" * 40, False), ("main", True)])
def test_a_cache_with_another_revision_than_the_pinned_one_is_an_error(tmp_path, monkeypatch, revision, fits):
    table = pyarrow.table({"sentence": ["a"]})
    files = [{"filename": str(tmp_path / ("a" * 40) / "toy-train.arrow")}]
    cached = SimpleNamespace(data=SimpleNamespace(table=table), cache_files=files)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: cached)
    hub = HubData("someone/toy", revision)
    if fits:
        assert hub.read(INFO, "train", ("sentence",), None).num_rows == 1
        return
    with pytest.raises(AtlasError) as error:
        hub.read(INFO, "train", ("sentence",), None)
    assert "another revision of someone/toy" in str(error.value) and f"file: {tmp_path / ('a' * 40)}" in str(
        error.value
    )


class TestLabelIds:
    def table(self, ids, names=None):
        table = pyarrow.table({"label": ids})
        if names is None:
            return table
        feature = f'{{"info": {{"features": {{"label": {{"names": {names}, "_type": "ClassLabel"}}}}}}}}'.replace(
            "'", '"'
        )
        return table.replace_schema_metadata({"huggingface": feature})

    def test_are_taken_as_they_are_where_nothing_names_them(self):
        assert label_ids(self.table([1, 0]), "label", INFO.labels, "here").tolist() == [1, 0]

    def test_are_matched_by_name_where_the_file_names_them(self):
        assert label_ids(self.table([1, 0], ["blue", "red"]), "label", INFO.labels, "here").tolist() == [0, 1]

    @pytest.mark.parametrize(("ids", "names", "unknown"), [([0, -1], None, "-1"), ([0, 1], ["red", "green"], "green")])
    def test_an_undeclared_id_or_name_is_an_error(self, ids, names, unknown):
        with pytest.raises(AtlasError) as error:
            label_ids(self.table(ids, names), "label", INFO.labels, "here")
        assert f"unknown labels in column 'label': {unknown}" in str(error.value) and "file: here" in str(error.value)


def test_importing_the_contract_imports_nothing_heavy():
    code = (
        "import sys, tasks.base, tasks.glue, tasks.demo_glue\n"
        "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow', 'pandas', 'sklearn') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
