"""Images in files: read when they are asked for, known by the bytes of the files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tasks.base import Images
from workflow.errors import AtlasError

READERS = 8  # files read at a time: waiting for the disk is most of it


class Files(Images):
    """Image files of any format that Pillow knows, below one folder."""

    def __init__(self, folder: Path, names: Sequence[str]):
        """names: n paths relative to the folder, with forward slashes."""
        self.folder, self.names = Path(folder), tuple(names)

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int] | np.ndarray) -> Files:
        return Files(self.folder, [self.names[row] for row in rows])

    def read(self, row: int) -> np.ndarray:
        """uint8 (H, W, 3); grey images have three equal channels, transparency is dropped."""
        from PIL import Image, UnidentifiedImageError

        path = self.folder / self.names[row]
        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except (UnidentifiedImageError, OSError) as error:
            raise AtlasError(f"not a readable image ({error})", file=path, mend="copy the file again") from error

    def digest(self) -> str:
        """sha256 over the sha256 of each file, in order. Nothing is decoded, and no two files are open for long."""
        with ThreadPoolExecutor(READERS) as readers:
            found = readers.map(_file_digest, (self.folder / name for name in self.names))
            return hashlib.sha256(b"".join(found)).hexdigest()


def _file_digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError as error:
        raise AtlasError(
            f"an image of the list cannot be read ({error.strerror})", file=path, mend="copy the folder again"
        ) from error
