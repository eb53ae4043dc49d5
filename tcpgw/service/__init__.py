"""Serve functions as a MessagePack-RPC instance: for custom images, demonstrations and tests.

```python
from tcpgw.service import Service

service = Service()

@service.method
async def predict(request):
    return {"label": "cat"}

service.run("0.0.0.0:8080")
```

Both framings are served on one port, told apart by their first byte: frames (as `tcpgw.client` and the
gateway send) and the raw stream of other MessagePack-RPC clients. A method that raises RpcError answers with
its code, one that raises anything else with `instance_error`; the traceback goes to the log alone. A request
that cannot be decoded is answered with `bad_frame`, and its connection goes on: a gateway's belongs to many
clients.
"""

from tcpgw.service.service import ListenError, Service
from tcpgw.wire.messages import RpcError

__all__ = ["ListenError", "RpcError", "Service"]
