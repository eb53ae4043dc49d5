r"""The line by which a client of raw TCP, or of a codec that has no calls, says who it is.

    TCPGW AUTH <token>[ <hash key>]\n

It comes before anything else, CRLF is taken too, and token and hash key are printable ASCII without spaces.
The gateway answers nothing to a good one, so that the client's first bytes may follow at once; to a bad one
it answers DENIED.
"""

import re
from typing import NamedTuple

from tcpgw.errors import ProtocolError

# Bytes with the newline: as HTTP servers allow for a header line, which is how long tokens are made.
MAX_SIZE = 8192

DENIED = b"TCPGW DENIED\n"
"""What a client is told instead of what was wrong, before its connection ends."""

_OPENING = b"TCPGW AUTH "
_WORD = b"[!-~]+"
_LINE = re.compile(b"%b(%b)(?: (%b))?\r?\n" % (_OPENING, _WORD, _WORD))
# All that can still become a line.
_BEGUN = re.compile(b"%b(?:%b(?:\r| (?:%b\r?)?)?)?" % (_OPENING, _WORD, _WORD))


class Preamble(NamedTuple):
    """What the line said. `size` is how many bytes it took; those after it are for the instance."""

    token: bytes
    hash_key: bytes | None
    size: int


def parse(data: bytes | bytearray | memoryview) -> Preamble | None:
    """Read the line that `data` starts with; None means that more bytes are needed.

    Call it again with a growing buffer (reads of at most MAX_SIZE keep that small). Raises ProtocolError with
    the byte offset, as soon as no further bytes can mend it; its text holds no part of a token.
    """
    head = bytes(data[:MAX_SIZE])
    if (line := _LINE.match(head)) is not None:
        return Preamble(line[1], line[2], line.end())
    if not head.startswith(_OPENING[: len(head)]):
        offset = next(at for at, pair in enumerate(zip(head, _OPENING, strict=False)) if pair[0] != pair[1])
        raise _error(offset, "the preamble TCPGW AUTH <token> (does the client send one?)", head)
    # Behind a space there must be a character before the newline.
    wanting = 2 if head.endswith(b" ") else 1
    if len(head) + wanting > MAX_SIZE:
        raise ProtocolError(f"preamble: it does not end within {MAX_SIZE} bytes")
    begun = _BEGUN.match(head)
    if begun is not None and begun.end() < len(head):
        raise _error(begun.end(), "printable ASCII, one space at most, then a newline", head)
    return None


def build(token: bytes, hash_key: bytes | None = None) -> bytes:
    """Write the line. Raises ValueError for what cannot stand in it, without repeating it."""
    line = _OPENING + token + (b"" if hash_key is None else b" " + hash_key) + b"\n"
    for name, word in (("token", token), ("hash key", hash_key)):
        if word is not None and not re.fullmatch(_WORD, word):
            raise ValueError(f"a preamble's {name} must be printable ASCII without spaces, and not empty")
    if len(line) > MAX_SIZE:
        raise ValueError(f"a preamble of {len(line)} bytes is longer than {MAX_SIZE}")
    return line


def _error(offset: int, expected: str, head: bytes) -> ProtocolError:
    return ProtocolError(f"preamble, byte {offset}: expected {expected}, got 0x{head[offset]:02x}")
