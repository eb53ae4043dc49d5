"""What an active check asks an instance, and what it makes of the answer. Pure: bytes in, a verdict out."""

import re
from collections.abc import Sequence
from typing import Any, Protocol

from tcpgw.endpoints import Endpoint
from tcpgw.errors import ProtocolError
from tcpgw.wire.codec import Kind
from tcpgw.wire.messages import LengthFrames, RpcError, StreamFrames, pack, pack_frame, unpack

PASSED = ""
"""The verdict that nothing is wrong; every other is a short text of what is."""
MAX_ANSWER = 64 << 10
"""Bytes. What a health check has to say fits in a thousandth of it, and 64 checks run at a time."""

# Characters of an answer, and of all else that an instance chose, that a reason repeats: it stands in a log
# line and on the status page.
_SHOWN = 80


class Question(Protocol):
    """One kind of check.

    `wanted` says what a right answer would have been. `they_end`: the instance was asked to end the
    connection itself, so that its end is the one that stays in TIME_WAIT.
    """

    @property
    def wanted(self) -> str: ...

    @property
    def they_end(self) -> bool: ...

    def ask(self, endpoint: Endpoint) -> bytes:
        """Return what to send, which may be nothing."""

    def judge(self, answer: bytes) -> str | None:
        """Judge all that has come so far: PASSED, why not, or None while more is needed.

        Called with nothing as well, once the question is sent.
        """


def unlike(answer: bytes, wanted: str) -> str:
    """Say that another answer was wanted."""
    return f"answered {_shown(answer)} instead of {wanted}"


class Handshake:
    """Nothing: that the connection, and TLS on it, came about is the answer."""

    wanted = "a handshake"
    they_end = False

    def ask(self, endpoint: Endpoint) -> bytes:  # noqa: ARG002 - the interface's
        return b""

    def judge(self, answer: bytes) -> str:  # noqa: ARG002
        return PASSED


class Http:
    """`GET path`, judged by the status alone. HTTP/1.1 (RFC 9112).

    `path` is an origin-form target, with its query; `host` is the Host field, the endpoint's address by
    default; `statuses` are the accepted ones. No redirection is followed.
    """

    wanted = "an HTTP/1.1 status"
    they_end = True  # Connection: close

    # The line's shortest form ends with the space after the status (RFC 9112, section 4); some leave it out.
    _LINE = re.compile(rb"HTTP/1\.[0-9] ([0-9]{3})[ \r\n]")
    _WHOLE = len(b"HTTP/1.1 200 ")

    def __init__(self, path: str, host: str, statuses: Sequence[range]) -> None:
        self._path = path
        self._host = host
        self._statuses = statuses

    def ask(self, endpoint: Endpoint) -> bytes:
        return (
            f"GET {self._path} HTTP/1.1\r\nHost: {self._host or endpoint}\r\nUser-Agent: tcpgw-check\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n"
        ).encode()

    def judge(self, answer: bytes) -> str | None:
        line = self._LINE.match(answer)
        if line is None:
            possible = len(answer) < self._WHOLE and b"HTTP/1.".startswith(answer[:7])
            return None if possible else unlike(answer, self.wanted)
        status = int(line[1])
        return PASSED if any(status in accepted for accepted in self._statuses) else f"status {status}"


class Rpc:
    """A request in MessagePack-RPC; `framed` as in `MsgpackRpc`.

    Passes if any answer comes, an error too: an instance that says that it does not know the method works.
    Where something is expected, it passes if the result equals that.
    Raises ValueError where MessagePack has no form of `params` or `expect`.
    """

    wanted = f"an answer in MessagePack-RPC of at most {MAX_ANSWER >> 10} KiB"
    they_end = False

    _ID = 1

    def __init__(self, method: str, params: Sequence[Any], expect: Any, *, framed: bool) -> None:
        request = [Kind.REQUEST, self._ID, method, list(params)]
        self._request = pack_frame(request, MAX_ANSWER) if framed else pack(request)
        self._expect = unpack(pack(expect))  # as it would come: without tuples, say
        self._frames = LengthFrames if framed else StreamFrames

    def ask(self, endpoint: Endpoint) -> bytes:  # noqa: ARG002 - the interface's
        return self._request

    def judge(self, answer: bytes) -> str | None:
        frames = self._frames(MAX_ANSWER)
        frames.feed(answer)
        try:
            while (body := frames.take()) is not None:
                match unpack(body):
                    case [Kind.ANSWER, self._ID, None, result]:
                        return self._compare(result)
                    case [Kind.ANSWER, self._ID, _, _] if self._expect is None:
                        return PASSED
                    case [Kind.ANSWER, self._ID | None, error, _]:  # nil: of what could not be read
                        return f"error {_cut(repr(str(RpcError.read(error))))}"
                    case [Kind.NOTIFY, *_]:
                        pass  # servers may notify
                    case _:
                        return unlike(answer, self.wanted)
        except ProtocolError:
            return unlike(answer, self.wanted)
        return None

    def _compare(self, result: Any) -> str:
        if self._expect is None or result == self._expect:
            return PASSED
        return f"answered {_cut(repr(result))} instead of {_cut(repr(self._expect))}"


class SendExpect:
    """Any bytes, and bytes that the answer must contain.

    Containing rather than beginning, as HAProxy's `tcp-check expect string`: an instance may greet first. The
    price is that an answer is wrong only when the time is over or the connection ends. Raises ValueError for
    an empty `expect`.
    """

    they_end = False

    def __init__(self, send: bytes, expect: bytes) -> None:
        if not expect:
            raise ValueError("expect must not be empty: whatever comes contains nothing")
        self.wanted = _shown(expect)
        self._send = send
        self._expect = expect

    def ask(self, endpoint: Endpoint) -> bytes:  # noqa: ARG002 - the interface's
        return self._send

    def judge(self, answer: bytes) -> str | None:
        return PASSED if self._expect in answer else None


def _shown(data: bytes) -> str:
    # Cut before and after: an answer has 64 KiB, and each of its bytes may become four characters.
    return _cut(repr(data[:_SHOWN].removesuffix(b"\r\n")))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
