"""A whole gateway in one process, for embedding and for tests."""

import asyncio
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType, TracebackType
from typing import Self

import structlog

from tcpgw.app.access import check
from tcpgw.app.background import Background, first
from tcpgw.app.discovery import Discovery
from tcpgw.app.health import Health
from tcpgw.app.material import Contents, Materials
from tcpgw.app.relays import Relays
from tcpgw.app.reports import plain
from tcpgw.config import schema
from tcpgw.config.diff import Changes
from tcpgw.endpoints import Snapshot
from tcpgw.pool import Pool
from tcpgw.relay.listener import Listener

log = structlog.get_logger()


class Gateway:
    """A whole gateway in this process and event loop.

    `async with Gateway(config) as gateway:` binds every listener, starts discovery and health checks, waits
    for each service's first snapshot (at most its `wait`), then accepts. Raises BindError, ConfigError (for
    the files that the configuration names) or CredentialError where it cannot start, with nothing left open.
    Leaving the context ends every connection at once: `drain` before, to spare them.

    `sockets`, by listener, are open already and stay so elsewhere (systemd's): they are listened on in place
    of the `bind`, and closed here with the gateway.
    """

    def __init__(
        self, config: schema.Config, sockets: Mapping[str, socket.socket] = MappingProxyType({})
    ) -> None:
        self._background = Background()
        given = {name: (sock,) for name, sock in sockets.items()}
        self._config = config
        self._materials = Materials(self._take, self._background)
        self.relays = Relays(
            config,
            given,
            self._background,
            tell=lambda news: self.health.happened(plain(news)),
            renew=self._materials.refresh,
            outlived=given,
        )
        self.health = Health(self.relays.pools.weigh, self._background)
        self._discovery = Discovery(config, self._publish, self._background)
        self._stack = AsyncExitStack()
        self._one_reload = asyncio.Lock()

    @property
    def listeners(self) -> dict[str, Listener]:
        return self.relays.listeners

    @property
    def pools(self) -> dict[str, Pool]:
        return self.relays.pools.by_name

    async def __aenter__(self) -> Self:
        try:
            self._stack.push_async_callback(self._background.close)
            self._stack.push_async_callback(self._materials.close)
            self._stack.callback(self.health.close)
            contents = await self._read(self._config)
            self.relays.contents = contents
            await self._stack.enter_async_context(self.relays)
            self._follow(self._config, contents)
            await self._stack.enter_async_context(self._discovery)
            await first(self._background.failed(), self._set_out())
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _read(self, config: schema.Config) -> Contents:
        contents = await self._materials.read(config)
        await asyncio.to_thread(check, config, contents)
        return contents

    def _follow(self, config: schema.Config, contents: Contents) -> None:
        self._config = config
        self._materials.follow(config, contents)
        self.health.follow(config, contents)

    async def _take(self, contents: Contents) -> None:
        """Other files stand where the configuration names them."""
        config = self._config
        async with self._one_reload:
            if config is not self._config:  # a reload was faster, and has read the files for itself
                return
            await self.relays.apply(config, contents=contents)
            self.health.follow(config, contents)

    async def _publish(self, snapshot: Snapshot) -> None:
        self.health.publish(snapshot)  # first: what is new has its slow start from the beginning
        await self.relays.pools.publish(snapshot)

    async def _set_out(self) -> None:
        await self._discovery.first_snapshots()
        await self.relays.start()

    async def reload(self, config: schema.Config) -> Changes:
        """Take another configuration and disturb nothing that stays: see `Relays.apply`, which it returns.

        New services have their first snapshot, or have waited for it, before a listener leads to them. Raises
        BindError, ConfigError or CredentialError with the configuration in force unchanged. What
        `Changes.restart` names is not taken. One after another, where called again meanwhile.
        """
        async with self._one_reload:
            contents = await self._read(config)
            self._discovery.begin(config)
            try:
                await self._discovery.first_snapshots()
                changes = await self.relays.apply(config, contents=contents)
            except BaseException:
                await self._discovery.abandon()
                self.relays.pools.forget_early()
                raise
            self._follow(config, contents)
            await self._discovery.finish()
        log.info("reloaded", changes=list(changes.lines), needs_restart=list(changes.restart))
        return changes

    async def failed(self) -> None:
        """Return never, or raise what a background task died of: a bug, since errors are handled there."""
        await self._background.failed()

    async def drain(self, spread: float = 0.0, hard: float | None = None) -> None:
        """Refuse new clients, let the connections end, and return when all have.

        Each is asked to end, when nothing would be lost, at a moment of its own within `spread` seconds; who
        is left is reset after `hard` seconds (None: never). Asked again, the earlier times count.
        """
        await self.relays.drain(spread, hard)
