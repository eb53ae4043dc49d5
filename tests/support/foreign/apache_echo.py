"""Apache Thrift: client and servers of echo.thrift, as its compiler's output uses the library.

As a program it is a server: `apache_echo threaded|nonblocking binary|compact PORT`.
"""

import sys
from types import SimpleNamespace
from typing import Any

from thrift.protocol.TBase import TBase, TExceptionBase
from thrift.protocol.TBinaryProtocol import TBinaryProtocolFactory
from thrift.protocol.TCompactProtocol import TCompactProtocolFactory
from thrift.server.TNonblockingServer import TNonblockingServer
from thrift.server.TServer import TThreadedServer
from thrift.Thrift import TApplicationException, TMessageType, TProcessor, TType
from thrift.transport.TSocket import TServerSocket, TSocket
from thrift.transport.TTransport import TFramedTransport, TFramedTransportFactory

from tests.support.foreign.handler import Echo

PROTOCOLS: dict[str, Any] = {
    "binary": TBinaryProtocolFactory(),
    "compact": TCompactProtocolFactory(),
    "old binary": TBinaryProtocolFactory(strictWrite=False),
}


def _struct(*fields: tuple[Any, ...] | None, base: Any = TBase) -> Any:
    """What `thrift --gen py:dynamic` makes of a struct; `fields` by their ids."""
    return type("Struct", (base,), {"thrift_spec": fields} | {field[2]: None for field in fields if field})


def _text(number: int, name: str) -> tuple[Any, ...]:
    return (number, TType.STRING, name, "UTF8", None)


def _whole(number: int, name: str, type_: int = TType.I32) -> tuple[Any, ...]:
    return (number, type_, name, None, None)


class Refused(TExceptionBase):  # type: ignore[misc]
    thrift_spec = (None, _text(1, "why"))

    def __init__(self, why: str | None = None) -> None:
        super().__init__(why)
        self.why = why


_NOTHING = _struct()
_TEXT = _struct(None, _text(1, "text"))
_COUNT = _struct(_whole(0, "success"))
# By method: its arguments, and its result; None of a oneway method.
METHODS: dict[str, tuple[Any, Any]] = {
    "echo": (_TEXT, _struct(_text(0, "success"))),
    "refuse": (
        _struct(None, _text(1, "why")),
        _struct(_text(0, "success"), (1, TType.STRUCT, "refused", [Refused, Refused.thrift_spec], None)),
    ),
    "note": (_TEXT, None),
    "notes": (_NOTHING, _COUNT),
    "thread": (_NOTHING, _struct(_whole(0, "success", TType.I64))),
    "meet": (_struct(None, _whole(1, "count")), _COUNT),
    "held": (_NOTHING, _COUNT),
    "hold": (_struct(None, _whole(1, "number")), _COUNT),
    "release": (_NOTHING, None),
    "fail": (_NOTHING, _COUNT),
}


class Client:
    """Raises TApplicationException, Refused, and what the library raises where an answer is not one."""

    def __init__(self, address: tuple[str, int], encoding: str, first_id: int = 0) -> None:
        socket = TSocket(*address)
        socket.setTimeout(20_000)
        self._protocol = PROTOCOLS[encoding].getProtocol(TFramedTransport(socket))
        self._id = first_id
        self._protocol.trans.open()

    def call(self, method: str, *params: Any) -> Any:
        arguments, result = METHODS.get(method, (_NOTHING, _NOTHING))
        protocol = self._protocol
        protocol.writeMessageBegin(method, TMessageType.CALL if result else TMessageType.ONEWAY, self._id)
        made = arguments()
        for field, value in zip(arguments.thrift_spec[1:], params, strict=True):
            setattr(made, field[2], value)
        made.write(protocol)
        protocol.writeMessageEnd()
        protocol.trans.flush()
        return self._answer(method, result()) if result else None

    def _answer(self, method: str, result: Any) -> Any:
        protocol = self._protocol
        name, type_, number = protocol.readMessageBegin()
        if type_ == TMessageType.EXCEPTION:
            told = TApplicationException()
            told.read(protocol)
            protocol.readMessageEnd()
            raise told
        result.read(protocol)
        protocol.readMessageEnd()
        # Python's generated code does not look; Java's refuses any other.
        assert (name, number) == (method, self._id)
        if getattr(result, "refused", None):
            raise result.refused
        return result.success

    def close(self) -> None:
        self._protocol.trans.close()


class Processor(TProcessor):  # type: ignore[misc]
    def __init__(self) -> None:
        self._handler = Echo(Refused)

    def process(self, iprot: Any, oprot: Any) -> None:
        method, _, number = iprot.readMessageBegin()
        arguments, answer = METHODS.get(method, (_NOTHING, _NOTHING))
        given = arguments()
        given.read(iprot)
        iprot.readMessageEnd()
        result = answer() if answer else SimpleNamespace()
        type_ = TMessageType.REPLY
        try:
            result.success = self._call(method, given)
        except Refused as refused:
            result.refused = refused
        except TApplicationException as told:
            type_, result = TMessageType.EXCEPTION, told
        except Exception:  # noqa: BLE001 - as the compiler's output does
            type_ = TMessageType.EXCEPTION
            result = TApplicationException(TApplicationException.INTERNAL_ERROR, "Internal error")
        if answer is None:
            return
        oprot.writeMessageBegin(method, type_, number)
        result.write(oprot)
        oprot.writeMessageEnd()
        oprot.trans.flush()

    def _call(self, method: str, given: Any) -> Any:
        if method not in METHODS:
            unknown = f"Unknown function {method}"
            raise TApplicationException(TApplicationException.UNKNOWN_METHOD, unknown)
        return getattr(self._handler, method)(*vars(given).values())


def main(kind: str, encoding: str, port: int) -> None:
    socket, protocol = TServerSocket("127.0.0.1", port), PROTOCOLS[encoding]
    if kind == "nonblocking":
        TNonblockingServer(Processor(), socket, protocol).serve()
    else:
        TThreadedServer(Processor(), socket, TFramedTransportFactory(), protocol).serve()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
