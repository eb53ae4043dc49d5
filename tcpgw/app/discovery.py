"""The discovery of all services of a configuration: one watcher each, owned together."""

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

import structlog

from tcpgw.app.background import Background
from tcpgw.app.sources import make_sources, make_store
from tcpgw.config import schema
from tcpgw.discovery.watch import Watcher
from tcpgw.endpoints import Snapshot

log = structlog.get_logger()


class Discovery:
    """Asks for every service's endpoints, from the entry of the context to its end, and publishes them.

    Raises CredentialError on entry where an account's credentials cannot be used at all.
    """

    def __init__(
        self, config: schema.Config, publish: Callable[[Snapshot], Awaitable[None]], background: Background
    ) -> None:
        self._config = config
        self._publish = publish
        self._watchers: dict[str, Watcher] = {}
        self._background = background
        self._tasks: list[asyncio.Task[None]] = []
        self._began = 0.0

    async def __aenter__(self) -> Self:
        self._began = asyncio.get_running_loop().time()
        sources = make_sources(self._config, self._config.service)
        for service in self._config.service:
            store = make_store(self._config, service.discovery)
            watcher = Watcher(service.name, sources[service.name], self._publish, store=store)
            self._watchers[service.name] = watcher
            self._tasks.append(self._background.start(watcher.run(), f"discovery of {service.name}"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            await self._background.stop(task)

    async def first_snapshots(self) -> None:
        """Return when every service has a snapshot, or has waited for one as long as its `wait` says."""
        for service in self._config.service:
            await self._first_snapshot(service, self._began + service.wait)

    async def _first_snapshot(self, service: schema.Service, deadline: float) -> None:
        """Wait for discovery, but not for ever: one silent source must not keep the other services down."""
        left = max(0, deadline - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(left):
                await self._watchers[service.name].ready.wait()
        except TimeoutError:
            log.error(
                "no_first_snapshot",
                service=service.name,
                waited=service.wait,
                hint="its clients are turned away until discovery answers; see discovery_failed above",
            )
