"""What checks ask, and what they make of any answer."""

from typing import Any

import pytest

from tcpgw.endpoints import Endpoint
from tcpgw.health.questions import MAX_ANSWER, PASSED, Handshake, Http, Question, Rpc, SendExpect, unlike
from tcpgw.wire.messages import pack, pack_frame, unpack

ENDPOINT = Endpoint.of("fd00::1", 8080)


def answered(message: object) -> bytes:
    return pack_frame(message, 1 << 20)


def every_prefix(question: Question, answer: bytes) -> list[str]:
    """The verdicts on an answer that comes byte by byte, without repetitions."""
    verdicts = [question.judge(answer[:size]) for size in range(len(answer) + 1)]
    return list(dict.fromkeys("more" if verdict is None else verdict for verdict in verdicts))


def test_a_handshake_asks_nothing() -> None:
    """What is to be checked by the connection alone passes without a word."""
    assert Handshake().ask(ENDPOINT) == b""
    assert Handshake().judge(b"") == PASSED


# ---- HTTP ----


def http(*statuses: range, path: str = "/healthz?deep=1", host: str = "") -> Http:
    return Http(path, host, statuses or (range(200, 400),))


def test_http_request() -> None:
    """A GET names the endpoint as its host, or the host it was given, and asks for the connection's end."""
    request = http().ask(ENDPOINT)
    assert request.startswith(b"GET /healthz?deep=1 HTTP/1.1\r\nHost: [fd00::1]:8080\r\n")
    assert request.endswith(b"\r\nConnection: close\r\n\r\n")
    assert b"\r\nHost: a.example\r\n" in http(host="a.example").ask(ENDPOINT)


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        (b"HTTP/1.1 200 OK\r\n", PASSED),
        (b"HTTP/1.0 399 \r\n", PASSED),
        (b"HTTP/1.1 204\r\n", PASSED),  # without the space that RFC 9112 wants
        (b"HTTP/1.1 503 Service Unavailable\r\n", "status 503"),
        (b"HTTP/1.1 400 Bad Request\r\n", "status 400"),
    ],
)
def test_http_status(line: bytes, verdict: str) -> None:
    """The status decides, as soon as it is there."""
    assert every_prefix(http(), line) == ["more", verdict]


def test_http_statuses() -> None:
    """Any of several ranges accepts."""
    question = http(range(200, 201), range(401, 404))
    assert question.judge(b"HTTP/1.1 200 OK\r\n") == PASSED
    assert question.judge(b"HTTP/1.1 403 Forbidden\r\n") == PASSED
    assert question.judge(b"HTTP/1.1 201 Created\r\n") == "status 201"


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/2 200 \r\n", b"HTTP/1.1 2000 \r\n"])
def test_no_http(answer: bytes) -> None:
    """Another protocol is recognised without waiting for more of it, and shown."""
    assert every_prefix(http(), answer)[-1].startswith("answered b'")
    shown = repr(answer.removesuffix(b"\r\n"))
    assert http().judge(answer) == f"answered {shown} instead of an HTTP/1.1 status"


# ---- MessagePack-RPC ----


def rpc(params: Any = (), expect: Any = None, *, framed: bool = True) -> Rpc:
    return Rpc("tcpgw.ping", params, expect, framed=framed)


def test_rpc_request() -> None:
    """The request is a frame, or bare where the service's frames are."""
    assert rpc(params=(1, "a")).ask(ENDPOINT) == answered([0, 1, "tcpgw.ping", [1, "a"]])
    assert unpack(rpc(framed=False).ask(ENDPOINT)) == [0, 1, "tcpgw.ping", []]


@pytest.mark.parametrize("framed", [True, False])
def test_rpc_answer(framed: bool) -> None:
    """Any answer passes once it is whole, an error too, whatever is notified before it."""
    encode = answered if framed else pack
    answer = encode([2, "note", []]) + encode([1, 1, None, {"any": b"thing"}])
    assert every_prefix(rpc(framed=framed), answer) == ["more", PASSED]
    assert rpc(framed=framed).judge(encode([1, 1, "no such method", None])) == PASSED


@pytest.mark.parametrize(
    ("error", "why"),
    [
        ("no such method", "error 'instance_error: no such method'"),
        ({"code": "overloaded", "message": "later"}, "error 'overloaded: later'"),
        ("x" * 500, f"error 'instance_error: {'x' * 63}…"),
        ("\x1b[2J\n", r"error 'instance_error: \x1b[2J\n'"),
    ],
)
def test_rpc_error(error: object, why: str) -> None:
    """Where a result is expected an error fails, and the reason says which, at a bounded length.

    An error that answers nothing is one of a request that could not be read, and fails in any case.
    """
    assert rpc(expect=1).judge(answered([1, 1, error, None])) == why
    assert rpc(expect=1).judge(answered([1, None, error, None])) == why
    assert rpc().judge(answered([1, None, error, None])) == why


def test_rpc_expected() -> None:
    """Where something is expected, only a result that equals it passes."""
    question = rpc(expect=("ready", 3))
    assert question.judge(answered([1, 1, None, ["ready", 3]])) == PASSED
    why = "answered ['ready', 2] instead of ['ready', 3]"
    assert question.judge(answered([1, 1, None, ["ready", 2]])) == why


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",  # as a length: more than may come
        answered([1, 7, None, "of another request"]),
        answered("pong"),
        answered([]),
        b"\0\0\0\1\xc1",  # no MessagePack
        answered([1, 1, None, bytes(MAX_ANSWER)]),
    ],
)
def test_no_rpc(answer: bytes) -> None:
    """What is no answer to the request fails at once, however it is meant."""
    why = rpc().judge(answer)
    assert why is not None
    assert why.startswith("answered b")
    assert why.endswith("instead of an answer in MessagePack-RPC of at most 64 KiB")


def test_rpc_cannot_be_asked() -> None:
    """Parameters and results that MessagePack has no form of are refused where the check is made."""
    with pytest.raises(ValueError, match="no form"):
        rpc(params=[object()])
    with pytest.raises(ValueError, match="no form"):
        rpc(expect=1 << 70)


# ---- bytes ----


def test_send_expect() -> None:
    """The expected bytes may stand anywhere in the answer, and come in any pieces."""
    question = SendExpect(b"PING\r\n", b"+PONG")
    assert question.ask(ENDPOINT) == b"PING\r\n"
    assert every_prefix(question, b"hello\r\n+PONG\r\n") == ["more", PASSED]


def test_nothing_expected() -> None:
    """A check that every answer would pass, and none at all, is refused."""
    with pytest.raises(ValueError, match="expect must not be empty"):
        SendExpect(b"PING\r\n", b"")


def test_reasons_are_short() -> None:
    """A reason repeats the answer as it is written in Python, without its line's end, and not all of it."""
    question = SendExpect(b"PING\r\n", b"+PONG\r\n")
    assert unlike(b"-LOADING\r\n", question.wanted) == "answered b'-LOADING' instead of b'+PONG'"
    assert len(unlike(bytes(MAX_ANSWER), SendExpect(b"", bytes(1000)).wanted)) < 200
