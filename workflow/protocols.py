"""The page of all suites and protocols, docs/protocols.md, and the lock that tells when a protocol has changed."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from tasks.base import Option, Protocol, Suite, TaskInfo
from workflow import registry, source
from workflow.errors import AtlasError

PAGE = registry.ROOT / "docs" / "protocols.md"
LOCK = registry.ROOT / "tests" / "protocols.lock.json"
INTRODUCTION = """# Suites and protocols

Made from the suite files by `python -m workflow protocols --write`; edit those, not this page. [suites.md](suites.md)
says what the words mean, where data comes from and what a protocol's version is for. The first protocol of a suite is
its default; a grid picks another, and sets options, under `protocol:`. The primary metric, that of the tables, is in
bold; `length` is where examples are cut, `answer` how much is generated at most, `chosen by` the metric that chooses on
validation data where that is not the primary one.
"""
LONGEST_LABELS = 6  # more of them are counted, not listed
COMMAND = "python -m workflow protocols --lock"
NO_NUMBERS = frozenset({"title", "group", "chance", "demo", "ranked"})  # facts that only tables and pages show


# -- the page


def write() -> Path:
    """Write docs/protocols.md and return its path."""
    PAGE.write_text(page())
    return PAGE


def page(suites: Mapping[str, Suite] | None = None) -> str:
    """The page in Markdown, one section a suite."""
    suites = _readable(registry.suites() if suites is None else suites)
    return "\n".join([INTRODUCTION, *(_section(suite) for suite in suites.values())])


def _readable(suites: Mapping[str, Any]) -> Mapping[str, Suite]:
    for suite in suites.values():
        if isinstance(suite, registry.BrokenSuite):
            message = f"suite '{suite.name}' is broken: {suite.error}"
            raise AtlasError(message, file=suite.path, mend="mend the suite file")
    return suites


def _section(suite: Suite) -> str:
    demo = ", demo" if suite.demo else ""
    rows = [_facts(info) for info in suite.tasks.values()]
    own = [name for name in rows[0] if len(rows) == 1 or len({row[name] for row in rows}) > 1]
    common = [f"{name} {value}" for name, value in rows[0].items() if name not in own and value]
    return "\n".join(
        [
            f"## {suite.title} (`{suite.name}`, version {suite.version}{demo})\n",
            *([f"All tasks: {'; '.join(common)}.\n"] if common else []),
            _table([{name: row[name] for name in own if any(row[name] for row in rows)} for row in rows]),
            *_recipes(suite),
            *(part for protocol in suite.protocols for part in _protocol(suite, protocol)),
        ]
    )


def _facts(info: TaskInfo) -> dict[str, str]:
    """A row of the table of tasks, from which what all tasks have in common is then taken out."""
    labels = ", ".join(info.labels) if len(info.labels) <= LONGEST_LABELS else f"{len(info.labels)} classes"
    length = f"{info.max_length} tokens" if info.max_length else ""
    answer = f"{info.new_tokens} tokens" if info.new_tokens else ""
    return {
        "task": f"`{info.name}`",
        "title": info.title,
        "kind": info.kind if info.modality == "text" else f"{info.kind} ({info.modality})",
        "group": info.group,
        "fields": ", ".join(info.fields),
        "labels": labels,
        "metrics": ", ".join(f"**{name}**" if name == info.primary else name for name in info.metrics),
        "chosen by": info.select or "",
        "chance": "" if info.chance is None else f"{info.chance:.3g}",
        "length": length,
        "answer": answer,
        "parts": ", ".join(info.parts),
        "headline": (info.headline if info.parts else ""),
        "contaminated": ", ".join(info.contaminated),
        "in means": "" if info.ranked else "no",
    }


def _recipes(suite: Suite) -> Iterator[str]:
    """The suite's own recipe defaults, tasks with the same ones together."""
    tasks: dict[str, list[str]] = {}
    for task in suite.tasks:
        recipe = ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in suite.recipe(task).items())
        tasks.setdefault(recipe, []).append(task)
    lines = [
        f"- {'all tasks' if len(tasks) == 1 else ', '.join(names)}: {recipe or 'none'}"
        for recipe, names in tasks.items()
    ]
    if any(tasks):
        yield "\n".join(["Recipe defaults:\n", *lines, ""])


