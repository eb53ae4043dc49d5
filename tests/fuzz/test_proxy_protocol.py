"""Random and damaged PROXY headers: only ProtocolError escapes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import ProtocolError
from tcpgw.wire.proxy_protocol import MAX_SIZE, Header, build_v1, build_v2, parse

V4 = ("192.168.0.1", 56324), ("192.168.0.11", 443)
V6 = ("2001:db8::1", 56324), ("192.168.0.11", 443)
SEEDS = [
    build_v1(*V4),
    build_v1(*V6),
    build_v1(None, None),
    build_v2(*V4, [(5, b"id"), (4, b"\0" * 8)]),
    build_v2(*V6),
    build_v2(None, None),
    # HAProxy's own, with a checksum.
    bytes.fromhex("0d0a0d0a000d0a515549540a211100130a0102030a00000904d200500300047c368be8"),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A header with a few bytes overwritten and something after it: gets further in than pure noise."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data) + draw(st.binary(max_size=30))


def outcome(data: bytes) -> Header | str | None:
    """The one exception that may escape becomes a value; any other fails the test."""
    try:
        return parse(data)
    except ProtocolError:
        return "refused"


@settings(max_examples=500)
@given(data=st.one_of(damaged(), st.binary(max_size=200)))
def test_a_verdict_is_final(data: bytes) -> None:
    """Whatever arrives gives a header, a refusal or a wait, and more bytes change nothing but a wait."""
    verdict = None
    for size in range(len(data) + 1):
        latest = outcome(data[:size])
        if verdict is None:
            verdict = latest
        assert latest == verdict
        if isinstance(latest, Header):
            assert latest.size <= size
    # Silence is not an answer for ever: no header is longer than MAX_SIZE.
    assert verdict is not None or outcome(data.ljust(MAX_SIZE, b"\0")) is not None
