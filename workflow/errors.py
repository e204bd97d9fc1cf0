"""One clear error: what is wrong, in which file, at which key, and the mend."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

from workflow.text import plain

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # on the disk, or in one's share of it


class AtlasError(Exception):
    """A problem the user can mend. The command line prints it and exits with status 2."""

    def __init__(self, message: str, *, file: object = None, key: object = None, mend: str | None = None):
        self.message, self.file, self.key, self.mend = message, file, key, mend
        super().__init__(message)

    def __str__(self) -> str:
        lines = [self.message]
        lines += [f"  {name}: {value}" for name, value in (("file", self.file), ("key", self.key)) if value is not None]
        return plain("\n".join(lines + ([f"  mend: {self.mend}"] if self.mend else [])))


def machine_failed(problem: OSError) -> AtlasError:
    """What the machine did wrong, and what no other try on it would mend."""
    full = problem.errno in NO_ROOM
    mend = "free some space, then run the same command again" if full else "run the same command again"
    return AtlasError(f"the machine failed: {problem}", file=problem.filename, mend=mend)


def suggest(word: str, choices: Iterable[str]) -> str:
    """'did you mean X?' when a choice is near, else the list of choices."""
    choices = sorted(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(choices) or 'none'}"
