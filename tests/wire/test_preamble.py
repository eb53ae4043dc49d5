"""The line that says who a client of raw TCP is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.errors import ProtocolError
from tcpgw.wire.preamble import DENIED, MAX_SIZE, Preamble, build, parse

OPENING = b"TCPGW AUTH "
words = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=50).map(
    str.encode
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"TCPGW AUTH abc\n", Preamble(b"abc", None, 15)),
        (b"TCPGW AUTH abc\r\n", Preamble(b"abc", None, 16)),
        (b"TCPGW AUTH abc k\n", Preamble(b"abc", b"k", 17)),
        (b"TCPGW AUTH abc k\r\nGET / HTTP/1.1\r\n", Preamble(b"abc", b"k", 18)),
        (b"TCPGW AUTH a.b.c user-7\n\0\xff\n", Preamble(b"a.b.c", b"user-7", 24)),
        (OPENING + b"x" * (MAX_SIZE - 12) + b"\n", Preamble(b"x" * (MAX_SIZE - 12), None, MAX_SIZE)),
    ],
)
def test_reads_a_line(data: bytes, expected: Preamble) -> None:
    """The words of the line are given, and where it ends; what follows it is left alone."""
    for kind in (bytes, bytearray, memoryview):
        assert parse(kind(data)) == expected


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (b"G", 0),
        (b"\x16\x03\x01", 0),
        (b"TCPGW auth abc\n", 6),
        (b"TCPGW AUTHX", 10),
        (b"TCPGW AUTH\n", 10),
        (b"TCPGW AUTH \n", 11),
        (b"TCPGW AUTH  abc", 11),
        (b"TCPGW AUTH \r", 11),
        (b"TCPGW AUTH abc \n", 15),
        (b"TCPGW AUTH abc \r", 15),
        (b"TCPGW AUTH abc  k", 15),
        (b"TCPGW AUTH abc k ", 16),
        (b"TCPGW AUTH abc\rx", 15),
        (b"TCPGW AUTH abc k\r\r", 17),
        (b"TCPGW AUTH abc\0", 14),
        (b"TCPGW AUTH abc\xc3\xa9", 14),
        (b"TCPGW AUTH abc\x7f", 14),
    ],
)
def test_refuses_at_once(data: bytes, offset: int) -> None:
    """The first byte that no line can have there is refused with its offset, and those before it wait."""
    with pytest.raises(ProtocolError, match=f"^preamble, byte {offset}: ") as caught:
        parse(data)
    assert "abc" not in str(caught.value)
    assert all(parse(data[:size]) is None for size in range(offset + 1))


@pytest.mark.parametrize(
    ("data", "longest"),
    [
        (OPENING + b"x" * MAX_SIZE, MAX_SIZE - 1),
        (OPENING + b"x " + b"y" * MAX_SIZE, MAX_SIZE - 1),
        (OPENING + b"x" * (MAX_SIZE - 12) + b"\r\n", MAX_SIZE - 1),
        # A hash key and a newline would have to follow.
        (OPENING + b"x" * (MAX_SIZE - 13) + b" y\n", MAX_SIZE - 2),
    ],
)
def test_refuses_what_does_not_end(data: bytes, longest: int) -> None:
    """A line that cannot end in time is refused as soon as that is certain, however much arrives."""
    assert parse(data[:longest]) is None
    for cut in (longest + 1, len(data)):
        with pytest.raises(ProtocolError, match="does not end within 8192 bytes"):
            parse(data[:cut])


@given(words, st.none() | words, st.binary(max_size=5))
def test_what_is_built_is_read(token: bytes, hash_key: bytes | None, rest: bytes) -> None:
    """What `build` writes, `parse` reads, whatever follows, and not a byte too early."""
    line = build(token, hash_key)
    assert parse(line + rest) == Preamble(token, hash_key, len(line))
    assert all(parse(line[:size]) is None for size in range(len(line)))


@pytest.mark.parametrize(
    ("token", "hash_key"),
    [(b"", None), (b"a b", None), (b"a\n", None), ("é".encode(), None), (b"a", b""), (b"a", b"\r")],
)
def test_builds_no_other_line(token: bytes, hash_key: bytes | None) -> None:
    """What could not be read again is not written."""
    with pytest.raises(ValueError, match="must be printable ASCII without spaces"):
        build(token, hash_key)


def test_builds_no_longer_line() -> None:
    """The bound holds for who writes too."""
    assert len(build(b"x" * (MAX_SIZE - 12))) == MAX_SIZE
    with pytest.raises(ValueError, match="8193 bytes is longer than 8192"):
        build(b"x" * (MAX_SIZE - 11))


def test_a_denial_is_one_line() -> None:
    """A client tells the denial from an instance's answer by its first line."""
    assert DENIED == b"TCPGW DENIED\n"
