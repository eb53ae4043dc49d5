"""Random and damaged preambles: only ProtocolError escapes."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import ProtocolError
from tcpgw.wire.preamble import MAX_SIZE, Preamble, build, parse

SEEDS = [build(b"tcpgw_k3v9x2mq7bta_" + b"A" * 43), build(b"eyJ.eyJ.c2ln", b"user-7"), b"TCPGW AUTH a b\r\n"]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A line with a few bytes overwritten and something after it: gets further in than pure noise."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.sampled_from(b" \r\n\0ax\xff"))
    return bytes(data) + draw(st.binary(max_size=30))


def outcome(data: bytes) -> Preamble | str | None:
    """The one exception that may escape becomes a value; any other fails the test."""
    try:
        return parse(data)
    except ProtocolError:
        return "refused"


@settings(max_examples=500)
@given(data=st.one_of(damaged(), st.binary(max_size=100)))
def test_a_verdict_is_final(data: bytes) -> None:
    """Whatever arrives gives a preamble, a refusal or a wait; more bytes change nothing but a wait."""
    verdict = None
    for size in range(len(data) + 1):
        latest = outcome(data[:size])
        if verdict is None:
            verdict = latest
        assert latest == verdict
        if isinstance(latest, Preamble):
            assert latest.size <= size
            assert parse(build(latest.token, latest.hash_key)) is not None
    # Silence is not an answer for ever: no preamble is longer than MAX_SIZE.
    assert verdict is not None or outcome(data.ljust(MAX_SIZE, b"x")) == "refused"


@settings(max_examples=500)
@given(data=st.one_of(damaged(), st.binary(max_size=100)))
def test_a_wait_can_end_well(data: bytes) -> None:
    """Where more bytes are asked for, some would make it a preamble."""
    if outcome(data) is None:
        opening = b"TCPGW AUTH "
        rest = opening[len(data) :] + b"x" if len(data) < len(opening) else b""
        tails = (b"\n", b"x\n")
        assert any(isinstance(outcome(data + rest + tail), Preamble) for tail in tails)
