"""Endpoints written in the configuration itself."""

import asyncio
from collections.abc import Sequence

from tcpgw.config.schema import StaticDiscovery
from tcpgw.endpoints import Member


class StaticSource:
    """A list that changes with the configuration alone.

    Its watcher takes no store: what the operator wrote is never in doubt, and an older list on disk would
    otherwise be held against a shorter new one that no further answer would come to confirm.
    """

    def __init__(self, settings: StaticDiscovery) -> None:
        self._members = settings.endpoints

    async def fetch(self) -> Sequence[Member]:
        return self._members

    async def wait(self) -> None:
        """Never returns."""
        await asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Nothing is held."""
