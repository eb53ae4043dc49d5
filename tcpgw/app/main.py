"""`tcpgw run`: a supervisor, and around it signals, systemd, the control socket, an upgrade."""

import asyncio
import contextlib
import functools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import structlog

from tcpgw import __version__
from tcpgw.app.admin import SOCKET, Shown
from tcpgw.app.background import Background, first
from tcpgw.app.control import controlled, refuse_second
from tcpgw.app.monitor.view import View
from tcpgw.app.sockets import lent
from tcpgw.app.supervisor import Supervisor
from tcpgw.config import schema
from tcpgw.config.load import load, shown
from tcpgw.errors import ConfigError, TcpgwError
from tcpgw.process import inherited
from tcpgw.process.execution import interpreter
from tcpgw.process.handover import Handover, HandoverError, hand_over
from tcpgw.process.limits import calm_collector
from tcpgw.process.notify import Notifier, reloading
from tcpgw.process.signals import Ending, ending, handled

log = structlog.get_logger()

T = TypeVar("T")

# Seconds beside the services' `wait` that a successor has until it accepts.
_START = 60.0


async def run(config: schema.Config, path: Path) -> None:
    """Run a gateway until it is asked to end, or has a successor. Raises TcpgwError where it cannot start."""
    for number in (signal.SIGHUP, signal.SIGUSR2):  # would end the process, until they are handled
        signal.signal(number, signal.SIG_IGN)
    calm_collector()
    manager = Notifier.of(os.environ)
    handover = Handover.take(os.environ)
    passed = inherited.assign(
        inherited.take(os.environ), {listener.name: str(listener.bind) for listener in config.listener}
    )
    given = {**handover.sockets, **lent(passed, config.listener)}
    if not handover.is_one:
        refuse_second(path)
    with ending() as end:
        async with AsyncExitStack() as stack:
            supervisor = Supervisor(config, path, given)
            await stack.enter_async_context(supervisor)
            operation = Operation(supervisor, manager)
            stack.push_async_callback(operation.give_up)
            stack.enter_context(handled(operation.signals))
            asked = _asked(supervisor, operation)
            if not handover.is_one:
                await stack.enter_async_context(asked)
            # A start may wait long for discovery, and whoever ends it meanwhile must not.
            await first(end.asked.wait(), supervisor.start(), supervisor.failed())
            if not end.asked.is_set():
                if handover.is_one:  # not before: the predecessor is asked until this one serves
                    await stack.enter_async_context(asked)
                _say_ready(supervisor, manager, sorted(given))
                handover.accept(supervisor.sockets.values())
                supervisor.monitor.judge()
                operation.started.set()
                watching = await stack.enter_async_context(AsyncExitStack())
                await watching.enter_async_context(manager.watched())
                await first(end.asked.wait(), operation.succeeded.wait(), supervisor.failed())
                if operation.succeeded.is_set():  # systemd's main process is the successor now
                    await watching.aclose()
                    manager = Notifier()
            await operation.give_up()
            await _drain(supervisor, manager, end, operation.taken)


@contextlib.asynccontextmanager
async def _asked(supervisor: Supervisor, operation: "Operation") -> AsyncIterator[None]:
    """Answer on the admin server and the control socket; the supervisor ends the former itself."""
    admin = supervisor.admin
    source = Shown(supervisor.monitor, operation.methods, supervisor.readiness)
    await admin.serve(supervisor.config.gateway, admin.sockets, source)
    async with controlled(supervisor.path, operation.methods):
        yield


def _say_ready(supervisor: Supervisor, manager: Notifier, passed: list[str]) -> None:
    log.info(
        "ready",
        version=__version__,
        listeners=supervisor.addresses(),
        admin=supervisor.admin.address,
        endpoints=supervisor.endpoints(),
        workers=supervisor.pids(),
        inherited=passed,
    )
    status = f"accepting on {len(supervisor.sockets)} listeners, {len(supervisor.pids())} workers"
    manager.tell(READY="1", STATUS=status)


async def _drain(supervisor: Supervisor, manager: Notifier, end: Ending, taken: Collection[str]) -> None:
    gateway = supervisor.config.gateway
    manager.tell(STOPPING="1", STATUS=f"draining for up to {gateway.cut_after:g} s")
    log.info("draining", seconds=gateway.drain, hard_stop=gateway.cut_after)
    leaving = asyncio.create_task(supervisor.drain(taken))
    try:
        at_once = end.now if end.asked.is_set() else end.asked
        await first(at_once.wait(), asyncio.shield(leaving))
        if not leaving.done():
            supervisor.stop()
        cut = await leaving
    finally:
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    log.info("stopped", connections_cut=cut)


class EndingError(TcpgwError):
    """Something was asked of a gateway that is about to end."""

    blame = "operator"

    def __init__(self) -> None:
        super().__init__("this gateway is ending, and takes no changes any more")


class NoFiguresError(TcpgwError):
    """The gateway has not looked at itself yet, or not with success."""

    retry_safe = True

    def __init__(self) -> None:
        super().__init__(
            "there are no figures yet: ask again in a second; where there never are, see the log"
        )


