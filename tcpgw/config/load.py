"""Reads a configuration: TOML text in, a `Config` or every fault out."""

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tcpgw.config.faults import faults_of
from tcpgw.config.schema import Config
from tcpgw.errors import ConfigError, Fault


def load(path: Path) -> Config:
    """Read, check and complete the configuration in `path`, secrets fetched.

    Raises ConfigError with every fault found; nothing else. Blocks on files: on an event loop
    call it in a thread.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError([Fault("", f"{shown(path)} cannot be read: {error.strerror}")]) from None
    try:
        text = raw.decode("utf-8-sig")  # some editors put a byte order mark first, which tomllib refuses
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            [Fault("", f"line {line}: not UTF-8 (byte {error.start} of the file): save it as UTF-8")]
        ) from None
    return loads(text, path.parent)


def shown(path: Path) -> str:
    """Return a path as a text that can be sent: with a replacement for what of it is no UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def loads(text: str, folder: Path) -> Config:
    """The same for TOML text. Relative paths in it are relative to `folder`."""
    table = _parse(text)
    try:
        return Config.model_validate(table, context={"folder": folder})
    except ValidationError as error:
        # Not chained: pydantic's error holds the inputs, secrets among them.
        raise ConfigError(faults_of(error, table)) from None


def _parse(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError([Fault("", "not TOML that can be read: nested too deeply")]) from None
    except ValueError as error:  # TOMLDecodeError, and a number with more digits than Python reads
        raise ConfigError([Fault("", f"not TOML: {error}")]) from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a configuration, for editors."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": "tcpgw"}
