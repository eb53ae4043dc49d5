"""The control socket: what commands such as `reload` and `status` ask a running gateway for."""

import contextlib
import inspect
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from tcpgw.errors import TcpgwError
from tcpgw.process.control import places, usable
from tcpgw.service import RpcError, Service

log = structlog.get_logger()

REFUSED = "refused"
"""The code of an error whose blame is the operator's: the file or the question is at fault, or what is asked
for cannot be had."""
FAILED = "failed"
"""The code of any other."""


class RefusedError(TcpgwError):
    """What is asked for cannot be had, and nothing has changed."""

    blame = "operator"


class RunningError(TcpgwError):
    """Another gateway runs with this configuration."""

    blame = "operator"


def refuse_second(config: Path) -> None:
    """Raise RunningError where a gateway runs with this file already.

    To be called before anything else is done: SO_REUSEPORT would let both accept.
    """
    place = next(filter(_answers, places(config, os.environ)), None)
    if place is not None:
        raise RunningError(
            f"a gateway runs with {config} already, and answers at {place}:"
            " use `tcpgw reload` or `tcpgw upgrade`"
        )


@contextlib.asynccontextmanager
async def controlled(config: Path, methods: Mapping[str, Callable[..., Any]]) -> AsyncIterator[Path | None]:
    """Answer on the control socket for as long as the context lasts; yield where that is.

    Without a place for it the gateway runs all the same, and None is yielded: signals still work. Who answers
    there before is replaced: see `refuse_second`.
    """
    place = next(filter(usable, places(config, os.environ)), None)
    if place is None:
        tried = ", ".join(str(place.parent) for place in places(config, os.environ))
        log.warning(
            "no_control_socket",
            hint=f"no folder of ours for it: {tried}; SIGHUP and SIGUSR2 work, the commands do not",
        )
        yield None
        return
    # Under another name first: whoever asks finds the old one or the new one, and never nobody.
    unfinished = place.with_name(f"{os.getpid()}.tmp")
    service = Service({name: _guarded(method) for name, method in methods.items()}, stop_timeout=1.0)
    async with contextlib.AsyncExitStack() as stack:
        mask = os.umask(0o177)
        try:
            await stack.enter_async_context(service.serving(f"unix:{unfinished}"))
        finally:
            os.umask(mask)
        unfinished.rename(place)
        inode = place.stat().st_ino
        try:
            yield place
        finally:
            with contextlib.suppress(OSError):
                if place.stat().st_ino == inode:  # else the successor's
                    place.unlink()


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    taken = inspect.signature(method)

    async def call(*params: Any) -> Any:
        try:
            taken.bind(*params)
        except TypeError as exc:
            raise RpcError(REFUSED, f"{exc}: is the command of another version than the gateway?") from None
        try:
            return await method(*params)
        except TcpgwError as exc:
            raise RpcError(REFUSED if exc.blame == "operator" else FAILED, str(exc)) from None

    return call


def _answers(place: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        probe.connect(str(place))
        return True
    return False
