"""Paths in a configuration: of what a file is read from, or kept in."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from tcpgw.config.values import text_of


def folder_of(info: ValidationInfo) -> Path:
    """What relative paths in a configuration are relative to: its own folder, wherever tcpgw was started."""
    return Path((info.context or {}).get("folder", "."))


def _path(value: Any, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    text = text_of(value, "/var/lib/tcpgw")
    if not text or "\0" in text:
        raise ValueError("is not a path: write one such as /var/lib/tcpgw")
    return folder_of(info) / text


def _written_file_path(path: Path) -> str:
    return str(path.absolute())  # whoever reads it may be in another folder


FilePath = Annotated[
    Path,
    PlainValidator(_path),
    PlainSerializer(_written_file_path),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
