"""Random and damaged frames of every framing: only ProtocolError escapes, and a cut changes nothing."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.errors import ProtocolError
from tcpgw.wire.frames import PRESETS, FrameSplitter, LengthField
from tests.support.splitting import cut, feed_all

MAX = 5000
HEADERS = [
    b"\0\0\0\3",
    b"\3\0\0\0",
    b"\0\3",
    b"\3",
    b"\x83\0",
    b"PRPC\0\0\0\3\0\0\0\0",
    b"\xda\xbb" + bytes(13) + b"\3",
]
fields = st.sampled_from(sorted(PRESETS)).map(PRESETS.__getitem__) | st.builds(
    LengthField,
    offset=st.integers(0, 20),
    width=st.sampled_from([1, 2, 3, 4, 8, "varint"]),
    endian=st.sampled_from(["big", "little"]),
    adjust=st.integers(-300, 300),
    includes_header=st.booleans(),
)
# Small bytes make small lengths, which get further than noise.
noise = st.binary(max_size=200) | st.lists(st.sampled_from(b"\0\0\0\1\2\x80\xff"), max_size=200).map(bytes)
streams = st.lists(st.sampled_from(HEADERS) | noise, max_size=12).map(b"".join)


def outcome(field: LengthField, chunks: list[bytes]) -> list[int] | None:
    """The one exception that may escape becomes None; any other fails the test."""
    try:
        return feed_all(FrameSplitter(field, MAX), chunks)
    except ProtocolError:
        return None


@settings(max_examples=400)
@given(fields, cut(streams))
def test_any_bytes_give_ends_or_a_refusal(field: LengthField, chunks: list[bytes]) -> None:
    """Whatever arrives is split alike however it is cut, or refused however it is cut."""
    assert outcome(field, chunks) == outcome(field, [b"".join(chunks)])
