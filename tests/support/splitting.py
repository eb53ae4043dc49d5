"""Feeding a splitter: streams cut anywhere, and what must hold after each chunk."""

from itertools import pairwise

from hypothesis import strategies as st

from tcpgw.wire.frames import Splitter


@st.composite
def cut(draw: st.DrawFn, streams: st.SearchStrategy[bytes]) -> list[bytes]:
    """A stream in chunks: a few, one for each byte, or all of it in one."""
    stream = draw(streams)
    if draw(st.booleans()):
        return [stream[at : at + 1] for at in range(len(stream))]
    places = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    return [stream[start:end] for start, end in pairwise([0, *places, len(stream)])]


def feed_all(splitter: Splitter, chunks: list[bytes]) -> list[int]:
    """Feed them in turn and return the ends of the frames, as offsets in the stream.

    Holds after each: ends ascend, lie within the chunk, and `partial` is what came after the last one.
    """
    ends: list[int] = []
    fed = 0
    for chunk in chunks:
        here = splitter.feed(chunk)
        assert here == sorted(set(here))
        assert all(0 < end <= len(chunk) for end in here)
        ends += [fed + end for end in here]
        fed += len(chunk)
        assert splitter.partial == fed - (ends[-1] if ends else 0)
    return ends
