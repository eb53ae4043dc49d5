"""How an rpc client says who it is: the first request of its connection, of the method `tcpgw.auth`.

Its parameters are the token and, if the client wants to be hashed by it, a hash key: two texts in
MessagePack-RPC, the fields 1 and 2 in Thrift. The answer says nothing (nil, void), or is an error.
"""

from tcpgw.errors import Code, ProtocolError
from tcpgw.wire.codec import Codec, Kind
from tcpgw.wire.greeting import Presented
from tcpgw.wire.msgpack_scan import MsgpackSplitter, skip

METHOD = b"tcpgw.auth"
MAX_SIZE = 8192
"""Bytes of the whole frame: as much as a preamble may have, and as much as HTTP servers take for a header."""

# The first byte of a MessagePack-RPC message without a length: an array of 3 or 4.
_BARE = frozenset(b"\x93\x94\xdc\xdd")
# Bytes before the method's name in the longest of all forms: an array, its type, an id, a text's head. Behind
# the name the first bytes of an array of up to two, or of any by its longer forms; and of a text.
_LEAD = 5 + 1 + 9 + 5
_FEW = frozenset(b"\x90\x91\x92\xdc\xdd")
_TEXT = frozenset(range(0xA0, 0xC0)) | frozenset(b"\xd9\xda\xdb\xc4\xc5\xc6")


class AuthFrame:
    """Reads that request and answers it: a Greeting. Stateless.

    `codec` reads frames and `bare`, where there is one, messages without a length. `first` is the step to
    the first parameter: 0 in MessagePack-RPC, 1 in Thrift.
    """

    def __init__(self, codec: Codec, bare: Codec | None, *, first: int) -> None:
        self._codec = codec
        self._bare = bare
        self._first = first

    def parse(self, data: bytes) -> Presented | None:
        """As `Greeting.parse`."""
        codec = self._speaks(data)
        if codec is not self._codec:
            _check_start(data)
        end = self._end(data)
        if end > MAX_SIZE:
            raise ProtocolError(
                f"the first frame has more than {MAX_SIZE} bytes: it must call {METHOD.decode()}"
            )
        if end > len(data):
            return None
        message = codec.read(data, 0, end)
        if message.kind is not Kind.REQUEST or message.method != METHOD:
            raise ProtocolError(f"the first frame calls {message.method[:64]!r}, not {METHOD.decode()}")
        token = self._text(codec, data, message.rest, end, self._first)
        if not token:
            raise ProtocolError(f"the first frame calls {METHOD.decode()} without a token")
        hash_key = self._text(codec, data, message.rest, end, self._first + 1)
        return Presented(token, hash_key, end, codec.done(message.token))

    def denial(self, data: bytes, code: Code) -> bytes:
        """As `Greeting.denial`: an error that answers the first request, if that can be read."""
        codec = self._speaks(data)
        token = codec.unknown(data[:8])
        try:
            end = self._end(data)
            if 0 < end <= len(data):
                message = codec.read(data, 0, end)
                token = message.token if message.kind is Kind.REQUEST else token
        except ProtocolError:
            pass
        return codec.error(token, code, "access denied")

    def _speaks(self, data: bytes) -> Codec:
        return self._bare if self._bare is not None and data[:1] and data[0] in _BARE else self._codec

    def _end(self, data: bytes) -> int:
        """Where the first frame ends, beyond what there is of it where that is not all."""
        if self._speaks(data) is self._codec:
            return 4 + int.from_bytes(data[:4], "big") if len(data) >= 4 else len(data) + 1
        end = skip(data, 0)
        if end > len(data):  # then all that is there is of this one, and what can be no frame is refused
            MsgpackSplitter(MAX_SIZE).feed(data)
        return end

    def _text(self, codec: Codec, data: bytes, rest: int, end: int, step: int) -> bytes:
        body = data[rest:end]
        span = codec.find(body, 0, (step,))
        return (codec.key(body, span) or b"") if span is not None else b""


def _check_start(data: bytes) -> None:
    """Refuse what cannot be the call before its end is looked for, which takes longest in what is none."""
    at = data.find(METHOD, 0, _LEAD + len(METHOD))
    if at < 0:
        if len(data) >= _LEAD + len(METHOD):
            raise ProtocolError(f"the first message does not call {METHOD.decode()}")
        return
    behind = data[at + len(METHOD) :][:2]
    few = not behind or behind[0] in _FEW
    text = len(behind) < 2 or behind[0] not in b"\x91\x92" or behind[1] in _TEXT
    if not few or not text:
        raise ProtocolError(f"the first message calls {METHOD.decode()} without a token")
