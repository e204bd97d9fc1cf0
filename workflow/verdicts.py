"""What the conformance checks last said of each plugin: `results/.conformance/<plugin>.json`, which reports show.

A verdict holds for the plugin file, the checks and the building blocks that it was made with. It is a memory of this
copy: it may be deleted at any time, and a file that cannot be read counts as none.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from workflow import names, source, versions
from workflow.files import replaced
from workflow.registry import MethodInfo
from workflow.text import plain

CHECKS = ("conformance.py", "toy.py")  # beside this file


@dataclass(frozen=True)
class Verdict:
    """`passed` and `skipped` count rules; `failed` has a line for each rule that failed. file, checks: digests."""

    plugin: str
    file: str
    checks: str
    date: str
    passed: int
    skipped: int
    failed: list[str] = field(default_factory=list)

    @property
    def conforms(self) -> bool:
        return not self.failed


def made(info: MethodInfo, passed: int, skipped: int, failed: list[str]) -> Verdict:
    """A verdict of now."""
    today = datetime.now(UTC).date().isoformat()
    return Verdict(info.name, digest_of_file(info), digest_of_checks(), today, passed, skipped, failed)


def write(verdict: Verdict, root: Path = Path(".")) -> Path:
    """Replaces the one before. Returns its path below `root`."""
    path = path_of(verdict.plugin, root)
    with replaced(path) as temporary:
        temporary.write_text(json.dumps(asdict(verdict), indent=1) + "\n")
    return path


def read(plugin: str, root: Path = Path(".")) -> Verdict | None:
    """None where there is none that can be read."""
    if not names.is_part(plugin):
        return None
    try:
        found = Verdict(**json.loads(path_of(plugin, root).read_text()))
        texts = (found.plugin, found.file, found.checks, found.date, *found.failed)
        if not all(isinstance(text, str) for text in texts) or found.plugin != plugin:
            return None
        counts = int(found.passed), int(found.skipped)
    except (OSError, ValueError, TypeError):
        return None
    return Verdict(*map(plain, texts[:4]), *counts, [plain(text) for text in texts[4:]])


def path_of(plugin: str, root: Path) -> Path:
    return Path(root) / "results" / ".conformance" / f"{plugin}.json"


def outdated(verdict: Verdict, info: MethodInfo) -> str:
    """What has changed since a verdict was made, or ''."""
    if not verdict.file or verdict.file != digest_of_file(info):
        return "the plugin file has changed"
    return "" if verdict.checks == digest_of_checks() else "the checks have changed"


def digest_of_file(info: MethodInfo) -> str:
    """sha256 of the plugin's file and of those of the plugins that it imports from, exemptions and docstring included;
    '' where one cannot be read."""
    total = hashlib.sha256()
    try:
        for path in (info.path, *(_imported(info.source, set()) if info.source else ())):
            total.update(hashlib.sha256(path.read_bytes()).digest())
    except OSError:
        return ""
    return total.hexdigest()


def _imported(plugin: source.Source, seen: set[Path]) -> Iterator[Path]:
    for other in plugin.plugins:
        if other.path not in seen:
            seen.add(other.path)
            yield other.path
            yield from _imported(other, seen)


@cache
def digest_of_checks() -> str:
    """sha256 of what the checks and the building blocks of methods mean: comments and docstrings do not count."""
    total = hashlib.sha256(str(versions.BUILDING_BLOCKS).encode())
    for name in CHECKS:
        tree = ast.parse((Path(__file__).parent / name).read_text())
        total.update(source.canonical(tree).encode())
    return total.hexdigest()
