"""The client for what the gateway (or an instance, directly) speaks: MessagePack-RPC in frames.

```python
from tcpgw.client import connect

async with connect("127.0.0.1:9000") as client:
    print(await client.call("predict", {"a": "a"}, timeout=2.0))
    await client.notify("seen", 1)
```

`SyncClient` is the same for programs without asyncio.

What a call may raise: RpcError (it was answered with an error), ConnectError (there is no connection, it was
not sent), ConnectionLostError (it was sent, the answer will not come), CallTimeoutError, FrameTooLargeError
and ValueError (it cannot be sent). All but ValueError are TcpgwErrors: where `retry_safe` is True, nothing
has been done, and the same call may be tried again.
"""

from tcpgw.client.client import CallTimeoutError, Client, Options, connect
from tcpgw.client.connection import ConnectionLostError
from tcpgw.client.sync import SyncClient
from tcpgw.errors import Code, ConnectError, FrameTooLargeError
from tcpgw.wire.messages import RpcError

__all__ = [
    "CallTimeoutError",
    "Client",
    "Code",
    "ConnectError",
    "ConnectionLostError",
    "FrameTooLargeError",
    "Options",
    "RpcError",
    "SyncClient",
    "connect",
]
