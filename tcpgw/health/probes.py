"""Active checks of an endpoint: one connection, one question, one time-out for all of it.

How a connection ends decides where it stays in TIME_WAIT for a minute, and what the instance sees of it:

- A connect alone is ended by RST, as HAProxy does. Nothing stays; and as the last ACK is held back (for 40 ms
  at most) and RST comes instead, the instance's program does not even hear of it.
- After an answer both sides end by FIN. Where a protocol can ask for it (HTTP), the instance is first, and
  TIME_WAIT stays there; else it is here, which costs one port *for this instance* only, 30 at a check every
  2 s: the kernel takes a port as often as there are destinations.
- Whatever else, such as no answer, is ended by RST: nothing waits for who may never come back.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from tcpgw.endpoints import Endpoint
from tcpgw.errors import OverloadError
from tcpgw.health.exchange import RESET_ON_CLOSE, Exchange, Secure, in_words
from tcpgw.health.questions import Handshake, Http, Question, Rpc, SendExpect

Probe = Callable[[Endpoint, float], Coroutine[Any, Any, str | None]]
"""Checks an endpoint within so many seconds: None, or a short text of why it failed.

Raises OverloadError where there was no descriptor, port, memory or time here to ask, and nothing else but
CancelledError. Leaves nothing open, whatever happens.
"""

# What fails here and not at the instance.
_OUR_OWN = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}


# ---- the kinds ----


async def tcp(endpoint: Endpoint, seconds: float) -> str | None:
    """Pass where the endpoint's kernel takes a connection. A full backlog is no answer."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
            async with asyncio.timeout(seconds):
                await loop.sock_connect(sock, endpoint)
    except TimeoutError:
        _check_punctual(began, seconds)
        return f"no connection within {seconds:g} s"
    except OSError as exc:
        return _failure(exc)
    return None


def tls(secure: Secure) -> Probe:
    """Pass when the handshake is done, and was not taken back: TLS 1.3 refuses our certificate after it."""
    return partial(_converse, Handshake(), secure)


def http(
    path: str = "/",
    *,
    host: str = "",
    statuses: Sequence[range] = (range(200, 400),),
    secure: Secure | None = None,
) -> Probe:
    """See `Http`.

    Not aiohttp's client: on the connection that the other kinds need it is a request and a status line, at
    less than half the CPU, with no session to be closed.
    """
    return partial(_converse, Http(path, host, statuses), secure)


def rpc(
    method: str,
    params: Sequence[Any] = (),
    *,
    expect: Any = None,
    framed: bool = True,
    secure: Secure | None = None,
) -> Probe:
    """See `Rpc`. Raises ValueError."""
    return partial(_converse, Rpc(method, params, expect, framed=framed), secure)


def send_expect(send: bytes, expect: bytes, *, secure: Secure | None = None) -> Probe:
    """See `SendExpect`. Raises ValueError."""
    return partial(_converse, SendExpect(send, expect), secure)


async def _converse(
    question: Question, secure: Secure | None, endpoint: Endpoint, seconds: float
) -> str | None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    exchange = Exchange(question, endpoint, secure)
    try:
        async with asyncio.timeout(seconds):
            await loop.create_connection(lambda: exchange, *endpoint)
            await exchange.ended
    except TimeoutError:
        if why := exchange.conclude(f" within {seconds:g} s"):
            _check_punctual(began, seconds)
        return why or None
    except OSError as exc:
        return _failure(exc)
    finally:
        exchange.drop()
    return exchange.conclude("") or None


def _failure(exc: OSError) -> str:
    if exc.errno in _OUR_OWN:
        raise OverloadError(f"cannot open a connection: {os.strerror(exc.errno)}") from exc
    return in_words(exc)


def _check_punctual(began: float, seconds: float) -> None:
    """Raise OverloadError where the time-out came so late that the answer may have come in time.

    A process that was stopped, or starved of CPU, would else find every instance dead when it goes on.
    """
    late = asyncio.get_running_loop().time() - began - seconds
    if late > seconds / 2:
        raise OverloadError(f"a check's time-out of {seconds:g} s came {late:.2g} s late: too busy to judge")
