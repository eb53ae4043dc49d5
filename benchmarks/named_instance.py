"""Instances that say who they are: each sends its name to whoever connects, and closes.

python benchmarks/named_instance.py [--backlog N] NAME HOST PORT [NAME HOST PORT …]
"""

import selectors
import socket
import sys
from contextlib import suppress

BACKLOG = 4096  # as rpc_instance.c: nobody is to wait for an instance


def main() -> None:
    words = sys.argv[1:]
    backlog = BACKLOG
    if words[:1] == ["--backlog"]:
        backlog = int(words[1])
        del words[:2]
    arguments = iter(words)
    selector = selectors.DefaultSelector()
    for name, host, port in zip(arguments, arguments, arguments, strict=True):
        listener = socket.create_server((host, int(port)), backlog=backlog)
        listener.setblocking(False)  # who connected may be gone again before it is accepted
        selector.register(listener, selectors.EVENT_READ, (listener, name.encode()))
    while True:
        for key, _ in selector.select():
            greet(*key.data)


def greet(listener: socket.socket, name: bytes) -> None:
    with suppress(BlockingIOError, ConnectionError):
        connection, _ = listener.accept()
        with connection:
            connection.sendall(name)


if __name__ == "__main__":
    main()