def _protocol(suite: Suite, protocol: Protocol) -> Iterator[str]:
    yield f"### `{suite.name}`: protocol `{protocol.name}`, version {protocol.version}\n"
    if protocol.text:
        yield protocol.text.strip() + "\n"
    checkpoint = {"selected": "selected on validation data", "last": "at the end of training"}[protocol.report]
    yield f"The tables show the checkpoint {checkpoint} (`report: {protocol.report}`).\n"
    if protocol.options:
        yield _table([_option(name, option) for name, option in protocol.options.items()])
    if changed := _changed(suite, protocol):
        yield "\n".join(["Facts that differ from the table of tasks:\n", *changed, ""])


def _option(name: str, option: Option) -> dict[str, str]:
    return {"option": f"`{name}`", "default": f"`{json.dumps(option.default)}`", "values": str(option)}


def _changed(suite: Suite, protocol: Protocol) -> list[str]:
    """What `facts` changes under the protocol's defaults, a line for each change with its tasks."""
    tasks: dict[str, list[str]] = {}
    for task, info in suite.tasks.items():
        facts = suite.facts(task, suite.protocol(task, {"name": protocol.name}))
        for field in fields(info):
            if (value := getattr(facts, field.name)) != getattr(info, field.name):
                tasks.setdefault(f"`{field.name}`: {_value(value)}", []).append(task)
    everywhere = len(suite.tasks)
    return [
        f"- {'all tasks' if len(names) == everywhere else ', '.join(names)}: {change}"
        for change, names in tasks.items()
    ]


def _value(value: object) -> str:
    if isinstance(value, tuple) and len(value) > LONGEST_LABELS:
        return f"{len(value)} values"
    return (", ".join(map(str, value)) if isinstance(value, tuple) else str(value)) or "none"


