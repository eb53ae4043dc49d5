"""Small files that must be whole after a power cut, whatever moment it comes at."""

import os
from pathlib import Path


def replace(path: Path, data: bytes) -> None:
    """Replace a file whole, on disk when this returns, in a folder that is made where it is missing.

    The rename is atomic: a reader, and a start after a power cut, finds the old file or the new one. Only the
    owner may read either. Blocks on the disk; raises OSError. A path has one writer at a time, which uses
    `{path}.tmp`.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(unfinished, data)
    unfinished.replace(path)
    _sync(path.parent)


def _write(path: Path, data: bytes) -> None:
    # Which addresses serve is nobody else's business: readable by the owner alone from the first moment on.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    """Put the rename itself on disk: without it a power cut may bring the old file back."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
