"""Files that are made once and used by many jobs: converted weights, tokenised texts.

They lie in ATLAS_CACHE, or in peft-atlas below the user's cache folder, and can be deleted at any time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def folder() -> Path:
    """Where the cache lies."""
    if "ATLAS_CACHE" in os.environ:
        return Path(os.environ["ATLAS_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peft-atlas"


def made(name: str, make: Callable[[Path], None]) -> Path:
    """The file or folder of this name in the cache; `make(path)` writes it if it is not there.

    Of several jobs that ask at once, one makes it and the others wait. It gets its name when it is whole, so a job
    that dies in between leaves nothing that looks done.
    """
    from filelock import FileLock

    path = folder() / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            unfinished = path.with_name(f".{path.name}.{os.getpid()}")
            try:
                make(unfinished)
                os.replace(unfinished, path)
            finally:
                _remove(unfinished)
    return path


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
