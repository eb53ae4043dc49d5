"""A client of msgpack-rpc-python: `msgpackrpc_client.py HOST PORT`; see msgpackrpc_server.py.

Each line of input is a list of calls, `[method, params]`, that are made at once; for each a line of output is
the list of their answers, `[error, result]`. What stands under "notify" is told instead.
"""

import json
import sys
from typing import Any

import msgpackrpc
from msgpackrpc.error import RPCError


def answer(future: Any) -> list[Any]:
    try:
        return [None, future.get()]
    except RPCError as exc:
        return [exc.args[0], None]


client = msgpackrpc.Client(
    msgpackrpc.Address(sys.argv[1], int(sys.argv[2])), timeout=20, unpack_encoding="utf-8"
)
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, dict):
        for method, params in asked["notify"]:
            client.notify(method, *params)
        answers = []
    else:
        futures = [client.call_async(method, *params) for method, params in asked]
        answers = [answer(future) for future in futures]
    print(json.dumps(answers), flush=True)  # noqa: T201 - that is its output
client.close()
