"""Quoting what a cloud said without repeating its secrets. Pure.

Error messages go to logs and terminals, and what they quote was written by somebody else: an API that echoes
the token it refused, a document with credentials beside the addresses. Masking too much costs a little
readability, masking too little costs a key, so every doubt is masked.
"""

import json
import re
from collections.abc import Iterable
from itertools import islice
from typing import Any

MASK = "***"

_NAMES = r"token|passw|pwd|secret|key|credential|authoriz|signature|cookie"
_SECRET_NAME = re.compile(rf"{_NAMES}|^[as]k$", re.IGNORECASE)
_SECRET_PAIR = re.compile(
    rf"""((?:[\w-]*(?:{_NAMES})[\w-]*|\b[as]k)["']?\s*[:=]\s*["']?)[^\s"',;&}}]+""", re.IGNORECASE
)
_USER_INFO = re.compile(r"//[^/\s@]*@")
_QUERY = re.compile(r"(://[^\s?#]*)\?[^\s#\"']*")
# Tokens have hundreds of characters and keys of the cloud 40; its readable identifiers end at a UUID's 36.
_OPAQUE = re.compile(r"[\w+=%~-]{40,}")

# Enough to recognise an entry by, and still one log line.
_LIMIT = 200
_DEPTH = 4
_ITEMS = 8


def scrub(text: str, secrets: Iterable[str] = (), *, limit: int = _LIMIT) -> str:
    """One printable line of at most `limit` characters, with `secrets` and what looks like one masked."""
    for secret in secrets:
        for form in (secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
            text = text.replace(form, MASK) if form else text  # as it is, or in a request's JSON echoed
    # Cut before the patterns run, so that a document of megabytes costs nothing; not to `limit`, since a
    # token cut short might no longer look like one.
    text = " ".join(text[: 20 * limit].split())
    text = _QUERY.sub(rf"\1?{MASK}", _USER_INFO.sub(f"//{MASK}@", text))
    text = _OPAQUE.sub(MASK, _SECRET_PAIR.sub(rf"\1{MASK}", text))
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def excerpt(value: Any, *, limit: int = _LIMIT) -> str:
    """A decoded document, or a part of one, as one short line of JSON with secrets masked."""
    text = json.dumps(_masked(value, _DEPTH), ensure_ascii=False)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _masked(value: Any, depth: int) -> Any:
    if isinstance(value, dict | list) and value and depth == 0:
        return "…"
    if isinstance(value, dict):
        return {scrub(str(k)): _field(str(k), v, depth - 1) for k, v in islice(value.items(), _ITEMS)} | (
            {"…": f"{len(value) - _ITEMS} more"} if len(value) > _ITEMS else {}
        )
    if isinstance(value, list):
        more = [f"… {len(value) - _ITEMS} more"] if len(value) > _ITEMS else []
        return [_masked(item, depth - 1) for item in value[:_ITEMS]] + more
    if isinstance(value, str):
        return scrub(value)
    if value is None or isinstance(value, bool | float):
        return value
    # An integer of thousands of digits is valid JSON, and converting it to text raises ValueError.
    return value if isinstance(value, int) and value.bit_length() <= 64 else f"<{type(value).__name__}>"


def _field(name: str, value: Any, depth: int) -> Any:
    return MASK if _SECRET_NAME.search(name) else _masked(value, depth)