class Operation:
    """What operators ask a running gateway for, by signals or commands. One change at a time.

    None before `started` is set: what is asked for meanwhile waits for it.

    `succeeded` is set when a successor accepts, which has `taken` the sockets of these listeners.
    """

    def __init__(self, supervisor: Supervisor, manager: Notifier) -> None:
        self.started = asyncio.Event()
        self.succeeded = asyncio.Event()
        self.taken: list[str] = []
        traces = supervisor.traces
        overrides = supervisor.overrides
        self.methods: dict[str, Callable[..., Awaitable[Any]]] = {
            "status": supervisor.status,
            "connections": supervisor.connections,
            "reload": self._reload,
            "upgrade": self._upgrade,
            "drain": self._in_turn(overrides.drain),
            "undrain": self._in_turn(overrides.undrain),
            "weight": self._in_turn(overrides.weight),
            "view": self._view,
            "charts": _at_once(supervisor.monitor.charts),
            "alerts": _at_once(supervisor.alerting.alerts),
            "silences": _at_once(supervisor.alerting.silences),
            "silence": _at_once(supervisor.alerting.silence),
            "unsilence": _at_once(supervisor.alerting.unsilence),
            "trace_begin": traces.begin,
            "trace_next": traces.next,
            "trace_end": traces.end,
        }
        self.signals = {
            signal.SIGHUP: lambda: self._signalled(self._reload),
            signal.SIGUSR2: lambda: self._signalled(self._upgrade),
        }
        self._ending = False
        self._supervisor = supervisor
        self._manager = manager
        self._changing = asyncio.Lock()
        self._background = Background()

    async def give_up(self) -> None:
        """Take no changes any more, and give up the one that is being made. Idempotent."""
        self._ending = True
        await self._background.close()

    async def _view(self) -> View:
        """As `Monitor.view`. Raises NoFiguresError where there is none."""
        view = self._supervisor.monitor.view()
        if view is None:
            raise NoFiguresError
        return view

    def _signalled(self, change: Callable[[], Awaitable[object]]) -> None:
        async def asked() -> None:
            try:
                await change()
            except EndingError as exc:
                log.error("not_done", error=str(exc))
            except TcpgwError:
                pass  # the log says it already
            except Exception:
                log.exception("not_done")

        self._background.start(asked(), "what a signal asked for")

    async def _one(self, change: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Make a change when the start and all changes before it are done, unless this gateway ends."""
        made: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def make() -> None:
            try:
                await self.started.wait()
                async with self._changing:
                    if self.succeeded.is_set():  # by one that would not know of it
                        raise EndingError  # noqa: TRY301 - the asker's, as what `change` raises
                    result = await change()
            except Exception as exc:  # noqa: BLE001 - the asker's
                if not made.done():
                    made.set_exception(exc)
            except asyncio.CancelledError:
                if not made.done():
                    made.set_exception(EndingError())
                raise
            else:
                if not made.done():
                    made.set_result(result)

        if self._ending:
            raise EndingError
        self._background.start(make(), "a change")
        return await made

    def _in_turn(self, change: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., Awaitable[T]]:
        @functools.wraps(change)
        async def made(*params: Any) -> T:
            return await self._one(lambda: change(*params))

        return made

    async def _reload(self) -> list[str]:
        """As `Supervisor.reload`."""
        return await self._one(self._reload_now)

    async def _reload_now(self) -> list[str]:
        self._manager.tell(**reloading())
        try:
            return await self._supervisor.reload()
        finally:
            self._manager.tell(READY="1")

    async def _upgrade(self) -> dict[str, Any]:
        """Have what is installed now take over. Raises HandoverError, with all as it was."""
        return await self._one(self._upgrade_now)

    async def _upgrade_now(self) -> dict[str, Any]:
        supervisor = self._supervisor
        if os.getpid() == 1:
            raise HandoverError(
                "this gateway is process 1, with whose end the kernel ends all others: restart the container"
            )
        command = [*interpreter(), "-m", "tcpgw", "run", "--config", str(supervisor.path)]
        used = supervisor.sockets
        sockets = used | {name: one for name, one in supervisor.lent.items() if one not in used.values()}
        log.info("upgrading", sockets=sorted(sockets))
        if supervisor.admin.sockets is not None:
            sockets[SOCKET] = supervisor.admin.sockets
        try:
            seconds = _START + await asyncio.to_thread(_longest_wait, supervisor)
            pid, self.taken = await hand_over(command, self._manager.environment(), sockets, seconds=seconds)
        except HandoverError as exc:
            error = f"{exc}{await asyncio.to_thread(_fault, supervisor.path)}"
            log.error("upgrade_failed", error=error, hint="this version goes on as it was")
            raise HandoverError(error) from exc
        await supervisor.admin.close()  # who asks for the page is the successor's from now on
        self._manager.tell(MAINPID=str(pid))
        log.info("upgraded", successor=pid, listeners=self.taken)
        self.succeeded.set()
        return {"pid": pid, "listeners": self.taken}


def _at_once(method: Callable[..., T]) -> Callable[..., Awaitable[T]]:
    @functools.wraps(method)
    async def asked(*params: Any) -> T:
        return method(*params)

    return asked


def _fault(path: Path) -> str:
    """What this version finds wrong with the file, for who wonders why the next one did not start."""
    try:
        load(path)
    except ConfigError as exc:
        return f"; {shown(path)}: {exc}"
    return ""


def _longest_wait(supervisor: Supervisor) -> float:
    """Seconds that a start may wait for discovery, by the file as it is now, if that can be read."""
    services = [*supervisor.config.service]
    with contextlib.suppress(ConfigError):  # the successor may know more than this version
        services += load(supervisor.path).service
    return max(service.wait for service in services)
