"""MessagePack-RPC as its Python ends need it: messages are decoded whole, which the gateway never does.

`[0, id, method, params]` asks, `[1, id, error, result]` answers, `[2, method, params]` notifies. In frames,
the project's own form, each follows its length (4 bytes, big-endian); in a raw stream, the original form,
they follow each other. The specification: github.com/msgpack-rpc/msgpack-rpc/blob/master/spec.md
"""

import struct
from typing import Any, cast

import msgpack

from tcpgw.errors import Code, FrameTooLargeError, ProtocolError, TcpgwError
from tcpgw.wire.codec import Kind

MAX_FRAME = 16 << 20
"""Bytes. The gateway's default too, above the platform's limit of 12 MB for a body."""

INSTANCE_ERROR = "instance_error"
"""The code where a method failed without saying another, or said it in no form that has codes."""

LENGTH = struct.Struct(">I")

_CODES = {code.value: code for code in Code}
_UNSENT = frozenset({Code.UNAUTHENTICATED, Code.DENIED, Code.NO_ENDPOINT, Code.OVERLOADED})
# Old clients send byte strings as text (there was one type for both): so these pass unharmed, both ways.
_TEXT = {"unicode_errors": "surrogateescape"}
# Arrays are allocated by what their header claims, at most the body's length, for each level of nesting:
# that squares small bodies harmlessly, and larger ones into gigabytes unless their structure is seen first.
_SMALL = 4096
# Bytes of an array's header, a type and an id, each in its longest form.
_HEAD = 5 + 9 + 9


class RpcError(TcpgwError):
    """A call was answered with an error. Raised in a method, it is what the client gets.

    `code` is a Code where the gateway's own, else the instance's; `endpoint` is the instance's, where the
    gateway named it. `data` is what else the method gave; of an error in another form than ours (text, or
    `[code, message]` as editors' plug-in hosts send it) it is the whole of it.
    """

    blame = "instance"

    def __init__(
        self, code: str, message: str = "", *, endpoint: str | None = None, data: object = None
    ) -> None:
        super().__init__(code, message)
        self.code: str = _CODES.get(code, code)
        self.message = message
        self.endpoint = endpoint
        self.data = data
        # Of this class alone it depends on the case; two classes would have every user catch both.
        self.retry_safe = code in _UNSENT  # type: ignore[misc]

    def __str__(self) -> str:
        text = f"{self.code}: {self.message}" if self.message else f"{self.code}"
        return f"{text} (endpoint {self.endpoint})" if self.endpoint else text

    @classmethod
    def read(cls, error: Any) -> "RpcError":
        """Read the error of an answer, in whichever form it came."""
        match error:
            case {"code": code, **rest}:
                endpoint = rest.get("endpoint")
                return cls(
                    _shown(code),
                    _shown(rest.get("message", "")),
                    endpoint=None if endpoint is None else _shown(endpoint),
                    data=rest.get("data"),
                )
            case [code, message]:
                return cls(_shown(code), _shown(message), data=error)
            case _:
                return cls(INSTANCE_ERROR, _shown(error), data=error)

    def written(self) -> dict[str, Any]:
        """Return the error as an answer has it."""
        parts = {"endpoint": self.endpoint, "data": self.data}
        return {
            "code": str(self.code),
            "message": self.message,
            **{name: value for name, value in parts.items() if value is not None},
        }


def _shown(value: object) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return text.encode(errors="replace").decode()


def pack(message: object) -> bytes:
    """Encode a message. Raises ValueError for what MessagePack has no form of."""
    try:
        packed: bytes = msgpack.packb(message, use_bin_type=True, **_TEXT)
    except (TypeError, ValueError, OverflowError) as exc:
        raise ValueError(f"MessagePack has no form of it: {exc}") from exc
    return packed


def pack_frame(message: object, max_frame: int) -> bytes:
    """Encode a message as a frame. Raises ValueError, and FrameTooLargeError above `max_frame`."""
    body = pack(message)
    if len(body) > max_frame:
        raise _too_large(len(body), max_frame)
    return LENGTH.pack(len(body)) + body


