"""A client that asks one thing after the other, at an even pace, on one connection.

python benchmarks/ping_load.py HOST PORT EVERY SECONDS

Prints, as a JSON list, how many seconds each answer took. The next question is due EVERY seconds after the
one before, whenever that was answered; where it is late for it, its time counts from when it was due. So a
relay that stands still for a moment is seen by all questions of that moment, not by one alone. That the
kernel wakes this process late counts for nothing.
"""

import gc
import json
import socket
import struct
import sys
import time

import msgpack

# Seconds without an answer after which something is wrong.
PATIENCE = 10.0
# Questions before those that count.
WARM_UP = 50

_CALL = msgpack.packb([0, 1, "echo", [b"0123456789abcdef"]])
QUESTION = struct.pack(">I", len(_CALL)) + _CALL
"""For rpc_instance.c, which answers with as many bytes."""


def main() -> int:
    host, port, every, seconds = sys.argv[1:]
    gc.disable()  # what stands still is to be the relay
    with socket.create_connection((host, int(port)), PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(WARM_UP):
            ask(connection)
        print(json.dumps(ask_evenly(connection, float(every), float(seconds))))
    return 0


def ask_evenly(connection: socket.socket, every: float, seconds: float) -> list[float]:
    took = []
    began = time.monotonic()
    for number in range(round(seconds / every)):
        asked = began + number * every
        early = asked - time.monotonic()
        if early > 0:
            time.sleep(early)
            asked = time.monotonic()
        ask(connection)
        took.append(time.monotonic() - asked)
    return took


def ask(connection: socket.socket) -> None:
    """Raises OSError where there is no answer."""
    connection.sendall(QUESTION)
    missing = len(QUESTION)
    while missing:
        data = connection.recv(missing)
        if not data:
            raise ConnectionError("the connection ended in the middle of an answer")
        missing -= len(data)


if __name__ == "__main__":
    sys.exit(main())
