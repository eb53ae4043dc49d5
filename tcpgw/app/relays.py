"""The listeners of one process and all that they relay with: planes, pools, connections to instances."""

import asyncio
from collections.abc import Container, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Self

from tcpgw.access.guard import Guard
from tcpgw.app.access import Guards, Renew, check
from tcpgw.app.background import Background
from tcpgw.app.channels import Channels, Key
from tcpgw.app.connections import listed
from tcpgw.app.lines import Lines
from tcpgw.app.material import Contents
from tcpgw.app.opening import Opened, Sockets, close_all, open_all
from tcpgw.app.overload import Overload
from tcpgw.app.places import Places
from tcpgw.app.planes import Planes, dismiss, reached, services_of
from tcpgw.app.pools import Pools
from tcpgw.app.reports import Reports, Tell
from tcpgw.app.secure import Contexts
from tcpgw.config import schema
from tcpgw.config.diff import Changes, diff
from tcpgw.observe.totals import Figures, summed
from tcpgw.pool import Pool
from tcpgw.relay.dial import InstanceTls
from tcpgw.relay.draining import Cause
from tcpgw.relay.listener import Listener
from tcpgw.relay.rpc.memory import Memory
from tcpgw.relay.rpc.service import RpcService
from tcpgw.relay.session import Plane
from tcpgw.relay.tracing import Tracer

# Of what waits for instances, the part that an overloaded process lets go at a time, the oldest first.
_SHED = 4


@dataclass(frozen=True)
class _Next:
    """All that an `apply` needs, ready and not in force."""

    config: schema.Config
    changes: Changes
    opened: Mapping[str, Opened]
    pools: dict[str, Pool]
    rpc: dict[Key, RpcService]
    contents: Contents
    tls: Mapping[str, InstanceTls]


