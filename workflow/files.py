"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of a file, which what is written there takes over when the block ends well.

    Whoever reads the file meanwhile sees the old bytes or the new ones. An OSError names the file.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as problem:
        problem.filename = problem.filename or str(path)
        raise
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
