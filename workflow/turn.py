"""One process at a time works on a cell, so that runs which want the same one at once share its result.

The lock is the kernel's, on a file in the cell's state folder: it ends with the process, however that ends.
"""

from __future__ import annotations

import errno
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workflow.cells import Cell
from workflow.errors import machine_failed

WAIT = 2.0  # seconds between looks at a lock that another process has
HOLDER = "holder"  # file that tells others who has the lock
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def turn(cell: Cell) -> Iterator[None]:
    """Wait until no other process works on the cell, then keep others away until the block ends.

    On a file system without locks nobody is kept away: the same work may be done twice, and the result is whole all the
    same. Raises AtlasError if the state folder cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = cell.state_dir
    lock, told = FileLock(folder / "lock", fallback_to_soft=False), False
    while not lock.is_locked:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=WAIT)
        except Timeout:
            if not told:
                print(f"{cell.name}  waits for {_holder(folder)}, which runs it", file=sys.stderr, flush=True)
            told = True
        except FileNotFoundError:
            continue  # who had it has just removed the folder
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:
                raise machine_failed(problem) from problem
            break
    try:
        if lock.is_locked:
            (folder / HOLDER).write_text(f"process {os.getpid()} on {platform.node()}\n")
        yield
    finally:
        lock.release()


def _holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text().strip() or "another process"
    except OSError:
        return "another process"
