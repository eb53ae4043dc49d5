"""An instance of msgpack-rpc-python: `msgpackrpc_server.py PORT`.

It needs packages that cannot stand beside tcpgw's, and so imports nothing of the tests.
"""

import sys
from typing import Any

import msgpackrpc
from msgpackrpc.server import AsyncResult
from msgpackrpc.transport import tcp
from tornado.tcpserver import TCPServer


class Handler:
    def __init__(self) -> None:
        self._held: list[tuple[Any, Any]] = []
        self._notes: list[Any] = []

    def echo(self, value: Any) -> Any:
        return value

    def fail(self, why: str) -> None:
        raise RuntimeError(why)

    def note(self, value: Any) -> None:
        self._notes.append(value)

    def notes(self) -> list[Any]:
        return self._notes

    def hold(self, value: Any) -> Any:
        """Answered by the next `release`."""
        result = AsyncResult()
        self._held.append((result, value))
        return result

    def held(self) -> int:
        return len(self._held)

    def release(self) -> int:
        """Answer what is held, the latest first."""
        held, self._held = self._held, []
        for result, value in reversed(held):
            result.set_result(value)
        return len(held)


# The library listens on all addresses, whatever it is told.
tcp.MessagePackServer.listen = lambda self, port: TCPServer.listen(self, port, "127.0.0.1")
server = msgpackrpc.Server(Handler(), unpack_encoding="utf-8")
server.listen(msgpackrpc.Address("127.0.0.1", int(sys.argv[1])))
server.start()
