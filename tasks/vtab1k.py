"""VTAB-1k: A Large-scale Study of Representation Learning with the Visual Task Adaptation Benchmark (Zhai et al., 2019,
arXiv:1910.04867), with 1,000 labelled images a task.

Read from the folders that the community passes around: `<folder>/{train800,val200,train800val200,test}.txt`, lines of
`path label`, with paths relative to `<folder>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tasks._images import Files
from tasks.base import Option, Protocol, Source, Split, Suite, TaskData, TaskInfo
from workflow.errors import AtlasError, suggest

HUB_ID, REVISION = "XiN0919/VTAB-1k", "main"
ROOTS = ("vtab1k", "vtab-1k")  # names of the folder of all tasks under a data root
LISTS = {"train800": 800, "val200": 200, "train800val200": 1000}  # list -> lines; test has the task's own number


@dataclass(frozen=True)
class Facts:
    """title, group, folder names (the first is the exporter's), classes, test images"""

    title: str
    group: str
    folders: tuple[str, ...]
    classes: int
    test: int


FACTS = {
    "cifar": Facts("CIFAR-100", "natural", ("cifar", "cifar100"), 100, 10_000),
    "caltech101": Facts("Caltech101", "natural", ("caltech101",), 102, 6_084),
    "dtd": Facts("DTD", "natural", ("dtd",), 47, 1_880),
    "oxford_flowers102": Facts("Flowers102", "natural", ("oxford_flowers102", "flowers102"), 102, 6_149),
    "oxford_iiit_pet": Facts("Pets", "natural", ("oxford_iiit_pet", "oxford_pet"), 37, 3_669),
    "svhn": Facts("SVHN", "natural", ("svhn",), 10, 26_032),
    "sun397": Facts("SUN397", "natural", ("sun397",), 397, 21_750),
    "patch_camelyon": Facts("Patch Camelyon", "specialized", ("patch_camelyon",), 2, 32_768),
    "eurosat": Facts("EuroSAT", "specialized", ("eurosat",), 10, 5_400),
    "resisc45": Facts("Resisc45", "specialized", ("resisc45",), 45, 6_300),
    "diabetic_retinopathy": Facts("Retinopathy", "specialized", ("diabetic_retinopathy",), 5, 42_670),
    "clevr_count": Facts("Clevr/count", "structured", ("clevr_count",), 8, 15_000),
    "clevr_dist": Facts("Clevr/distance", "structured", ("clevr_dist",), 6, 15_000),
    "dmlab": Facts("DMLab", "structured", ("dmlab",), 6, 22_735),
    "kitti": Facts("KITTI/distance", "structured", ("kitti",), 4, 711),
    "dsprites_loc": Facts("dSprites/location", "structured", ("dsprites_loc",), 16, 73_728),
    "dsprites_ori": Facts("dSprites/orientation", "structured", ("dsprites_ori",), 16, 73_728),
    "smallnorb_azi": Facts("smallNORB/azimuth", "structured", ("smallnorb_azi",), 18, 12_150),
    "smallnorb_ele": Facts("smallNORB/elevation", "structured", ("smallnorb_ele",), 9, 12_150),
}


def _task(name: str, facts: Facts) -> TaskInfo:
    return TaskInfo(
        suite="vtab1k",
        name=name,
        kind="classification",
        modality="image",
        fields=("image",),
        labels=tuple(map(str, range(facts.classes))),
        metrics=("accuracy",),
        primary="accuracy",
        max_length=0,
        title=facts.title,
        chance=1 / facts.classes,
        group=facts.group,
    )


@dataclass(frozen=True)
class Normalisation:
    """Bump `version` with any change of the numbers."""

    version: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


NORMALISATIONS = {
    "imagenet": Normalisation(1, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": Normalisation(1, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": Normalisation(1, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
RESAMPLES = ("bicubic", "bilinear")

OPTIONS = {
    "revision": Option(REVISION, str),
    "normalisation": Option("imagenet", str),
    "resample": Option("bicubic", str),
    "check_sizes": Option(True, bool),
}
OPTIONS_TEXT = """\
Images are brought to a square of the network's size, whatever their shape, without cropping or augmentation.
`resample` is `bicubic` or `bilinear`, both by Pillow, which smooths before it shrinks. `normalisation` is `imagenet`
(mean 0.485, 0.456, 0.406, deviation 0.229, 0.224, 0.225), `inception` (0.5 and 0.5, as several timm checkpoints want)
or `none` (0 to 1); it alone moves numbers, and published ones differ in it.

The lists and test sets must have the benchmark's numbers of lines; `check_sizes: false` takes cut copies. The
community's folders hold JPEG copies, also of sets that were PNG, so numbers are not strictly comparable with those of
pipelines on TFDS arrays. No commit of the hub's copy is pinned (`revision` is a branch): the fingerprint of the data in
a result, over lists and image files, says what was read.

Of the published recipe two things are not done: drop path 0.1, and the floor of the learning rate (1e-5; here the
cosine ends at 0).
"""

LAST_EPOCH = Protocol(
    name="last-epoch",
    version=1,
    report="last",
    options=OPTIONS,
    text=f"""\
Trains on all 1,000 images (`train800val200`) and tests on the full test set with the weights of the last epoch, once.
The validation split of the harness is `val200`, **which is part of the training images here**: its curve shows that
training works and nothing else; no checkpoint and no setting may be chosen by it. Settings are chosen under
`choose-on-val200`.

Many published tables report the best test accuracy over epochs; those numbers are higher and not comparable.

{OPTIONS_TEXT}""",
)
CHOOSE = Protocol(
    name="choose-on-val200",
    version=1,
    report="last",
    options=OPTIONS,
    text=f"""\
For choosing learning rates and settings: trains on `train800`, and `val200`, which it has not seen, is the validation
split. The choice is by validation accuracy at the last step; then `last-epoch` trains the chosen one on all 1,000
images. Test accuracy is taken too and says what 800 images give; it is not for choosing.

smallNORB's 200 validation images come from its official test set, of which another half is the test split.

{OPTIONS_TEXT}""",
)


class VTAB1k(Suite):
    name, title, version = "vtab1k", "VTAB-1k", 1
    tasks = {name: _task(name, facts) for name, facts in FACTS.items()}
    protocols = (LAST_EPOCH, CHOOSE)

    def protocol(self, task: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """As of every suite, with the version of the normalisation."""
        resolved = super().protocol(task, options)
        for option, known in (("normalisation", NORMALISATIONS), ("resample", RESAMPLES)):
            if resolved[option] not in known:
                raise AtlasError(
                    f"unknown {option} '{resolved[option]}', there are {', '.join(known)}",
                    key=f"protocol.{self.name}.{option}",
                    mend=suggest(resolved[option], known),
                )
        return resolved | {"normalisation_version": NORMALISATIONS[resolved["normalisation"]].version}

    def recipe(self, task: str) -> dict[str, Any]:
        """What NOAH, FacT, RepAdapter and Adapter+ share."""
        self.info(task)
        return {
            "optimizer": "adamw",
            "lr": 1e-3,
            "weight_decay": 1e-4,
            "batch_size": 64,
            "epochs": 100,
            "warmup": 0.1,
            "schedule": "cosine",
        }

    def facts(self, task: str, protocol: Mapping[str, Any]) -> TaskInfo:
        chosen = NORMALISATIONS[protocol["normalisation"]]
        return replace(self.info(task), mean=chosen.mean, std=chosen.std, resample=protocol["resample"])

    def sources(self, task: str, protocol: Mapping[str, Any]) -> list[Source]:
        return [Source(HUB_ID, None, protocol["revision"], files=_patterns(task))]

    def load(self, task: str, protocol: Mapping[str, Any], data_root: Path | None) -> TaskData:
        info = self.info(task)
        if data_root is not None:
            folder, source = _under(Path(data_root), task), str(data_root)
        else:
            folder, source = _snapshot(task, protocol["revision"]), f"{HUB_ID}@{protocol['revision']}"
        train = "train800" if protocol["name"] == CHOOSE.name else "train800val200"
        splits = [_split(folder, name, info, protocol["check_sizes"]) for name in (train, "val200", "test")]
        return TaskData.of(*splits, source=source)


def _patterns(task: str) -> tuple[str, ...]:
    """The files of a task in a repository, in a folder of their own or one further down."""
    return tuple(f"{above}{name}/*" for name in FACTS[task].folders for above in ("", "*/"))


def _under(data_root: Path, task: str) -> Path:
    """The task's folder under a data root."""
    tried = [data_root / root / name for root in ROOTS for name in FACTS[task].folders]
    for folder in tried:
        if folder.is_dir():
            return folder
    raise AtlasError(
        f"no folder of vtab1k/{task} under the data root; looked for {', '.join(str(path) for path in tried)}",
        file=tried[0],
        key="data_root",
        mend=f"the folder holds {', '.join(f'{name}.txt' for name in (*LISTS, 'test'))} and images/",
    )


def _snapshot(task: str, revision: str) -> Path:
    """The task's folder in the hub's local cache; nothing is downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    mend = (
        "run `snakemake fetch --config grid=FILE` where there is a network, or set `data_root: PATH` in the grid, "
        f"where PATH/vtab1k/{task} has the lists and the images"
    )
    where = f"{HUB_ID}@{revision}"
    try:
        root = Path(snapshot_download(HUB_ID, repo_type="dataset", revision=revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise AtlasError(f"vtab1k/{task} is not in the hub's cache", file=where, mend=mend) from error
    for name in FACTS[task].folders:
        for found in sorted([*root.glob(f"{name}/test.txt"), *root.glob(f"*/{name}/test.txt")]):
            return found.parent
    raise AtlasError(f"the hub's cache holds this repository without vtab1k/{task}", file=root, mend=mend)


def _split(folder: Path, name: str, info: TaskInfo, check_sizes: bool) -> Split:
    """The images of a list, in its order; ids are line numbers from 0."""
    path = folder / f"{name}.txt"
    try:
        lines = [line.rsplit(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise AtlasError(
            f"the list of '{name}' of {info.suite}/{info.name} cannot be read ({error.strerror})",
            file=path,
            mend="copy the task's folder again",
        ) from error
    for number, line in enumerate(lines, 1):
        if len(line) != 2 or not line[1].isdecimal():
            raise AtlasError(f"line {number} is not `path label`: {' '.join(line)!r}", file=path)
        if int(line[1]) >= len(info.labels):
            raise AtlasError(
                f"line {number} has label {line[1]}; {info.suite}/{info.name} has classes 0 to {len(info.labels) - 1}",
                file=path,
                mend="take the lists of this task",
            )
    expected = LISTS.get(name, FACTS[info.name].test)
    if not lines or (check_sizes and len(lines) != expected):
        raise AtlasError(
            f"expected {expected:,} images, found {len(lines):,}",
            file=path,
            mend=f"copy the whole list; for a cut copy set `protocol: {{{info.suite}: {{check_sizes: false}}}}`",
        )
    labels = np.array([int(label) for _, label in lines])
    return Split(Files(folder, [image for image, _ in lines]), labels, np.arange(len(lines)))


suite = VTAB1k()
