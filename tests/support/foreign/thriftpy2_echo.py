"""thriftpy2: clients and a server of echo.thrift, which it reads at run time.

As a program it is a server: `thriftpy2_echo binary|compact PORT`.
"""

import sys
from pathlib import Path
from typing import Any

import thriftpy2
from thriftpy2 import protocol
from thriftpy2.contrib.aio.client import TAsyncClient
from thriftpy2.contrib.aio.protocol import binary, compact
from thriftpy2.contrib.aio.rpc import make_client as make_async_client
from thriftpy2.contrib.aio.transport.framed import TAsyncFramedTransportFactory
from thriftpy2.rpc import make_client, make_server
from thriftpy2.thrift import TClient
from thriftpy2.transport import TFramedTransportFactory

from tests.support.foreign.handler import Echo

IDL: Any = thriftpy2.load(
    str(Path(__file__).with_name("echo.thrift")), module_name="tests_support_foreign_thrift"
)
# Only half of it has types.
_protocol: Any = protocol
_async_binary: Any = binary
_async_compact: Any = compact
PROTOCOLS: dict[str, Any] = {
    "binary": _protocol.TBinaryProtocolFactory(),
    "compact": _protocol.TCompactProtocolFactory(),
    "old binary": _protocol.TBinaryProtocolFactory(strict_write=False),
}
ASYNC_PROTOCOLS: dict[str, Any] = {
    "binary": _async_binary.TAsyncBinaryProtocolFactory(),
    "compact": _async_compact.TAsyncCompactProtocolFactory(),
}


def client(address: tuple[str, int], encoding: str) -> TClient:
    framed = TFramedTransportFactory()
    return make_client(IDL.Echo, *address, None, PROTOCOLS[encoding], framed, timeout=20_000)


async def async_client(address: tuple[str, int], encoding: str) -> TAsyncClient:
    framed: Any = TAsyncFramedTransportFactory()
    return await make_async_client(
        IDL.Echo, *address, None, ASYNC_PROTOCOLS[encoding], framed, timeout=20_000
    )


def main(encoding: str, port: int) -> None:
    handler, framed, never = Echo(IDL.Refused), TFramedTransportFactory(), 3_600_000
    make_server(IDL.Echo, handler, "127.0.0.1", port, None, PROTOCOLS[encoding], framed, never).serve()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
