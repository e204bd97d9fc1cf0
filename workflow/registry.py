"""Which methods, suites and models there are. Methods are read from their source, so nothing heavy is imported."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType

from workflow import names, source
from workflow.errors import AtlasError
from workflow.source import ClassSource, Setting, Source

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class MethodInfo:
    """What is known of a method without importing it. `error` says why a broken one cannot be used, else None.

    settings: name -> default and annotation, in order; source: the parsed file, absent where it does not parse.
    """

    name: str
    path: Path
    family: str = ""
    title: str = ""
    paper: str = ""
    kinds: tuple[str, ...] = ()
    mergeable: bool = False
    identity_at_init: bool = False
    requires: tuple[str, ...] = ()
    recipe: dict = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)
    class_name: str = ""
    source: Source | None = field(default=None, repr=False)
    error: str | None = None

    @property
    def digest(self) -> str:
        """sha256 of what the plugin's code means: comments, docstrings and layout do not count. '' where broken."""
        return self.source.digest if self.source else ""

    @property
    def doc(self) -> str:
        """The file's docstring, or ''."""
        return (ast.get_docstring(self.source.tree) if self.source else None) or ""


def methods(extra: Sequence[Path] = (), root: Path = ROOT) -> dict[str, MethodInfo]:
    """Every method by name: plugin files below `root/methods`, then below each folder of `extra`.

    A file that cannot be read as a plugin is listed with its error, under the name it seems to give, else its stem.
    Files are read each time, and parsed again when one of them has changed.
    """
    asked = (root, *extra)
    texts = {path: _content(path) for folder in (root / "methods", *extra) for path in _python_files(folder)}
    if asked not in _found or _found[asked][0] != texts:
        _found[asked] = texts, _discover(extra, root)
    return dict(_found[asked][1])


_found: dict[tuple[Path, ...], tuple[dict[Path, bytes | None], dict[str, MethodInfo]]] = {}


def _discover(extra: Sequence[Path], root: Path) -> dict[str, MethodInfo]:
    source.read.cache_clear()
    found: dict[str, MethodInfo] = {}
    taken: dict[str, MethodInfo] = {}  # by name without regard to case, as some file systems see it
    for path in _plugin_files(extra, root):
        info = read_method(path, root)
        if other := taken.get(info.name.casefold()):
            error = f"the name '{info.name}' is taken by {other.path}"
            name = path.stem if path.stem.casefold() not in taken else f"{path.parent.name}/{path.stem}"
            info = MethodInfo(name=name, path=path, error=error)
        found[info.name] = taken[info.name.casefold()] = info
    return found


def _python_files(folder: Path) -> list[Path]:
    return sorted(Path(folder).rglob("*.py"))


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _plugin_files(extra: Sequence[Path], root: Path) -> Iterator[Path]:
    for folder in (root / "methods", *extra):
        for path in _python_files(folder):
            parts = path.relative_to(folder).parts
            if parts[0] != "base" and not any(part.startswith(("_", ".")) for part in parts):
                yield path


def read_method(path: Path, root: Path = ROOT) -> MethodInfo:
    """The method in one file, wherever it lies; with its error if it cannot be read."""
    try:
        text = source.read(path, root)
        return _describe(text, _plugin_class(text))
    except SyntaxError as problem:
        error = f"SyntaxError: {problem.msg} ({Path(problem.filename).name}, line {problem.lineno})"
    except (ValueError, OSError, RecursionError) as problem:
        error = str(problem)
    return MethodInfo(name=_name_in_text(path), path=path, error=error)


def _plugin_class(text: Source) -> ClassSource:
    named = [cls for cls in text.classes.values() if isinstance(cls.own.get("name"), str)]
    if not named:
        raise ValueError('no class in this file has a literal name = "..."')
    if len(named) > 1:
        raise ValueError(f"one method a file, but {' and '.join(cls.node.name for cls in named)} are both named")
    return named[0]


def _describe(text: Source, cls: ClassSource) -> MethodInfo:
    doc = ast.get_docstring(text.tree) or ""
    text.check()
    if not names.is_part(cls.own["name"]):
        raise ValueError(f"the name {cls.own['name']!r} cannot be part of a path: {names.RULE}")
    settings = cls.nested("Settings")
    values = {
        "family": cls.attribute("family") or text.path.parent.name,
        "title": cls.attribute("title") or next(iter(doc.splitlines()), ""),
        "paper": cls.attribute("paper") or "",
        "kinds": tuple(cls.attribute("kinds") or ()),
        "mergeable": bool(cls.attribute("mergeable")),
        "identity_at_init": bool(cls.attribute("identity_at_init")),
        "requires": tuple(cls.attribute("requires") or ()),
        "recipe": cls.attribute("recipe") or {},
    }
    return MethodInfo(
        name=cls.own["name"],
        path=text.path,
        settings=settings.fields() if settings else {},
        class_name=cls.node.name,
        source=text,
        **values,
    )


def missing_package(info: MethodInfo) -> str | None:
    """A package that the plugin imports at its top and that is not installed here, found without importing anything."""
    packages = {module.split(".")[0] for module in info.source.modules} if info.source else ()
    return next((name for name in sorted(packages) if not _installed(name)), None)


@cache
def _installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _name_in_text(path: Path) -> str:
    """The name that a file which does not parse seems to give its method, else its stem."""
    try:
        match = re.search(r"""^\s+name\b[^=\n]*=\s*["']([\w.-]+)["']""", path.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else path.stem


def load_method(info: MethodInfo) -> type:
    """Import the plugin and return its class. Whatever goes wrong becomes an AtlasError that names the file."""
    if info.error:
        raise AtlasError(f"method '{info.name}' is broken: {info.error}", file=info.path, mend="mend the plugin file")
    try:
        return getattr(_import(info.path, ROOT), info.class_name)
    except Exception as problem:  # a plugin may fail in any way at import
        mend = f"pip install {' '.join(info.requires)}" if info.requires else "mend the plugin file"
        message = f"method '{info.name}' cannot be imported: {type(problem).__name__}: {problem}"
        raise AtlasError(message, file=info.path, mend=mend) from problem


def _import(path: Path, root: Path) -> ModuleType:
    """A module by its dotted name where it lies in the project (so that classes are shared), else by its path."""
    if path.is_relative_to(root):
        return importlib.import_module(".".join(path.relative_to(root).with_suffix("").parts))
    name = "atlas_" + re.sub(r"\W", "_", str(path.with_suffix("")))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


@dataclass(frozen=True)
class BrokenSuite:
    """A suite file that cannot be imported: it has no tasks, and `error` says why."""

    name: str
    path: Path
    error: str
    title: str = ""
    tasks: dict = field(default_factory=dict)


@cache
def suites(root: Path = ROOT) -> dict:
    """Every suite by name, from the module-level `suite` of each file in `root/tasks` (not base, metrics or _names)."""
    found = {}
    for path in sorted((root / "tasks").glob("*.py")):
        if path.stem in ("base", "metrics") or path.stem.startswith("_"):
            continue
        try:
            suite = _import(path, ROOT).suite
        except Exception as problem:  # a suite file may fail in any way at import
            suite = BrokenSuite(path.stem, path, f"{type(problem).__name__}: {problem}")
        found[suite.name] = suite
    return found


def models(root: Path = ROOT) -> dict:
    """Every model entry by name, from `root/models/*.yaml`."""
    from models import entries

    return entries.models(root / "models")
