"""The bytes that requests carry."""

from hypothesis import given
from hypothesis import strategies as st

from tcpgw.bench.payload import PERIOD, Stream

STREAM = Stream()


@given(at=st.integers(0, 3 * PERIOD), size=st.integers(0, 3 * PERIOD))
def test_what_is_cut_matches(at: int, size: int) -> None:
    """A payload of any size from any place, past the end of the period too, is the stream's at that place."""
    data = b"".join(STREAM.cut(at, size))
    assert len(data) == size
    assert STREAM.matches(data, at)
    assert STREAM.matches(memoryview(data), at + PERIOD)


@given(at=st.integers(0, PERIOD), size=st.integers(1, 600_000), data=st.data())
def test_a_changed_byte_is_noticed(at: int, size: int, data: st.DataObject) -> None:
    """One wrong bit anywhere in a payload is found."""
    payload = bytearray(b"".join(STREAM.cut(at, size)))
    payload[data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert not STREAM.matches(bytes(payload), at)


@given(at=st.integers(0, PERIOD), shift=st.integers(1, PERIOD - 1))
def test_another_requests_payload_is_noticed(at: int, shift: int) -> None:
    """A payload of 64 bytes matches nowhere else."""
    assert not STREAM.matches(b"".join(STREAM.cut(at, 64)), at + shift)
