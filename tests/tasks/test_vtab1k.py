"""VTAB-1k from folders made here: which lists become which split, and what is said of folders that are not right."""

import numpy as np
import pytest
from PIL import Image

from tasks._images import Files
from tasks.vtab1k import FACTS, suite
from workflow.errors import AtlasError

# classes and test images as in the benchmark, by the order of the original table
SIZES = {
    "cifar": (100, 10000), "caltech101": (102, 6084), "dtd": (47, 1880), "oxford_flowers102": (102, 6149),
    "oxford_iiit_pet": (37, 3669), "svhn": (10, 26032), "sun397": (397, 21750), "patch_camelyon": (2, 32768),
    "eurosat": (10, 5400), "resisc45": (45, 6300), "diabetic_retinopathy": (5, 42670), "clevr_count": (8, 15000),
    "clevr_dist": (6, 15000), "dmlab": (6, 22735), "kitti": (4, 711), "dsprites_loc": (16, 73728),
    "dsprites_ori": (16, 73728), "smallnorb_azi": (18, 12150), "smallnorb_ele": (9, 12150),
}  # fmt: skip


def write(folder, train800=8, val200=2, test=5, classes=4):
    """A folder in the exporter's layout: numbered images a split, each of one grey, and the four lists."""
    sizes = {"train800": train800, "val200": val200, "train800val200": train800 + val200, "test": test}
    for place, (name, size) in enumerate(sizes.items()):
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        lines = []
        for row in range(size):
            file = f"images/{name}/{row:06d}.png"
            Image.new("RGB", (6, 4), (place, row % 256, 0)).save(folder / file)
            lines.append(f"{file} {row % classes}\n")
        (folder / f"{name}.txt").write_text("".join(lines))
    return folder


def load(root, task="kitti", **options):
    return suite.load(task, suite.protocol(task, {"check_sizes": False, **options}), root)


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "vtab1k" / "kitti")
    return tmp_path


def lists_of(data):
    """The list of each split, as its images tell."""
    return [split.inputs.names[0].split("/")[1] for split in (data.train, data.validation, data.test)]


def test_nineteen_tasks_have_the_classes_and_test_sets_of_the_benchmark():
    assert {name: (facts.classes, facts.test) for name, facts in FACTS.items()} == SIZES
    assert all(len(suite.tasks[name].labels) == facts.classes for name, facts in FACTS.items())
    assert all(info.chance == 1 / len(info.labels) for info in suite.tasks.values())


def test_seven_tasks_are_natural_four_specialized_and_eight_structured():
    groups = [info.group for info in suite.tasks.values()]
    assert [groups.count(group) for group in ("natural", "specialized", "structured")] == [7, 4, 8]


def test_by_default_all_1000_images_are_learned_and_val200_only_watched(root):
    data = load(root)
    assert lists_of(data) == ["train800val200", "val200", "test"]
    assert [len(data.train), len(data.validation), len(data.test)] == [10, 2, 5]
    assert suite.reported(suite.protocol("kitti")) == "last"


def test_settings_are_chosen_on_images_that_were_not_learned(root):
    assert lists_of(load(root, name="choose-on-val200")) == ["train800", "val200", "test"]


def test_labels_and_images_are_in_the_order_of_the_list(root):
    test = load(root).test
    assert test.labels.tolist() == [0, 1, 2, 3, 0] and test.ids.tolist() == [0, 1, 2, 3, 4]
    assert [test.inputs.read(row)[0, 0].tolist() for row in range(5)] == [[3, row, 0] for row in range(5)]
    assert test.inputs.read(0).shape == (4, 6, 3) and test.inputs.read(0).dtype == np.uint8


def test_taking_rows_takes_their_images(root):
    taken = load(root).test.take([4, 1])
    assert [taken.inputs.read(row)[0, 0, 1] for row in range(2)] == [4, 1] and taken.labels.tolist() == [0, 1]


@pytest.mark.parametrize("above", ["vtab1k", "vtab-1k"])
@pytest.mark.parametrize(("task", "folder"), [("cifar", "cifar100"), ("oxford_iiit_pet", "oxford_pet")])
def test_other_names_of_folders_are_known(tmp_path, above, task, folder):
    write(tmp_path / above / folder)
    assert len(load(tmp_path, task).test) == 5


def test_lists_of_the_wrong_length_are_refused_with_file_and_numbers(root):
    with pytest.raises(AtlasError, match="expected 1,000 images, found 10") as error:
        load(root, check_sizes=True)
    assert "kitti/train800val200.txt" in str(error.value) and "check_sizes: false" in str(error.value)


