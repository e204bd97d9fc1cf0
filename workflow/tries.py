"""The tries of an unfinished cell: as its recipe says, then with half the micro-batch where memory did not suffice.

A process that the kernel kills for want of memory leaves no word. So each start is noted in the cell's state folder. A
note without an end tells the next start, which then goes over to the next try, so that no cell is killed for ever.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workflow.files import replaced

BOOT, KERNEL = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/vmstat")
SILENT = 2  # starts in a row that vanish and leave no newer checkpoint: memory is suspected where nothing tells
KILLED = "the process was killed, as the kernel does when memory runs out"


@dataclass
class Tries:
    """How the tries before this one ended (`ends`, sentences), and what is noted of the start that is running.

    silent: starts of this try in a row that vanished for a reason that cannot be known.
    """

    folder: Path
    ends: list[str] = field(default_factory=list)
    silent: int = 0
    running: dict[str, Any] | None = None

    @classmethod
    def of(cls, folder: Path) -> Tries:
        """From the note in a state folder, if there is one that can be read. A start that vanished is judged here."""
        found = cls(folder)
        with contextlib.suppress(OSError, ValueError, TypeError):
            found = cls(folder, **json.loads(found._path.read_text()))
        if found.running is not None:
            found._judge(found.running)
        return found

    @property
    def _path(self) -> Path:
        return self.folder / "tries.json"

    @property
    def checkpoint(self) -> Path:
        """Where a try keeps its training; the next one begins without it."""
        return self.folder / "checkpoint.pt"

    @property
    def number(self) -> int:
        return len(self.ends) + 1

    def micro_batch(self, recipe: dict[str, Any]) -> int | None:
        """Examples of a forward pass in training in this try; None where there is no further try."""
        rows = min(recipe["micro_batch_size"] or recipe["batch_size"], recipe["batch_size"])
        if self.number == 1:
            return rows
        return -(-rows // 2) if self.number == 2 and rows > 1 else None

    def out_of_memory(self, reason: str) -> None:
        """This try is over."""
        self.ends.append(reason)
        self.silent = 0
        for state in self.folder.glob("*.pt"):
            state.unlink(missing_ok=True)

    @contextlib.contextmanager
    def start(self) -> Iterator[None]:
        """Note that a start is running, and when the block ends, however it ends, that it is not."""
        self.running = machine() | {"checkpoint": _stamp(self.checkpoint)}
        self._write()
        try:
            yield
        finally:
            self.running, self.silent = None, 0
            with contextlib.suppress(OSError):
                self._write()

    def _write(self) -> None:
        note = {"ends": self.ends, "silent": self.silent, "running": self.running}
        with replaced(self._path) as path:
            path.write_text(json.dumps(note) + "\n")

    def _judge(self, vanished: dict[str, Any]) -> None:
        """What ended a start that left no word: want of memory, something else, or something that may be either."""
        self.running = None
        now = machine()
        told = now["boot"] == vanished["boot"] and now["kills"] is not None
        if _stamp(self.checkpoint) != vanished["checkpoint"] or told and now["kills"] == vanished["kills"]:
            self.silent = 0
        elif told:
            self.out_of_memory(KILLED)
        else:
            self.silent += 1
            if self.silent >= SILENT:
                self.out_of_memory(f"{KILLED}, {self.silent} times in a row")


def machine() -> dict[str, Any]:
    """This machine since it was started, and how many processes its kernel has killed for memory; None: not told."""
    return {"boot": _read(BOOT), "kills": _kills()}


def _kills() -> int | None:
    counts = dict(line.split(maxsplit=1) for line in (_read(KERNEL) or "").splitlines())
    return int(counts["oom_kill"]) if "oom_kill" in counts else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _stamp(path: Path) -> int | None:
    """What tells one checkpoint from the one before it."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
