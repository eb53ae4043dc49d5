"""Files that are whole or as they were."""

import stat
from pathlib import Path
from unittest.mock import patch

import pytest

from tcpgw import durable


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """In a folder that is made for it; only the owner may read it, and nothing else is left there."""
    path = tmp_path / "not" / "yet" / "x.json"
    durable.replace(path, b"older and longer")
    durable.replace(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_what_was_there_survives_a_disk_that_is_full(tmp_path: Path) -> None:
    """Where the new one cannot be written, the old one is still read."""
    path = tmp_path / "x.json"
    durable.replace(path, b"old")
    with patch("os.fsync", side_effect=OSError(28, "No space left on device")), pytest.raises(OSError):  # noqa: PT011
        durable.replace(path, b"new")
    assert path.read_bytes() == b"old"
