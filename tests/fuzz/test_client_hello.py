"""Random and damaged ClientHellos: only ProtocolError escapes, and a cut changes nothing."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import ProtocolError
from tcpgw.wire.client_hello import MAX_SIZE, ClientHello, parse
from tests.support.hellos import alpn, extension, message, openssl_hello, records, server_name

SMALL = message(server_name(b"a.example") + alpn(b"h2", b"x"))
SEEDS = [
    openssl_hello("a.example.com", ["h2", "http/1.1"]),
    openssl_hello(),
    records(SMALL),
    records(SMALL, 3, 4, 60),
    records(message(extension(99, bytes(300)) + server_name(b"late")), 200),
    records(message(None)),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A hello with a few bytes overwritten, cut out or put in, and something behind it."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(data) + draw(st.binary(max_size=30))


def outcome(data: bytes) -> ClientHello | str | None:
    """The one exception that may escape becomes its text; any other fails the test."""
    try:
        return parse(data)
    except ProtocolError as exc:
        return str(exc)


@settings(max_examples=300)
@given(data=st.one_of(damaged(), st.binary(max_size=200)))
def test_a_verdict_is_final(data: bytes) -> None:
    """Whatever arrives gives a hello, a refusal or a wait, and more bytes change nothing but a wait."""
    verdict = None
    for size in range(len(data) + 1):
        latest = outcome(data[:size])
        if verdict is None:
            verdict = latest
        assert latest == verdict
    # Silence is not an answer for ever: no hello is longer than MAX_SIZE.
    assert verdict is not None or outcome(data.ljust(MAX_SIZE, b"\x16")) is not None
