"""MessagePack-RPC messages in every form that an encoder may choose, written out byte by byte."""

import struct
from typing import NamedTuple

import msgpack
from hypothesis import strategies as st

from tcpgw.wire.codec import LARGE, PARTS, Kind, Run
from tests.support.batches import Given

INTEGERS = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
TEXTS = {0xD9: 1, 0xDA: 2, 0xDB: 4, 0xC4: 1, 0xC5: 2, 0xC6: 4}


class Written(NamedTuple):
    """A message: its array's header, its type, its id as encoded (a notification has none), and the rest."""

    header: bytes
    kind: Kind
    token: bytes
    rest: bytes

    @property
    def bare(self) -> bytes:
        return self.header + bytes((self.kind,)) + self.token + self.rest

    @property
    def framed(self) -> bytes:
        return frame(self.bare)

    def as_request(self, number: int) -> bytes:
        """What an instance gets of it, without a length."""
        return b"\x94\x00\xce" + number.to_bytes(4) + self.rest

    def as_answer(self, token: bytes) -> bytes:
        """What a client that asked with `token` gets of it, without a length."""
        return b"\x94\x01" + token + self.rest


def frame(message: bytes) -> bytes:
    return struct.pack(">I", len(message)) + message


def text(lead: int, value: bytes) -> bytes:
    """A text or byte string of the given form; 0xa0: the shortest one."""
    if lead == 0xA0:
        return bytes((0xA0 | len(value),)) + value
    return bytes((lead,)) + len(value).to_bytes(TEXTS[lead]) + value


def request(token: bytes, params: bytes = b"\x90", method: bytes = b"\xa1m") -> Written:
    return Written(b"\x94", Kind.REQUEST, token, method + params)


def answer(token: bytes, result: bytes = b"\xc0", error: bytes = b"\xc0") -> Written:
    return Written(b"\x94", Kind.ANSWER, token, error + result)


def notification(params: bytes = b"\x90") -> Written:
    return Written(b"\x93", Kind.NOTIFY, b"", b"\xa1m" + params)


def number_in(lead: int, number: int) -> bytes:
    """A number in the form that `lead` stands for, or in the shortest one where it does not fit."""
    width = INTEGERS[lead]
    if number >= 1 << 8 * width - (lead >= 0xD0):
        packed: bytes = msgpack.packb(number)
        return packed
    return bytes((lead,)) + number.to_bytes(width)


# Every integer there is, in every form: unsigned and signed, in one byte to nine.
tokens = (
    st.sampled_from([*range(0x80), *range(0xE0, 0x100)]).map(lambda lead: bytes((lead,)))
    | st.sampled_from([b"\x00", b"\xce\x00\x01\x00\x00", b"\xcf" + b"\xff" * 8])  # alike, to collide
    | st.sampled_from(sorted(INTEGERS)).flatmap(
        lambda lead: st.binary(min_size=INTEGERS[lead], max_size=INTEGERS[lead]).map(bytes((lead,)).__add__)
    )
)
names = st.builds(text, st.sampled_from(sorted(TEXTS)), st.binary(max_size=255)) | st.builds(
    text, st.just(0xA0), st.binary(max_size=31)
)
sizes = st.integers(0, 30) | st.sampled_from([LARGE - 30, LARGE, LARGE + 1, 3 * LARGE])


_DOCUMENTS: list[bytes] = [msgpack.packb(one) for one in (None, True, [], {}, [1, "a"], {"k": [None]}, -7)]
_BYTES = bytes(at % 251 for at in range(4 * LARGE))


def blob(size: int, start: int = 0) -> bytes:
    """A byte string of which no two pieces look alike."""
    packed: bytes = msgpack.packb(_BYTES[start : start + size])
    return packed


def values() -> st.SearchStrategy[bytes]:
    """A value of any size: a small document, or a byte string with contents of its own."""
    return st.sampled_from(_DOCUMENTS) | st.builds(blob, sizes, st.integers(0, 99))


headers = st.sampled_from([b"", b"\xdc\x00", b"\xdd\x00\x00\x00"])


@st.composite
def headed(draw: st.DrawFn, count: int) -> bytes:
    """An array's header: mostly the one that all encoders write."""
    lead = draw(st.just(b"") | headers)
    return lead + bytes((count,)) if lead else bytes((0x90 | count,))


requests = st.builds(
    lambda header, token, name, value: Written(header, Kind.REQUEST, token, name + value),
    headed(4),
    tokens,
    names,
    values(),
)
notifications = st.builds(
    lambda header, name, value: Written(header, Kind.NOTIFY, b"", name + value), headed(3), names, values()
)


def delivered(runs: list[Run], large: list[Run]) -> list[Given]:
    """The answers that a Mux gave back, one by one: those in runs, in order, then those in pieces."""
    single = [
        (owner, b"".join(parts[at : at + PARTS]), batch)
        for owner, parts, batch in runs
        for at in range(0, len(parts), PARTS)
    ]
    return single + [(owner, b"".join(parts), batch) for owner, parts, batch in large]
