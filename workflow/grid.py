"""A grid: the YAML file of one study, checked, and expanded into its cells."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from workflow import documents, registry, settings, text, versions
from workflow.cells import KEY_DIGITS, Cell
from workflow.documents import join
from workflow.errors import AtlasError, suggest
from workflow.names import RESERVED, RULE, is_part
from workflow.registry import MethodInfo

BASE_RECIPE = {
    "optimizer": "adamw",
    "lr": 1e-3,
    "head_lr": None,
    "weight_decay": 0.0,
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "schedule": "linear",
    "warmup": 0.06,
    "batch_size": 32,
    "micro_batch_size": None,
    "epochs": 3.0,
    "max_steps": None,
    "clip": 1.0,
    "evaluations": 5,
    "max_length": None,
    "dtype": "float32",  # in a grid: the model's own
    "gradient_checkpointing": False,
}
UNSAID = {"compile": False, "quantize": None}  # options that are in a cell's recipe only where they differ from this
_REAL = ("lr", "head_lr", "weight_decay", "eps", "warmup", "epochs", "clip")
MEASURES = ("accuracy", "parameters", "memory", "latency", "flops", "energy")
RETRY = ("oom", "timeout")
MOST_CELLS = 1_000_000
TOO_MANY = "sweep over fewer values, or split the grid"


@dataclass(frozen=True)
class Grid:
    """The cells of one study, in order and without repeats, and how to run them.

    broken: methods that the grid names and whose plugin cannot be read; their cells are left out.
    resources: what the grid fixes of a cell's `gpu`, `mem_mb` and `runtime` (minutes), and `gpu_mb`, one GPU's memory.
    methods: every plugin by name, as it was read for the cells' keys.
    """

    name: str
    path: Path
    title: str
    cells: tuple[Cell, ...]
    measure: tuple[str, ...] = MEASURES
    data_root: Path | None = None
    plugins: tuple[Path, ...] = ()
    retry: tuple[str, ...] = RETRY
    broken: list[MethodInfo] = field(default_factory=list)
    pack: int = 1
    demo: bool = False
    resources: dict[str, int] = field(default_factory=dict)
    methods: dict[str, MethodInfo] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _by_key(self) -> dict[str, list[Cell]]:
        """Cells by `grid_key`, which in a large grid two may share."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.grid_key, []).append(cell)
        return found

    def cell(self, key: str) -> Cell:
        """The cell with this key, written CONFIG_KEY/SEED (`1a2b3c4d/0`), if need be with what stands before the key in
        its result's path (`glue/sst2/minilm-l6/lora-1a2b3c4d/0`)."""
        name, _, seed = key.rpartition("/")
        found = self._by_key.get(f"{name[-KEY_DIGITS:]}/{seed}", [])
        if len(name) > KEY_DIGITS:
            found = [cell for cell in found if cell.configuration == name]
        if not found:
            mend = (
                "`python -m workflow list cells --grid FILE` shows the keys; editing a plugin or the grid changes them"
            )
            raise AtlasError(f"the grid has no cell '{key}'", file=self.path, mend=mend)
        if len(found) > 1:
            longer = " or ".join(f"{cell.configuration}/{seed}" for cell in found)
            raise AtlasError(f"'{key}' is the key of {len(found)} cells", file=self.path, mend=f"write {longer}")
        return found[0]

    def start(self, cell: Cell) -> Cell | None:
        """The cell that this one continues from."""
        same = (cell.suite, cell.model, cell.method)
        found = self._by_key[cell.start_key] if cell.start else []
        return next((other for other in found if (other.suite, other.model, other.method) == same), None)


def load(path: Path | str, overrides: dict | None = None, root: Path = registry.ROOT) -> Grid:
    """Read a grid and expand it. `overrides` replace top-level keys; `root` holds methods/, tasks/ and models/.

    Raises AtlasError with file, key and mend for anything misspelt, of the wrong type or out of range.
    """
    return _Expansion(Path(path), overrides or {}, root).grid()


