"""Paths in a configuration: of what a file is read from, or kept in."""

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema

from tcpgw.config.values import URL_SCHEMA, text_of, url_of


def folder_of(info: ValidationInfo) -> Path:
    """What relative paths in a configuration are relative to: its own folder, wherever tcpgw was started."""
    return Path((info.context or {}).get("folder", "."))


def _path(value: Any, info: ValidationInfo, example: str = "/var/lib/tcpgw") -> Path:
    if isinstance(value, Path):
        return value
    text = text_of(value, example)
    if not text or "\0" in text:
        raise ValueError(f"is not a path: write one such as {example}")
    return folder_of(info) / text


def _written_file_path(path: Path) -> str:
    return str(path.absolute())  # whoever reads it may be in another folder


FilePath = Annotated[
    Path,
    PlainValidator(_path),
    PlainSerializer(_written_file_path),
    WithJsonSchema({"type": "string", "minLength": 1}),
]


# ---- what is read while the gateway runs ----


def _named(value: Any, info: ValidationInfo) -> Path:
    """Take `file:PATH` as well, which stands wherever a secret does; another scheme is no file."""
    if isinstance(value, str) and (scheme := re.match(r"(env|https?):", value)):
        raise ValueError(f"{scheme[0]} cannot stand here: write the path of a file")
    path = value.removeprefix("file:") if isinstance(value, str) else value
    return _path(path, info, example="/etc/tcpgw/a.pem")


NamedFile = Annotated[
    Path,
    PlainValidator(_named),
    PlainSerializer(_written_file_path),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
"""A file whose contents the supervisor reads, and reads again when it changes: `PATH` or `file:PATH`."""

_THIS_MACHINE = {"127.0.0.1", "::1", "localhost"}


def _source(value: Any, info: ValidationInfo) -> Path | str:
    if not isinstance(value, str) or not re.match("https?:", value):
        return _named(value, info)
    url = url_of(value)
    if urlsplit(url).scheme == "http" and urlsplit(url).hostname not in _THIS_MACHINE:
        raise ValueError("must begin with https://: over http anybody on the way could put his keys there")
    return url


def _written_source(source: Path | str) -> str:
    return source if isinstance(source, str) else _written_file_path(source)


Source = Annotated[
    Path | str,
    PlainValidator(_source),
    PlainSerializer(_written_source),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, URL_SCHEMA]}),
]
"""A file as `NamedFile` (a Path), or a URL (a str): https, or http to this machine alone."""
