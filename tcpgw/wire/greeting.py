"""How clients present a credential with the first bytes that they send, in whichever protocol."""

from typing import NamedTuple, Protocol

from tcpgw.errors import Code
from tcpgw.wire import preamble


class Presented(NamedTuple):
    """What a client presented with the first `size` bytes that it sent. `welcome` is the answer to them.

    `hash_key` is b"" where it gave none.
    """

    token: bytes
    hash_key: bytes
    size: int
    welcome: bytes = b""


class Greeting(Protocol):
    """Stateless."""

    def parse(self, data: bytes) -> Presented | None:
        """Read what `data` begins with; None: more bytes are needed.

        Raises ProtocolError where it is none, as soon as no further bytes can mend it.
        """

    def denial(self, data: bytes, code: Code) -> bytes:
        """The last thing that is said to a client that has sent `data` so far. It tells nothing more."""


class Line:
    """Of raw TCP, and of codecs that have no calls: see preamble.py."""

    def parse(self, data: bytes) -> Presented | None:
        line = preamble.parse(data)
        return Presented(line.token, line.hash_key or b"", line.size) if line is not None else None

    def denial(self, data: bytes, code: Code) -> bytes:  # noqa: ARG002 - the interface's
        return preamble.DENIED