def unpack(body: bytes | bytearray) -> Any:
    """Decode one whole value; `ext` types stay as they are. Raises ProtocolError."""
    try:
        if len(body) > _SMALL:
            whole = msgpack.Unpacker(max_buffer_size=len(body))
            whole.feed(body)
            whole.skip()
        return msgpack.unpackb(body, raw=False, strict_map_key=False, **_TEXT)
    except msgpack.OutOfData:
        raise ProtocolError("not MessagePack: it ends within a value") from None
    except (TypeError, ValueError, OverflowError) as exc:  # TypeError: a map's key that is a list
        raise ProtocolError(f"not MessagePack: {str(exc) or type(exc).__name__}") from None


class MessageError(ProtocolError):
    """A message came whole, and cannot be taken. Where the next one begins is known all the same.

    `kind` is None where not even the head can be read; `number` is the id of a request, None of all else.
    """

    def __init__(self, message: str, kind: Kind | None, number: int | None) -> None:
        super().__init__(message)
        self.kind = kind
        self.number = number


def unpack_call(body: bytes | bytearray) -> list[Any]:
    """Decode a request, `[0, id, method, params]`, or a notification, `[2, method, params]`.

    Raises MessageError, whatever the bytes are.
    """
    try:
        message = unpack(body)
        match message:
            case [Kind.REQUEST, int(), str() | bytes(), list()] | [Kind.NOTIFY, str() | bytes(), list()]:
                return cast("list[Any]", message)
        why = "a message that is neither [0, id, method, params] nor [2, method, params]"
    except ProtocolError as exc:
        why = str(exc)
    raise MessageError(why, *_head(body))


def _head(body: bytes | bytearray) -> tuple[Kind | None, int | None]:
    """Read a message's kind, and a request's id, whatever follows them."""
    values = msgpack.Unpacker(max_buffer_size=_HEAD)
    values.feed(body[:_HEAD])
    try:
        count = values.read_array_header()
        kind = Kind(values.unpack()) if count else None
        number = values.unpack() if kind == Kind.REQUEST and count > 1 else None
    except (msgpack.OutOfData, ValueError):
        return None, None
    if kind == Kind.REQUEST and not isinstance(number, int):
        return None, None
    return kind, number


class LengthFrames:
    """Takes the bodies out of a stream of frames: `feed` what came, then `take` until it returns None.

    `take` raises FrameTooLargeError as soon as a length says so.
    """

    def __init__(self, max_frame: int) -> None:
        self._max = max_frame
        self._data: bytes | bytearray = b""
        self._pos = 0

    @property
    def partial(self) -> int:
        """Bytes that have come and not been taken."""
        return len(self._data) - self._pos

    def feed(self, data: bytes) -> None:
        if not self.partial:
            self._data, self._pos = data, 0
            return
        if isinstance(self._data, bytes):
            self._data = bytearray(self._data)
        del self._data[: self._pos]
        self._pos = 0
        self._data += data

    def take(self) -> bytes | bytearray | None:
        start = self._pos + LENGTH.size
        if start > len(self._data):
            return None
        (size,) = LENGTH.unpack_from(self._data, self._pos)
        if size > self._max:
            raise _too_large(size, self._max)
        end = start + size
        if end > len(self._data):
            return None
        self._pos = end
        return self._data[start:end]


class StreamFrames:
    """As LengthFrames, of a raw stream of MessagePack values; also raises ProtocolError.

    Nothing is decoded before it is whole: what a header claims to follow is allocated for nobody.
    """

    def __init__(self, max_frame: int) -> None:
        self._max = max_frame
        # 0: no limit of its own. What is kept is bounded here, by `take`.
        self._scan = msgpack.Unpacker(max_buffer_size=0)
        self._data = bytearray()
        self._base = 0  # the stream's offset of _data[0]

    @property
    def partial(self) -> int:
        """Bytes that have come and not been taken."""
        return len(self._data)

    def feed(self, data: bytes) -> None:
        self._data += data
        self._scan.feed(data)

    def take(self) -> bytes | bytearray | None:
        try:
            self._scan.skip()
        except msgpack.OutOfData:
            if len(self._data) > self._max:
                raise _too_large(len(self._data), self._max) from None
            return None
        except ValueError as exc:  # how msgpack says all else: a byte that no value begins with, nesting
            raise ProtocolError(f"not MessagePack: {str(exc) or type(exc).__name__}") from None
        size = self._scan.tell() - self._base
        if size > self._max:
            raise _too_large(size, self._max)
        body = self._data[:size]
        del self._data[:size]
        self._base += size
        return body


def _too_large(size: int, limit: int) -> FrameTooLargeError:
    return FrameTooLargeError(f"a frame of {size} bytes: at most {limit} are taken (max_frame)")