class Relays:
    """Binds every listener on entry, accepts from `start` on, and ends every connection at the exit.

    Raises BindError on entry, with nothing left open. `sockets` are open already, and closed here. `outlived`
    are the listeners whose sockets somebody else keeps open for good: who waits there is not this gateway's
    to serve when it ends. Set it anew before `apply` where new listeners differ.

    `contents` is what was read for the configuration. `tell` is told what endpoints came to, and `renew` asks
    for newer sets of keys. `checked`: somebody has seen to it that all `contents` can be used.

    `draining` are listeners that a change of the configuration has ended, until their last connection has.
    """

    def __init__(
        self,
        config: schema.Config,
        sockets: Sockets,
        background: Background,
        contents: Contents = MappingProxyType({}),
        *,
        tell: Tell = lambda _: None,
        renew: Renew | None = None,
        checked: bool = False,
        outlived: Container[str] = (),
    ) -> None:
        self.listeners: dict[str, Listener] = {}
        self.draining: list[Listener] = []
        self.memory = Memory(config.gateway.rpc_memory)
        self._lines = Lines(config.gateway.log)
        self._config = config
        self._sockets = sockets
        self._background = background
        self.places = Places(background, lambda: (*self.listeners.values(), *self.draining))
        self.reports = Reports(tell, background)
        self.pools = Pools(config, self.reports.watch)
        self.overload = Overload(self._refuse, self._shed)
        self.guards = Guards(renew)
        self._contexts = Contexts()
        self._checked = checked
        self.contents = contents
        self._tls: Mapping[str, InstanceTls] = {}
        self._channels = Channels(self.memory, background, self.reports.outcomes, self._lines.requests)
        self.outlived = outlived
        self._tracer: Tracer | None = None
        self._planes: dict[Listener, Plane] = {}
        self._past: dict[str, Figures] = {}  # of listeners that are closed, by name
        self._connecting: set[RpcService] = set()  # by an `apply`: no plane leads to them yet
        self._one = asyncio.Lock()  # of start and apply
        self._started = False
        self._stopping = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def rpc(self) -> dict[Key, RpcService]:
        return self._channels.by_key

    async def __aenter__(self) -> Self:
        try:
            self._tls = self._contexts.of(self._config, self.contents)
            self.guards.make(self._config, self.contents)
            opened = open_all(self._config.listener, self._sockets, {}, self.outlived)
            self._channels.by_key = self._channels.wanted(self._config, self.pools.by_name, self._tls)
            self._add(self._config, opened)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End everything now. Idempotent."""
        self._stopping = True
        for task in list(self._tasks):
            await self._background.stop(task)
        for listener in (*self.listeners.values(), *self.draining):
            await listener.close()
        await self._channels.close()
        await self.places.close()
        await self.reports.close()
        self._lines.close()
        for given in self._sockets.values():
            close_all(given)

    async def start(self) -> None:
        """Connect to the instances of rpc services, as far as they let us, then accept."""
        async with self._one:
            await self._channels.run(self.rpc.values())
            if self._stopping:
                return
            self._follow()
            self._tasks.add(self._background.start(self.overload.run(), "overload"))
            for listener in self.listeners.values():
                listener.start()
            self._started = True

    def _follow(self) -> None:
        self.places.follow(self._config, self.pools.by_name)
        self.reports.follow(self._config, self.pools.by_name)
        self.overload.change(self._config.gateway.overload)
        self.pools.forget_absent()

    def _refuse(self, refused: bool) -> None:
        """Turn away whoever connects, or no longer."""
        for listener in self.listeners.values():
            listener.shedding = refused

    def trace(self, tracer: Tracer | None) -> None:
        """As `Listener.trace`, of all listeners, those to come included."""
        self._tracer = tracer
        for listener in (*self.listeners.values(), *self.draining):
            listener.trace(tracer)

    def _shed(self) -> int:
        """Turn away a part of what waits for instances; returns how much that was."""
        shed = 0
        for pool in self.pools.by_name.values():
            circuit = self.places.circuit(pool)
            shed += circuit.shed(-(-circuit.waiting // _SHED))
        for service in self.rpc.values():
            shed += service.shed(-(-service.waiting // _SHED))
        return shed

    async def drain(
        self, spread: float = 0.0, hard: float | None = None, *, outlived: Container[str] | None = None
    ) -> None:
        """As `Gateway.drain`. `outlived`: whose queues somebody else serves, if not as before."""
        self._stopping = True
        for name, listener in self.listeners.items():
            listener.stop_accepting(outlived=None if outlived is None else name in outlived)
        for listener in (*self.listeners.values(), *self.draining):
            listener.drain(spread, hard)
        for listener in (*self.listeners.values(), *self.draining):
            await listener.drained()

    def status(self) -> Figures:
        """All figures, as plain values: `listeners` and `services`, by name; `process` does not add up.

        Totals are of all listeners that ever had the name, so they never go down.
        """
        return self._status({name: self._status_of(pool) for name, pool in self.pools.by_name.items()})

    async def status_in_turns(self) -> Figures:
        """As `status`, service by service: who relays meanwhile waits for one of them at most."""
        services = {}
        for name, pool in [*self.pools.by_name.items()]:
            services[name] = self._status_of(pool)
            await asyncio.sleep(0)
        return self._status(services)

    def _status(self, services: Figures) -> Figures:
        now = [{listener.name: listener.status()} for listener in (*self.listeners.values(), *self.draining)]
        return {
            "listeners": summed([self._past, *now]),
            "services": services,
            "overload": self.overload.status(),
            "process": {"lag": self.overload.lag},
        }

    async def connections(self, service: str | None, slowest: bool, count: int) -> Figures:
        """As `connections.listed`."""
        listeners = [*self.listeners.values(), *self.draining]
        return await listed(listeners, self._channels.all, service, slowest, count)

    def _status_of(self, pool: Pool) -> Figures:
        """A service's. Before the first snapshot its version is 0."""
        snapshot, reported = pool.snapshot, self.reports.status(pool)
        endpoints = reported["endpoints"]
        for endpoint, weight in pool.members:
            one = endpoints.setdefault(str(endpoint), {})
            one["weight"], one["inflight"] = weight, pool.loads.inflight(endpoint)
        rpc = self._channels.status(pool.service)
        return {
            "snapshot": {
                "version": snapshot.version if snapshot else 0,
                "taken_at": snapshot.taken_at if snapshot else 0.0,
            },
            **reported,
            "circuit": self.places.circuit(pool).status(),
            **({"rpc": rpc} if rpc else {}),
        }

    # ---- another configuration ----

    async def apply(
        self,
        config: schema.Config,
        sockets: Sockets = MappingProxyType({}),
        contents: Contents = MappingProxyType({}),
    ) -> Changes:
        """Take another configuration, and disturb nothing that stays. Returns what differed.

        Raises BindError where a listener cannot be opened, and ConfigError where `contents`, which was read
        for it, is of no use: then, and when cancelled, the configuration in force stays, but that the
        policies of some services may be the new ones already.

        Connections stay. On rpc listeners their next requests go by what is new; others keep the settings and
        the instance that they have. Listeners that go are drained, for as long as that takes.

        `sockets` are for listeners that are new here, or more of them for others, and are closed here
        whatever comes. Applied one after another; an equal configuration changes nothing.
        """
        async with self._one:
            try:
                new = await self._prepare(config, sockets, contents)
            except BaseException:
                for given in sockets.values():
                    close_all(given)
                raise
            self._act(new)
            for name in sockets.keys() - new.opened.keys():
                self.listeners[name].add_sockets(sockets[name])
            return new.changes

    async def _prepare(self, config: schema.Config, sockets: Sockets, contents: Contents) -> _Next:
        changes = diff(self._config, config)
        if not self._checked and (contents != self.contents or changes):
            await asyncio.to_thread(check, config, contents)
        tls = self._contexts.of(config, contents)
        async with AsyncExitStack() as undo:
            opened = self._open_changed(config, changes, sockets)
            undo.callback(close_all, [sock for one in opened.values() for sock in one.sockets])
            undo.callback(self.pools.give_up)
            pools = await self.pools.prepare(config)
            rpc = self._channels.wanted(config, pools, tls)
            undo.callback(self._release)
            undo.callback(self._connecting.clear)
            self._connecting |= set(rpc.values())
            if self._started:
                await self._channels.run(rpc.values())
            await self.pools.rebuild(config)
            undo.pop_all()
        return _Next(config, changes, opened, pools, rpc, contents, tls)

    def _act(self, new: _Next) -> None:
        """Put it in force, all in one turn of the loop."""
        config, changes = new.config, new.changes
        touched = self._touched(new)
        self.memory.resize(config.gateway.rpc_memory)
        self._lines.change(config.gateway.log)
        self._config, self._channels.by_key = config, new.rpc
        self.pools.take(config, new.pools)
        self.contents, self._tls = new.contents, new.tls
        self._connecting.clear()
        followed = {one.heir_of for one in new.opened.values()}
        for name in (*changes.listeners.removed, *changes.listeners.replaced):
            listener = self.listeners.pop(name)
            listener.outlived |= listener in followed
            self._retire(listener)
        planes = self._make_planes(config)
        guards = self.guards.make(config, new.contents)
        for settings in config.listener:
            if settings.name in self.listeners:
                self._change(settings, planes if settings.name in touched else None, guards[settings.name])
        for listener in self._add(config, new.opened):
            if self._started and not self._stopping:
                listener.start()
        self.listeners = {one.name: self.listeners[one.name] for one in config.listener}
        if self._started:
            self._follow()
        self._release()

    def _touched(self, new: _Next) -> set[str]:
        """The listeners whose planes are to be others: by their own settings, or by what they lead to."""
        services = {*new.changes.services.changed}
        services |= {name for name in new.pools if new.tls.get(name) is not self._tls.get(name)}
        services |= {name for name, pool in new.pools.items() if self.pools.by_name.get(name) is not pool}
        services |= {key[0] for key, service in new.rpc.items() if self.rpc.get(key) is not service}
        return {
            listener.name
            for listener in new.config.listener
            if listener.name in new.changes.listeners.changed or reached(listener) & services
        }

    # ---- listeners ----

    def _open_changed(self, config: schema.Config, changes: Changes, sockets: Sockets) -> dict[str, Opened]:
        """Open what new listeners accept on. One that takes an ended one's place takes its socket over."""
        added, replaced = changes.listeners.added, changes.listeners.replaced
        binds = {one.name: one.bind for one in self._config.listener}
        left = {binds[name]: self.listeners[name] for name in changes.listeners.removed}
        new = [one for one in config.listener if one.name in {*added, *replaced}]
        ended = {one.name: left[one.bind] for one in new if one.bind in left and not one.bind.is_any}
        ended |= {name: self.listeners[name] for name in replaced}
        # To bind is not enough: two may, and then one of them listens.
        return open_all(new, sockets, ended, self.outlived, listening=self._started)

    def _make_planes(self, config: schema.Config) -> Planes:
        outcomes, circuit = self.reports.outcomes, self.places.circuit
        return Planes(config, self.pools.by_name, self.rpc, self.memory, self._tls, outcomes, circuit)

    def _add(self, config: schema.Config, opened: Mapping[str, Opened]) -> list[Listener]:
        planes = self._make_planes(config)
        guards = self.guards.make(config, self.contents)
        added = []
        for settings in config.listener:
            if settings.name not in opened:
                continue
            plane = planes.make(settings)
            listener = self.listeners[settings.name] = Listener(
                settings,
                opened[settings.name].sockets,
                plane,
                guards[settings.name],
                lines=self._lines.connections,
                outlived=opened[settings.name].outlived,
            )
            listener.shedding = self.overload.overloaded
            listener.trace(self._tracer)
            self._planes[listener] = plane
            added.append(listener)
        return added

    def _change(self, settings: schema.Listener, planes: Planes | None, guard: Guard) -> None:
        """`planes` where its plane is to be another."""
        listener = self.listeners[settings.name]
        if planes is not None:
            self._planes[listener] = planes.changed(settings, self._planes[listener])
        listener.change(settings, self._planes[listener], guard)

    def _retire(self, listener: Listener) -> None:
        """Drain a listener in the background, and close it then."""
        gateway = self._config.gateway
        listener.drain(gateway.drain, gateway.cut_after, cause=Cause.LISTENER_REMOVED)
        self.draining.append(listener)
        task = self._background.start(self._end(listener), f"end of listener {listener.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, listener: Listener) -> None:
        await listener.drained()
        await listener.close()
        self.draining.remove(listener)
        self._past = summed([self._past, {listener.name: listener.status()}])
        dismiss(self._planes.pop(listener))
        self._release()

    def _release(self) -> None:
        """Let go of connections to instances that no listener needs."""
        self._channels.release(services_of(self._planes.values()) | self._connecting)