def test_lists_of_the_right_length_are_taken(tmp_path):
    folder = tmp_path / "vtab1k" / "kitti"
    folder.mkdir(parents=True)
    Image.new("L", (2, 2)).save(folder / "grey.png")
    for name, size in {"train800": 800, "val200": 200, "train800val200": 1000, "test": 711}.items():
        (folder / f"{name}.txt").write_text("grey.png 3\n" * size)
    data = load(tmp_path, check_sizes=True)
    assert [len(data.train), len(data.validation), len(data.test)] == [1000, 200, 711]
    assert data.train.inputs.read(0).shape == (2, 2, 3)


def test_labels_out_of_range_are_refused(root):
    (root / "vtab1k/kitti/test.txt").write_text("images/test/000000.png 0\nimages/test/000001.png 4\n")
    with pytest.raises(AtlasError, match="line 2 has label 4; vtab1k/kitti has classes 0 to 3") as error:
        load(root)
    assert "kitti/test.txt" in str(error.value)


def test_lines_of_another_form_are_refused(root):
    (root / "vtab1k/kitti/val200.txt").write_text("images/val200/000000.png,0\n")
    with pytest.raises(AtlasError, match="line 1 is not `path label`"):
        load(root)


def test_missing_folder_list_and_image_are_named(root):
    with pytest.raises(AtlasError, match="no folder of vtab1k/dtd") as error:
        load(root, "dtd")
    assert str(root / "vtab1k" / "dtd") in str(error.value)
    (root / "vtab1k/kitti/images/test/000003.png").unlink()
    with pytest.raises(AtlasError, match="cannot be read") as error:
        load(root)
    assert "000003.png" in str(error.value)
    (root / "vtab1k/kitti/test.txt").unlink()
    with pytest.raises(AtlasError, match="the list of 'test'") as error:
        load(root)
    assert "kitti/test.txt" in str(error.value)


def test_a_file_that_is_no_image_is_named(root):
    (root / "vtab1k/kitti/images/test/000002.png").write_bytes(b"not an image")
    with pytest.raises(AtlasError, match="not a readable image") as error:
        load(root).test.inputs.read(2)
    assert "000002.png" in str(error.value)


def test_the_fingerprint_is_of_the_files_content(root, tmp_path):
    first = load(root)
    copy = write(tmp_path / "other" / "vtab1k" / "kitti").parents[1]
    assert load(copy).fingerprint == first.fingerprint
    Image.new("RGB", (6, 4), (9, 9, 9)).save(copy / "vtab1k/kitti/images/test/000000.png")
    assert load(copy).fingerprint != first.fingerprint


def test_a_digest_decodes_nothing_and_depends_on_the_order(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    assert Files(tmp_path, ["a", "b"]).digest() != Files(tmp_path, ["b", "a"]).digest()


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [("imagenet", 0.485, 0.229), ("inception", 0.5, 0.5), ("none", 0.0, 1.0)],
)
def test_normalisation_and_resampling_are_part_of_the_protocol(name, mean, std):
    protocol = suite.protocol("dtd", {"normalisation": name, "resample": "bilinear"})
    facts = suite.facts("dtd", protocol)
    assert (facts.mean[0], facts.std[0], facts.resample) == (mean, std, "bilinear")
    assert protocol["normalisation_version"] == 1


def test_unknown_normalisation_is_refused_with_the_known_ones():
    with pytest.raises(AtlasError, match="there are imagenet, inception, none") as error:
        suite.protocol("dtd", {"normalisation": "imagnet"})
    assert "protocol.vtab1k.normalisation" in str(error.value)


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A hub cache that holds kitti, one folder down, and no other task."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def found(hub_id, *, repo_type, revision, local_files_only):
        assert (hub_id, repo_type, local_files_only) == ("XiN0919/VTAB-1k", "dataset", True)
        if revision != "main":
            raise LocalEntryNotFoundError("nothing")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", found)
    return write(tmp_path / "vtab-1k" / "kitti")


def test_without_a_data_root_the_hubs_cache_is_read(snapshot):
    data = load(None)
    assert len(data.test) == 5 and data.source == "XiN0919/VTAB-1k@main"


@pytest.mark.parametrize(("task", "options"), [("kitti", {"revision": "other"}), ("dtd", {})])
def test_what_is_not_in_the_cache_is_to_be_fetched(snapshot, task, options):
    with pytest.raises(AtlasError, match="cache") as error:
        load(None, task, **options)
    assert "snakemake fetch --config grid=" in str(error.value)


def test_fetch_is_told_the_folders_of_the_task():
    (source,) = suite.sources("cifar", suite.protocol("cifar"))
    assert (source.hub_id, source.revision) == ("XiN0919/VTAB-1k", "main")
    assert {"cifar/*", "cifar100/*"} <= set(source.files)
