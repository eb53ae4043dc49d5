"""How answers are encoded."""

import json
from typing import Any

import orjson


def encoded(value: Any) -> bytes:
    """Return a value as JSON, on one line. Raises TypeError where it has no such form."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:
        # A text that is no Unicode, as made of bytes that are no UTF-8, must not cost all the rest: as an
        # escape JSON has a form of it.
        return json.dumps(value).encode()
