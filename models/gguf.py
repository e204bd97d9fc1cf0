"""GGUF files (quantised weights with their tokenizer) as safetensors that any job can load quickly."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
from collections.abc import Iterator
from functools import cache as once
from pathlib import Path

from workflow import cache

VERSION = 1  # of the conversion: another one makes other folders
CHUNK = 1 << 22


def converted(parts: tuple[Path, ...], name: str) -> Path:
    """The folder with the dequantised weights (float32) and the tokenizer of a GGUF file, made once and cached.

    parts: the file, or its pieces in order.
    """
    return cache.made(f"models/{name}-{sha256(parts)[:16]}-v{VERSION}", lambda made: _convert(parts, made))


@once
def sha256(parts: tuple[Path, ...]) -> str:
    """sha256 (hex) of a file in one or several pieces."""
    digest = hashlib.sha256()
    for chunk in _chunks(parts):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(parts: tuple[Path, ...]) -> Iterator[bytes]:
    for path in parts:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def _convert(parts: tuple[Path, ...], made: Path) -> None:
    if len(parts) == 1:
        return _dequantise(parts[0], made)
    with tempfile.TemporaryDirectory(dir=made.parent) as folder:
        whole = Path(folder, "whole.gguf")
        with whole.open("wb") as file:
            file.writelines(_chunks(parts))
        _dequantise(whole, made)


def _dequantise(path: Path, made: Path) -> None:
    """Quietly: its progress bar listens to no setting."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    config = model.config
    vars(config).pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(made)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(made)
