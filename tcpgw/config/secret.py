"""Secrets: written as they are, or as where to fetch them; shown as asterisks."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, SecretStr, ValidationInfo, WithJsonSchema

from tcpgw.config.files import folder_of
from tcpgw.config.values import type_name


def _secret(value: Any, info: ValidationInfo) -> SecretStr:
    """Fetch a secret. No message holds any part of a literal one."""
    if isinstance(value, SecretStr):
        return value
    if not isinstance(value, str):
        raise ValueError(f'must be text, "env:NAME" or "file:PATH", not {type_name(value)}')  # noqa: TRY004
    if (info.context or {}).get("fetched"):  # by another process: what looks like env:NAME is the secret
        return SecretStr(value)
    scheme, _, rest = value.partition(":")
    if scheme == "env":
        secret = _from_environment(rest)
    elif scheme == "file":
        secret = _from_file(folder_of(info) / rest)
    else:
        secret = value
    if not secret:
        raise ValueError("must not be empty")
    if not secret.isprintable():  # found here rather than by the HTTP client, which refuses it in a header
        raise ValueError("the secret holds a line break or another control character: no credential has one")
    return SecretStr(secret)


def _from_environment(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError("what follows env: is not the name of an environment variable")
    secret = os.environ.get(name)
    if not secret:
        raise ValueError(f"the environment variable {name} is {'not set' if secret is None else 'empty'}")
    return secret


def _from_file(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"the file {path} cannot be read: {error.strerror}") from None
    except ValueError:  # not UTF-8, or a NUL in the path
        raise ValueError(f"the file {str(path)!r} cannot be read: not UTF-8 text") from None
    text = text.removesuffix("\n")  # editors and `echo` end a file with a newline
    if not text:
        raise ValueError(f"the file {path} is empty")
    return text


Secret = Annotated[
    SecretStr,
    PlainValidator(_secret),
    PlainSerializer(str, when_used="json"),
    WithJsonSchema({"type": "string", "minLength": 1, "writeOnly": True}),
]
"""A literal, `env:NAME` or `file:PATH`, fetched when the configuration is read; shown as asterisks."""
