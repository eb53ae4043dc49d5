"""Endpoints in a file of their own, followed without a restart."""

import asyncio
import json
import tomllib
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from tcpgw.config.schema import FileDiscovery
from tcpgw.config.values import StaticMember
from tcpgw.endpoints import Member
from tcpgw.errors import AnswerError, DiscoveryError

_MEMBERS = TypeAdapter(list[StaticMember])


class FileSource:
    """A JSON list of endpoints, or a JSON object or TOML file with such a list as `endpoints`.

    The file is read at every look, and parsed where its bytes differ from the last ones. Looking at its time
    stamp and size first would save microseconds and miss a second write within one tick of the file system's
    clock. An unchanged file is an answer too: a suspect list needs two more to be confirmed (suspect.py).

    A file that is caught half-written fails to parse and is read again at the next look. A list cut off where
    it still parses (a TOML file may end after any `[[endpoints]]`) cannot be told from a shorter one, so
    writers should rename a finished file into place.
    """

    def __init__(self, settings: FileDiscovery) -> None:
        self._path = settings.path
        self._refresh = settings.refresh
        self._data: bytes | None = None
        self._members: list[Member] = []

    async def fetch(self) -> Sequence[Member]:
        """Raises DiscoveryError where the file cannot be read, AnswerError where it holds no such list."""
        return await asyncio.to_thread(self._read)

    async def wait(self) -> None:
        """Return after the refresh interval, whether the file changed or not."""
        await asyncio.sleep(self._refresh)

    async def close(self) -> None:
        """Nothing is held."""

    def _read(self) -> list[Member]:
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise DiscoveryError(f"{self._path}: cannot be read: {error.strerror}") from None
        if data != self._data:
            try:
                self._members = _members(self._decode(data))
            except (ValueError, RecursionError) as error:
                raise AnswerError(f"{self._path}: {error}") from None
            self._data = data
        return self._members

    def _decode(self, data: bytes) -> Any:
        """Raises ValueError that names the line, RecursionError for a file full of brackets."""
        text = data.decode()
        if self._path.suffix == ".toml":
            return tomllib.loads(text)
        return json.loads(text)


def _members(document: Any) -> list[Member]:
    items = document.get("endpoints") if isinstance(document, dict) else document
    if not isinstance(items, list):
        raise ValueError(  # noqa: TRY004 - what is wrong is a document's content, not an argument's type
            'no list of endpoints: write endpoints = ["10.0.0.1:80"] in TOML, ["10.0.0.1:80"] in JSON'
        )
    try:
        return _MEMBERS.validate_python(items)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        more = f" (and {len(others)} more faults)" if others else ""
        reason = first["ctx"]["error"]
        raise ValueError(f"endpoints[{first['loc'][0]}]: {reason}{more}") from None