def _table(rows: list[dict[str, str]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


# -- the lock


def lock(same_numbers: bool = False, path: Path = LOCK, suites: Mapping[str, Suite] | None = None) -> list[str]:
    """Record every protocol as it is now; returns a line for each change of the record.

    Raises AtlasError where a protocol has changed under its old version, unless `same_numbers` says that this moves
    no number, and where a version went back.
    """
    recorded, current = _recorded(path), snapshot(suites)
    stale = [name for name in current if name in recorded and _unversioned(recorded[name], current[name])]
    if stale and not same_numbers:
        raise AtlasError(
            f"changed under the version that is recorded: {', '.join(stale)}",
            file=path,
            mend="bump their versions; or, if no number moves (a refactoring), add --same-numbers",
        )
    changes = [problem.partition(":")[0] for problem in problems(recorded, current)]
    path.write_text(json.dumps(current, indent=1) + "\n")
    return changes


def check(path: Path = LOCK, suites: Mapping[str, Suite] | None = None) -> list[str]:
    """What keeps the lock from being up to date, with the mend, one text a protocol; empty if it is."""
    return problems(_recorded(path), snapshot(suites))


def problems(recorded: Mapping[str, dict], current: Mapping[str, dict]) -> list[str]:
    """The differences between two snapshots, each as `SUITE/PROTOCOL: what is the matter and the mend`."""
    found = [f"{name}: it is recorded and gone; run `{COMMAND}`" for name in recorded if name not in current]
    for name, now in current.items():
        before = recorded.get(name)
        if before is None:
            found.append(f"{name}: it is not recorded; run `{COMMAND}`")
        elif _unversioned(before, now):
            found.append(
                f"{name}: it has changed and its version ({_version(now)}) has not: bump the version of protocol "
                f"'{now['protocol']}' in {now['file']}, then run `{COMMAND}`; or if it is a refactoring that moves no "
                f"number, run `{COMMAND} --same-numbers`"
            )
        elif before != now:
            found.append(f"{name}: version {_version(now)} is not recorded; run `{COMMAND}`")
    return found


def _unversioned(before: dict, now: dict) -> bool:
    """Whether the content differs and no version rose."""
    return before["digest"] != now["digest"] and _version(now) <= _version(before)


def _version(record: dict) -> tuple[int, int]:
    return record["suite_version"], record["version"]


def _recorded(path: Path) -> dict[str, dict]:
    return json.loads(path.read_text()) if path.is_file() else {}


def snapshot(suites: Mapping[str, Suite] | None = None) -> dict[str, dict]:
    """Version and content digest of every protocol, by `SUITE/PROTOCOL`."""
    suites = _readable(registry.suites() if suites is None else suites)
    return {
        f"{suite.name}/{protocol.name}": {
            "protocol": protocol.name,
            "file": f"tasks/{_file(suite).name}",
            "suite_version": suite.version,
            "version": protocol.version,
            "digest": _digest(suite, protocol),
        }
        for suite in suites.values()
        for protocol in suite.protocols
    }


def _file(suite: Suite) -> Path:
    import inspect

    return Path(inspect.getfile(type(suite)))


def _digest(suite: Suite, protocol: Protocol) -> str:
    """sha256 (hex) of what can move a number: facts, options, report, recipes, and the code of the suite."""
    tasks = {}
    for task in suite.tasks:
        resolved = suite.protocol(task, {"name": protocol.name})
        resolved = {name: value for name, value in resolved.items() if name not in ("version", "suite_version")}
        facts = {k: v for k, v in asdict(suite.facts(task, resolved)).items() if k not in NO_NUMBERS}
        tasks[task] = [facts, suite.recipe(task), suite.start(task, resolved)]
    options = {name: asdict(replace(option, type=option.type.__name__)) for name, option in protocol.options.items()}
    content = [protocol.report, options, tasks, code_digest(_file(suite))]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# -- the code of a suite


def code_digest(path: Path) -> str:
    """sha256 (hex) of the code that loads, prompts and extracts, whatever its comments, docstrings and layout.

    It covers the suite's file, the modules and packages of tasks/ that it imports, at any depth, with the data files
    of those packages, and the functions of tasks/base.py that it imports. Metrics and the contract's classes are not
    covered, and neither is the text of a protocol.
    """
    pieces, functions, waiting, seen = [], set(), [path], set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        if file.suffix != ".py":
            pieces.append(hashlib.sha256(file.read_bytes()).hexdigest())
            continue
        tree = ast.parse(file.read_bytes(), filename=str(file))
        pieces.append(source.canonical(_without_text(tree) if file == path else tree))
        for module, names in _imports(tree, file, path.parent):
            if module == "base":
                functions.update(names)
            elif module and module != "metrics":
                waiting += _module_files(path.parent, module, names)
    pieces += _base_functions(functions)
    return hashlib.sha256("\n".join(sorted(pieces)).encode()).hexdigest()


def _imports(tree: ast.Module, file: Path, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(dotted module below tasks/, names) of every import, `from tasks import x` being module x."""
    inside = ["tasks", *file.relative_to(folder).parts[:-1]]
    for node in source.import_statements(tree):
        if isinstance(node, ast.Import):
            found = [(alias.name, []) for alias in node.names]
        else:
            start = inside[: len(inside) - node.level + 1] if node.level else []
            module = ".".join([*start, *filter(None, [node.module])])
            names = [alias.name for alias in node.names]
            found = [(f"tasks.{name}", []) for name in names] if module == "tasks" else [(module, names)]
        for module, names in found:
            if module.startswith("tasks."):
                yield module.removeprefix("tasks."), names


def _module_files(folder: Path, module: str, names: list[str]) -> list[Path]:
    """The files of a module; of a package its own, the submodules among the names, and all its data files."""
    stem = folder.joinpath(*module.split("."))
    if stem.with_suffix(".py").is_file():
        return [stem.with_suffix(".py"), *_data_files(stem.parent, folder)]
    submodules = [stem / f"{name}.py" for name in names]
    return [path for path in (stem / "__init__.py", *submodules) if path.is_file()] + _data_files(stem, folder)


def _data_files(package: Path, folder: Path) -> list[Path]:
    if package == folder:
        return []
    return [p for p in sorted(package.rglob("*")) if p.is_file() and p.suffix not in (".py", ".pyc")]


def _base_functions(names: set[str]) -> list[str]:
    """The functions of tasks/base.py with these names, and those that they call there."""
    tree = ast.parse(Path(registry.ROOT, "tasks", "base.py").read_bytes())
    known = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    waiting, found = names & known.keys(), {}
    while waiting:
        name = waiting.pop()
        found[name] = source.canonical(known[name])
        waiting |= (_read_names(known[name]) & known.keys()) - found.keys()
    return list(found.values())


def _without_text(tree: ast.Module) -> ast.Module:
    """The tree without the text of protocols, and without the module's constants that nothing else reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Protocol":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "text"]
    while unread := [node for node in tree.body if _is_unread(node, _read_names(tree))]:
        tree.body = [node for node in tree.body if node not in unread]
    return tree


def _is_unread(node: ast.stmt, read: set[str]) -> bool:
    names = node.targets if isinstance(node, ast.Assign) else []
    return bool(names) and all(isinstance(target, ast.Name) and target.id not in read for target in names)


def _read_names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
