"""What every source of endpoints offers."""

from collections.abc import Sequence
from typing import Protocol

from tcpgw.endpoints import Member


class Source(Protocol):
    """One service's place to ask. Owned and called by one watcher, never concurrently."""

    async def fetch(self) -> Sequence[Member]:
        """Ask once and return what the source says now, in any order.

        Raises DiscoveryError, with a message for the operator, where no usable answer came. Bounded in time
        by the source's own timeouts. Cancellation leaves nothing open.
        """

    async def wait(self) -> None:
        """Return when it is worth asking again: after the refresh interval, or when the source changed.

        Never returns for a source that cannot change. Called only after a fetch, failed or not; honours the
        budget and any waiting time that the source was told. Cancellation leaves nothing open.
        """

    async def close(self) -> None:
        """Release connections. Idempotent; nothing else is called afterwards."""