@dataclass(frozen=True)
class _Entry:
    """One configuration of a method, and the cells it is for."""

    info: MethodInfo
    label: str
    settings: dict
    recipe: dict
    seeds: list[int]
    tasks: list[tuple[str, str]]
    models: list[str] | None  # None: those that the grid gives for the task's suite
    division: str
    source: str | None
    key: str


class _Expansion:
    """The steps from a file to its cells, with what they all need: the file's name for errors, and the registries."""

    def __init__(self, path: Path, overrides: dict, root: Path):
        self.path = path
        self.document = documents.read_yaml(path) | overrides
        documents.check(self.document, "grid", file=path)
        self.plugins = tuple(self._folder(i, name) for i, name in enumerate(self.document.get("plugins", [])))
        self.methods = registry.methods(self.plugins, root)
        self.suites = registry.suites(root)
        self.models = registry.models(root)
        self.broken: dict[str, MethodInfo] = {}
        self.defaults: dict[tuple[str, str], tuple[dict, dict]] = {}

    def grid(self) -> Grid:
        document = self.document
        self.tasks = list(self._tasks())
        self.seeds = document.get("seeds", [0])
        named = list(self.methods) if document["methods"] == "all" else document["methods"]
        entries = [entry for i, item in enumerate(named) for entry in self._entries(item, i)]
        tasks = dict.fromkeys(itertools.chain(self.tasks, *(entry.tasks for entry in entries)))
        self.task_models = self._task_models(tasks, document["models"])
        self.overrides = [self._override(rule, i) for i, rule in enumerate(document.get("overrides", []))]
        cells: dict[tuple[str, int], Cell] = {}
        for cell in self._cells(entries):
            known = cells.setdefault((cell.configuration, cell.seed), cell)
            if known is not cell and not known.same_numbers(cell):
                mend = "change a value of one of them that does not matter, such as `evaluations`"
                both = f"{known.label} and {cell.label} have the key {cell.config_key} by chance"
                raise self._error(both, "methods", mend)
            if len(cells) > MOST_CELLS:
                raise self._error(f"the grid has more than {MOST_CELLS:,} cells", "methods", TOO_MANY)
        name = self._name(document)
        data_root = document.get("data_root")
        return Grid(
            name=name,
            path=self.path,
            title=self._line(document.get("title", name), "title"),
            cells=tuple(cells.values()),
            measure=tuple(document.get("measure", MEASURES)),
            data_root=Path(data_root) if data_root else None,
            plugins=self.plugins,
            retry=tuple(document.get("retry", RETRY)),
            broken=list(self.broken.values()),
            pack=document.get("pack", 1),
            demo=all(self.suites[suite].demo for suite, _ in self.tasks),
            resources=document.get("resources", {}),
            methods=self.methods,
        )

    def _name(self, document: dict) -> str:
        """The grid's name, that of its folder below results/."""
        name = document.get("name", self.path.stem)
        if not is_part(name):
            raise self._error(f"{name!r} cannot be the name of a folder", "name", f"give `name:` {RULE}")
        if name.casefold() in RESERVED:
            raise self._error(f"results/{name} is not a grid's", "name", "give `name:` another word")
        return name

    def _line(self, shown: str, key: str) -> str:
        if not text.is_line(shown):
            mend = f"give one line of visible characters, {text.LINE} at most"
            raise self._error(f"{shown[: text.LINE]!r} cannot be shown", key, mend)
        return shown

    def _error(self, message: str, key: str, mend: str) -> AtlasError:
        return AtlasError(message, file=self.path, key=key, mend=mend)

    def _known(self, name: str, known: dict, kind: str, key: str) -> str:
        if name not in known:
            raise self._error(f"unknown {kind} '{name}'", key, suggest(name, known))
        return name

    def _folder(self, index: int, name: str) -> Path:
        """A folder of plugins: relative to the working directory, else to the grid file."""
        for folder in (Path(name), self.path.parent / name):
            if folder.is_dir():
                return folder.resolve()
        raise self._error(f"no folder '{name}'", join("plugins", index), "give a folder that holds method files")

    def _model_names(self, names: list[str], key: str) -> list[str]:
        return [self._known(name, self.models, "model", join(key, i)) for i, name in enumerate(names)]

    def _task_models(
        self, tasks: dict[tuple[str, str], None], given: list[str] | dict[str, list[str]]
    ) -> dict[tuple[str, str], list[str]]:
        """The models of each task: the same for all, or those given for `suite/task`, else for its suite."""
        if isinstance(given, list):
            return dict.fromkeys(tasks, self._model_names(given, "models"))
        known = dict.fromkeys(name for suite, task in tasks for name in (suite, f"{suite}/{task}"))
        for name in given:
            self._known(name, known, "suite of this grid:", join("models", name))
        found = {}
        for suite, task in tasks:
            name = next((name for name in (f"{suite}/{task}", suite) if name in given), None)
            if name is None:
                raise self._error(f"no models for suite '{suite}'", "models", f"add {suite}: [MODEL, ...]")
            found[suite, task] = self._model_names(given[name], join("models", name))
        return found

    # -- tasks and protocols

    def _tasks(self) -> Iterator[tuple[str, str]]:
        for suite, names in self.document["tasks"].items():
            key = join("tasks", suite)
            self._suite(suite, key)
            for i, task in enumerate(self.suites[suite].tasks if names == "all" else names):
                self._known(task, self.suites[suite].tasks, f"task of suite '{suite}':", join(key, i))
                yield suite, task

    def _suite(self, name: str, key: str) -> None:
        suite = self.suites[self._known(name, self.suites, "suite", key)]
        if error := getattr(suite, "error", None):
            raise AtlasError(f"suite '{name}' is broken: {error}", file=suite.path, mend="mend the suite file")

    def _entry_task(self, text: str, key: str) -> tuple[str, str]:
        suite, _, task = text.partition("/")
        if not task:
            raise self._error(f"'{text}' is no task", key, "write suite/task, for example glue/sst2")
        self._suite(suite, key)
        return suite, self._known(task, self.suites[suite].tasks, f"task of suite '{suite}':", key)

    def _protocol(self, suite: str, task: str) -> dict:
        options = self.document.get("protocol", {}).get(suite, {})
        try:
            return self.suites[suite].protocol(task, options)
        except AtlasError as problem:
            key = problem.key or join("protocol", suite)
            raise self._error(problem.message, key, problem.mend or "see the suite's file") from problem

    def _defaults(self, suite: str, task: str) -> tuple[dict, dict]:
        """The resolved protocol of a task, and its recipe before method and grid change it."""
        if (suite, task) not in self.defaults:
            recipe = self._recipe(self.suites[suite].recipe(task), f"recipe of suite '{suite}'")
            self.defaults[suite, task] = self._protocol(suite, task), BASE_RECIPE | recipe
        return self.defaults[suite, task]

    # -- method entries

    def _entries(self, item: str | dict, index: int) -> Iterator[_Entry]:
        """The configurations of one item of `methods`: one, or one for each point of its `{grid: [...]}` values."""
        key = join("methods", index)
        item, settings_key = self._normal(item, key)
        info = self.methods[self._known(item["method"], self.methods, "method", key)]
        if info.error:
            self.broken[info.name] = info
            return
        tasks = self.tasks
        if "tasks" in item:
            tasks = [self._entry_task(name, join(key, "tasks", i)) for i, name in enumerate(item["tasks"])]
        entry = _Entry(
            info=info,
            label=item.get("label", info.name),
            settings={},
            recipe={},
            seeds=item.get("seeds", self.seeds),
            tasks=tasks,
            models=self._model_names(item["models"], join(key, "models")) if "models" in item else None,
            division=item.get("division", self.document.get("division", "author")),
            source=item.get("source"),
            key=key,
        )
        parts = {part: item.get(part, {}) for part in ("settings", "recipe")}
        values = {(part, name): value for part, given in parts.items() for name, value in given.items()}
        points = math.prod(len(value["grid"]) for value in values.values() if _is_sweep(value))
        if points > MOST_CELLS:
            raise self._error(f"this stands for {points:,} configurations", key, TOO_MANY)
        shown = [place for place, value in values.items() if _is_sweep(value) or "label" not in item]
        for point in _points(values):
            chosen = {name: value for (part, name), value in point.items() if part == "settings"}
            trained = {name: value for (part, name), value in point.items() if part == "recipe"}
            yield replace(
                entry,
                label=self._line(" ".join([entry.label, *(f"{at[1]}={_short(point[at])}" for at in shown)]), key),
                settings=self._settings(info, chosen, settings_key),
                recipe=self._recipe(trained, join(key, "recipe")),
            )

    def _normal(self, item: str | dict, key: str) -> tuple[dict, str]:
        """An item in its long form, and the key path of its settings."""
        if isinstance(item, str):
            return {"method": item}, key
        if "method" not in item:
            if len(item) != 1 or not isinstance(next(iter(item.values())) or {}, dict):
                mend = "write `- lora`, `- lora: {rank: 8}` or `- {method: lora, settings: {rank: 8}, ...}`"
                raise self._error("this is no method entry", key, mend)
            name, given = next(iter(item.items()))
            return {"method": str(name), "settings": given or {}}, join(key, str(name))
        documents.check(item, "grid", "entry", file=self.path, key=key)
        return item, join(key, "settings")

    def _settings(self, info: MethodInfo, given: dict, key: str) -> dict:
        """All settings of a method; those of a wrapper name a method `base`, whose own settings are checked too."""
        resolved = settings.resolve(info, given, file=self.path, key=key)
        if "base" in resolved and "base_settings" in info.settings:
            base = self.methods[self._known(resolved["base"], self.methods, "method", join(key, "base"))]
            inner = resolved["base_settings"] or {}
            resolved["base_settings"] = settings.resolve(base, inner, file=self.path, key=join(key, "base_settings"))
        return resolved

    def _plugin(self, info: MethodInfo, resolved: dict) -> str:
        """The digest of the code that a cell depends on: the method's, and that of the method it wraps."""
        base = self.methods.get(resolved["base"]) if "base_settings" in info.settings else None
        return hashlib.sha256((info.digest + base.digest).encode()).hexdigest() if base else info.digest

    def _recipe(self, recipe: dict, key: str, file: Path | None = None) -> dict:
        """A checked part of a recipe, with whole numbers as reals where reals belong (1 and 1.0 are one identity)."""
        documents.check(recipe, "grid", "recipe", file=file or self.path, key=key)
        return {k: float(v) if k in _REAL and v is not None else v for k, v in recipe.items()}

    # -- overrides

    def _override(self, rule: dict, index: int) -> tuple[dict[str, set[str]], dict, dict, str | None]:
        """(match, settings, recipe, source) of one override, its names checked."""
        key = join("overrides", index)
        tasks = {task: None for suite in self.suites.values() for task in suite.tasks}
        known = {"suite": self.suites, "task": tasks, "model": self.models, "method": self.methods}
        match = {}
        for kind, names in rule["match"].items():
            names = [names] if isinstance(names, str) else names
            match[kind] = {self._known(name, known[kind], kind, join(key, "match", kind)) for name in names}
        recipe = self._recipe(rule.get("recipe", {}), join(key, "recipe"))
        return match, rule.get("settings", {}), recipe, rule.get("source")

    def _overridden(self, entry: _Entry, suite: str, task: str, model: str) -> tuple[dict, dict, list[str]]:
        """Settings and recipe changes of the overrides that match, later ones winning, and their sources."""
        here = {"suite": suite, "task": task, "model": model, "method": entry.info.name}
        changed, recipe, sources = {}, {}, []
        for i, (match, new_settings, new_recipe, source) in enumerate(self.overrides):
            if all(here[kind] in names for kind, names in match.items()):
                settings.check(entry.info, new_settings, file=self.path, key=join("overrides", i, "settings"))
                changed |= new_settings
                recipe |= new_recipe
                sources += [source] if source else []
        return changed, recipe, sources

    # -- cells

    def _cells(self, entries: list[_Entry]) -> Iterator[Cell]:
        """Cells by task, then model, then method, then seed: neighbours share data and backbone.

        The cells that others continue from come first, whether or not the grid names their task.
        """
        self.grid_recipe = self._recipe(self.document.get("recipe", {}), "recipe")
        self.method_recipes = {e.info.name: self._recipe(e.info.recipe, "recipe", e.info.path) for e in entries}
        named = (*self.task_models.values(), *(entry.models or () for entry in entries))
        models = dict.fromkeys(itertools.chain(*named))
        for (suite, task), model, entry in itertools.product(self.task_models, models, entries):
            if (suite, task) not in entry.tasks or not self._model_runs(entry, (suite, task), model):
                continue
            cell = self._cell(entry, suite, task, model)
            if start := self._start(entry, cell):
                yield from map(start.with_seed, entry.seeds)
                cell = replace(cell, start=start.config_key)
            yield from map(cell.with_seed, entry.seeds)

    def _model_runs(self, entry: _Entry, task: tuple[str, str], model: str) -> bool:
        """An entry's own models stand in the place of the grid's, but never for a task that has other models."""
        if entry.models is not None and isinstance(self.document["models"], list):
            return model in entry.models
        return model in self.task_models[task] and (entry.models is None or model in entry.models)

    def _cell(self, entry: _Entry, suite: str, task: str, model: str) -> Cell:
        """The cell of an entry on a task and model, with its first seed."""
        for kind, name in {"suite": suite, "task": task, "model": model}.items():
            if not is_part(name):
                raise self._error(f"{name!r} cannot be a {kind}'s name", f"{kind}s", f"use {RULE}")
        protocol, task_recipe = self._defaults(suite, task)
        new_settings, new_recipe, sources = self._overridden(entry, suite, task, model)
        chosen = entry.settings
        if new_settings:
            chosen = self._settings(entry.info, entry.settings | new_settings, entry.key)
        method_recipe = self.method_recipes[entry.info.name]
        backbone = self.models[model]
        if self.suites[suite].facts(task, protocol).cost_only:
            backbone = backbone.with_random_weights()
        elif backbone.source == "none":
            mend = "take another model; this one is there to be counted, and for the suite `cost`"
            raise self._error(f"model '{model}' has sizes and no weights", "models", mend)
        recipe = task_recipe | {"dtype": backbone.dtype} | method_recipe
        return Cell(
            suite=suite,
            task=task,
            model=model,
            method=entry.info.name,
            label=entry.label,
            division=entry.division,
            settings=chosen,
            recipe=_said(recipe | self.grid_recipe | entry.recipe | new_recipe),
            seed=entry.seeds[0],
            protocol=protocol,
            model_revision=backbone.identity,
            plugin=self._plugin(entry.info, chosen),
            building_blocks=versions.BUILDING_BLOCKS,
            training_loop=versions.TRAINING_LOOP,
            source="; ".join(dict.fromkeys([entry.source, *sources] if entry.source else sources)) or None,
        )

    def _start(self, entry: _Entry, cell: Cell) -> Cell | None:
        """The cell that this one continues from: its own settings, trained by the recipe of the other task."""
        task = self.suites[cell.suite].start(cell.task, cell.protocol)
        if task is None:
            return None
        other = self._cell(entry, cell.suite, task, cell.model)
        return replace(other, settings=cell.settings, plugin=cell.plugin)


def _said(recipe: dict) -> dict:
    """A recipe without the options that ask for nothing."""
    return {name: value for name, value in recipe.items() if name not in UNSAID or value != UNSAID[name]}


def _is_sweep(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"grid"} and isinstance(value["grid"], list)


def _points(values: dict) -> Iterator[dict]:
    """Every combination of the values, where `{grid: [a, b]}` stands for a and b."""
    choices = [value["grid"] if _is_sweep(value) else [value] for value in values.values()]
    for combination in itertools.product(*choices):
        yield dict(zip(values, combination, strict=True))


def _short(value: object) -> str:
    """A value for a label: lists without brackets and quotes."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
