"""The discovery of all services of a configuration: one watcher each, owned together."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Self

import structlog

from tcpgw.app.background import Background
from tcpgw.app.sources import make_accounts, make_sources, make_store, origin
from tcpgw.config import schema
from tcpgw.config.diff import diff
from tcpgw.discovery.modelarts import Account
from tcpgw.discovery.source import Source
from tcpgw.discovery.watch import Watcher
from tcpgw.endpoints import Snapshot
from tcpgw.observe.totals import Figures

log = structlog.get_logger()


@dataclass
class _Watched:
    """A service's running watcher. `deadline`: until when its first snapshot is waited for."""

    watcher: Watcher
    task: asyncio.Task[None]
    wait: float
    deadline: float


class Discovery:
    """Asks for every service's endpoints, from the entry of the context to its end, and publishes them.

    Raises CredentialError on entry where an account's credentials cannot be used at all.

    Another configuration is taken by `apply`, or in its two steps: `begin`, and then `finish` or `abandon`.
    A [cloud] table that stays the same keeps its account, because the budget of calls belongs to the user.
    """

    def __init__(
        self, config: schema.Config, publish: Callable[[Snapshot], Awaitable[None]], background: Background
    ) -> None:
        self._config = config
        self._publish = publish
        self._background = background
        self._watched: dict[str, _Watched] = {}
        self._accounts: dict[str, Account] = {}
        self._begun: tuple[schema.Config, dict[str, Account]] | None = None

    async def __aenter__(self) -> Self:
        self._accounts = make_accounts(self._config, self._config.service)
        self._start(self._config, self._config.service, self._accounts)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ask nobody any more. Idempotent."""
        await self._stop(self._watched)

    def services(self) -> dict[str, Figures]:
        """By service: how its source answers (see `Asked`), and what it said last in place of an answer."""
        return {
            name: {**asdict(one.watcher.asked), "last_error": one.watcher.last_error or ""}
            for name, one in self._watched.items()
        }

    def clouds(self) -> dict[str, Figures]:
        """By [cloud] table: the calls that it allows in a minute, those left now, seconds that it paused."""
        return {
            name: {
                "budget": self._config.cloud[name].calls_per_minute,
                "left": account.budget.left,
                "paused": account.budget.pause_left,
            }
            for name, account in self._accounts.items()
        }

    async def first_snapshots(self) -> None:
        """Return when every service has a snapshot, or has waited for one as long as its `wait` says.

        Each is waited for once, from when it was started; a service whose source changed has one already.
        """
        for name, watched in list(self._watched.items()):
            await self._first_snapshot(name, watched)

    async def _first_snapshot(self, service: str, watched: _Watched) -> None:
        """Wait for discovery, but not for ever: one silent source must not keep the other services down."""
        if not watched.wait:
            return
        left = max(0, watched.deadline - asyncio.get_running_loop().time())
        try:
            async with asyncio.timeout(left):
                await watched.watcher.ready.wait()
        except TimeoutError:
            log.error(
                "no_first_snapshot",
                service=service,
                waited=watched.wait,
                hint="its clients are turned away until discovery answers; see discovery_failed above",
            )
        watched.wait = 0.0

    # ---- another configuration ----

    async def apply(self, config: schema.Config) -> None:
        """Take another configuration. Raises CredentialError with nothing changed."""
        self.begin(config)
        await self.finish()

    def begin(self, config: schema.Config) -> None:
        """Start the discovery of what `config` adds. Everything else stays, until `finish`.

        Raises CredentialError, with nothing changed.
        """
        changes = diff(self._config, config)
        asked = [one for one in config.service if one.name in {*changes.services.added, *changes.discovery}]
        kept = {name: one for name, one in self._accounts.items() if self._is_kept(name, config)}
        lacking = [one for one in asked if getattr(one.discovery, "cloud", None) not in kept]
        accounts = kept | make_accounts(config, lacking)
        self._begun = config, accounts
        self._start(config, [one for one in asked if one.name in changes.services.added], accounts)

    async def finish(self) -> None:
        """Ask the sources that changed anew, and stop what `config` leaves out.

        The old snapshot stays published until the new source answers, and versions go on from it.
        Cancelled, it has done all but wait for the old ones' ends.
        """
        assert self._begun is not None  # noqa: S101 - after `begin`
        config, accounts = self._begun
        changes, old = diff(self._config, config), self._config
        changed = [service for service in config.service if service.name in changes.discovery]
        # Made before the old ones are closed: with its last service an account would lose its connections.
        sources = make_sources(config, changed, accounts)
        self._begun, self._config, self._accounts = None, config, accounts
        before = {service.name: service.discovery for service in old.service}
        ended = {name: self._watched.pop(name) for name in (*changes.discovery, *changes.services.removed)}
        for one in ended.values():
            one.task.cancel()
        for service in changed:
            same = origin(old, before[service.name]) == origin(config, service.discovery)
            self._watch(config, service, sources[service.name], followed=ended[service.name], same=same)
        await self._stop(ended)

    async def abandon(self) -> None:
        """Stop what `begin` started: the configuration in force stays. Idempotent."""
        begun, self._begun = self._begun, None
        if begun is not None:
            added = diff(self._config, begun[0]).services.added
            await self._stop({name: self._watched.pop(name) for name in added})

    def _is_kept(self, cloud: str, config: schema.Config) -> bool:
        return cloud in config.cloud and config.cloud[cloud] == self._config.cloud.get(cloud)

    # ---- watchers ----

    def _start(
        self, config: schema.Config, services: Iterable[schema.Service], accounts: dict[str, Account]
    ) -> None:
        services = list(services)
        sources = make_sources(config, services, accounts)
        for service in services:
            self._watch(config, service, sources[service.name])

    def _watch(
        self,
        config: schema.Config,
        service: schema.Service,
        source: Source,
        *,
        followed: _Watched | None = None,
        same: bool = False,
    ) -> None:
        """`followed` is the one before, which is ending, and `same` whether it found the same instances."""
        watcher = Watcher(
            service.name,
            source,
            self._publish,
            store=make_store(config, service.discovery),
            version=followed.watcher.version if followed else 0,
            in_force=followed.watcher.in_force if followed and same else None,
            asked=followed.watcher.asked if followed else None,
        )
        run = _run_after(followed.task, watcher, source) if followed else watcher.run()
        task = self._background.start(run, f"discovery of {service.name}")
        deadline = asyncio.get_running_loop().time() + service.wait
        self._watched[service.name] = _Watched(watcher, task, 0.0 if followed else service.wait, deadline)

    async def _stop(self, watched: Mapping[str, _Watched]) -> None:
        for one in watched.values():
            one.task.cancel()
        await asyncio.gather(*(one.task for one in watched.values()), return_exceptions=True)


async def _run_after(before: asyncio.Task[None], watcher: Watcher, source: Source) -> None:
    """Run a watcher when the one before has ended: never do two publish for one service."""
    try:
        await asyncio.wait([before])
    except asyncio.CancelledError:
        await source.close()  # as `run` would
        raise
    await watcher.run()
