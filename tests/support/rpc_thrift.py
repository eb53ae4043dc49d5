"""Thrift instances and clients that are used like the MessagePack-RPC ones of rpc.py, and behave as badly.

Apache's library writes and reads every message. A call's parameters are the fields of its arguments, from 1
on, and a result is a struct of such fields; field 1 is a text. Numbers keep their type: int is an i64, I32 an
i32, float a double. A TApplicationException of the gateway's is told as rpc.py tells an error.
"""

import asyncio
import re
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

from thrift.protocol.TBinaryProtocol import TBinaryProtocol
from thrift.protocol.TCompactProtocol import TCompactProtocol
from thrift.Thrift import TApplicationException, TMessageType, TType
from thrift.transport.TTransport import TMemoryBuffer

from tests.support.rpc import ANSWER, NOTIFY, REQUEST, Bed, Client, End, Instance, Link

ENCODINGS: dict[str, Any] = {"binary": TBinaryProtocol, "compact": TCompactProtocol}
CODEC = 'codec = "thrift-framed"\n'
CALL = TMessageType.CALL

# What the gateway's begin with, and may end with.
_ERROR = re.compile(r"(?P<code>\w+): (?P<message>.*?)(?: \(endpoint (?P<endpoint>\S+)\))?", re.DOTALL)


class I32(int):
    pass


class Said(NamedTuple):
    """A message as it was: `type` is Thrift's, `content` what rpc.py's messages hold."""

    encoding: str
    type: int
    name: str
    number: int
    content: Any


def thrift_frame(said: Said) -> bytes:
    buffer = TMemoryBuffer()
    protocol = ENCODINGS[said.encoding](buffer)
    protocol.writeMessageBegin(said.name, said.type, said.number)
    if said.type == TMessageType.EXCEPTION:
        TApplicationException(TApplicationException.INTERNAL_ERROR, str(said.content)).write(protocol)
    else:
        _write(protocol, *((0, [said.content]) if said.type == TMessageType.REPLY else (1, said.content)))
    protocol.writeMessageEnd()
    body: bytes = buffer.getvalue()
    return struct.pack(">I", len(body)) + body


def _write(protocol: Any, first: int, values: Sequence[Any]) -> None:
    protocol.writeStructBegin("")
    for number, value in enumerate(values, first):
        kind, write = _KINDS[type(value)]
        protocol.writeFieldBegin("", kind, number)
        write(protocol, value)
        protocol.writeFieldEnd()
    protocol.writeFieldStop()
    protocol.writeStructEnd()


_KINDS: dict[type, tuple[int, Any]] = {
    str: (TType.STRING, lambda protocol, value: protocol.writeString(value)),
    bytes: (TType.STRING, lambda protocol, value: protocol.writeBinary(value)),
    I32: (TType.I32, lambda protocol, value: protocol.writeI32(value)),
    int: (TType.I64, lambda protocol, value: protocol.writeI64(value)),
    float: (TType.DOUBLE, lambda protocol, value: protocol.writeDouble(value)),
    list: (TType.STRUCT, lambda protocol, value: _write(protocol, 1, value)),
}


def thrift_message(body: bytes) -> Said:
    encoding = "binary" if body[0] == 0x80 else "compact"
    protocol = ENCODINGS[encoding](TMemoryBuffer(body))
    name, type_, number = protocol.readMessageBegin()
    content: Any
    if type_ == TMessageType.EXCEPTION:
        told = TApplicationException()
        told.read(protocol)
        found = _ERROR.fullmatch(told.message)
        content = found.groupdict() if found else {"code": told.message}
    else:
        content = _read(protocol)
        if type_ == TMessageType.REPLY:
            (content,) = content
    protocol.readMessageEnd()
    assert protocol.trans.cstringio_buf.read() == b""
    return Said(encoding, type_, name, number, content)


def _read(protocol: Any) -> list[Any]:
    values = []
    protocol.readStructBegin()
    while True:
        _, kind, number = protocol.readFieldBegin()
        if kind == TType.STOP:
            break
        if kind == TType.STRING:
            values.append(protocol.readString() if number == 1 else protocol.readBinary())
        elif kind == TType.STRUCT:
            values.append(_read(protocol))
        elif kind == TType.I32:
            values.append(I32(protocol.readI32()))
        else:
            values.append({TType.I64: protocol.readI64, TType.DOUBLE: protocol.readDouble}[kind]())
        protocol.readFieldEnd()
    protocol.readStructEnd()
    return values


class _Speaker(End):
    """`asked` has the encodings and names of the calls that it sent or got, by id."""

    encoding = "binary"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: dict[int, tuple[str, str]] = {}

    def send(self, *message: Any) -> None:
        match message:
            case [0, number, method, params]:
                self.asked[number] = self.encoding, method
                said = Said(self.encoding, TMessageType.CALL, method, number, params)
            case [1, number, error, result]:
                encoding, method = self.asked.get(number, ("binary", "m"))
                type_ = TMessageType.REPLY if error is None else TMessageType.EXCEPTION
                said = Said(encoding, type_, method, number, result if error is None else error)
            case [2, method, params]:
                said = Said(self.encoding, TMessageType.ONEWAY, method, 0, params)
            case _:
                raise AssertionError(message)
        self.transport.write(thrift_frame(said))

    def data_received(self, data: bytes) -> None:
        self._data += data
        at = 0
        while len(self._data) - at >= 4:
            end = at + 4 + struct.unpack_from(">I", self._data, at)[0]
            if end > len(self._data):
                break
            self._hear(thrift_message(bytes(self._data[at + 4 : end])))
            at = end
        del self._data[:at]

    def _hear(self, said: Said) -> None:
        match said.type:
            case TMessageType.CALL:
                self.asked[said.number] = said.encoding, said.name
                self.take([REQUEST, said.number, said.name, said.content])
            case TMessageType.ONEWAY:
                self.take([NOTIFY, said.name, said.content])
            case _:
                assert (said.encoding, said.name) == self.asked[said.number]
                failed = said.type == TMessageType.EXCEPTION
                outcome = (said.content, None) if failed else (None, said.content)
                self.take([ANSWER, said.number, *outcome])


class ThriftLink(_Speaker, Link):
    """It takes both encodings, and answers each call in its own."""


class ThriftInstance(Instance):
    """As Instance, in Thrift; never `deaf`."""

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: ThriftLink(self), "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        self.endpoint = f"127.0.0.1:{self._port}"


class ThriftClient(_Speaker, Client):
    pass


async def thrift_client(g: Bed, encoding: str) -> ThriftClient:
    host, _, port = g.listener.address.rpartition(":")
    _, client = await asyncio.get_running_loop().create_connection(ThriftClient, host, int(port))
    client.encoding = encoding
    g._clients.append(client)
    return client
