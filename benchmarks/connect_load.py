"""Opens connections, each for one question: connects, says something at once, hears the answer, closes.

python benchmarks/connect_load.py HOST PORT CLIENTS COUNT SAID HEARD

For what redis-benchmark cannot say: a line before its first request. So many CLIENTS at a time; prints how
many connections a second there were, and fails where the answer does not begin with HEARD.
"""

import select
import socket
import sys
import time

# Seconds without any answer after which something is wrong.
PATIENCE = 10.0


def main() -> int:
    host, port, clients, count, said, heard = sys.argv[1:]
    began = time.perf_counter()
    done = run((host, int(port)), int(clients), int(count), said.encode(), heard.encode())
    print(done / (time.perf_counter() - began))
    return 0


def run(address: tuple[str, int], clients: int, count: int, said: bytes, heard: bytes) -> int:
    """Return how many connections there were: `count`. Raises OSError where one was not answered."""
    poll = select.epoll()
    asked: dict[int, socket.socket] = {}

    def ask() -> None:
        # Over loopback a connect does not wait: the kernel answers it at once.
        asking = socket.create_connection(address, PATIENCE)
        asking.sendall(said)
        asked[asking.fileno()] = asking
        poll.register(asking, select.EPOLLIN)

    for _ in range(min(clients, count)):
        ask()
    begun = len(asked)
    while asked:
        ready = poll.poll(PATIENCE)
        if not ready:
            raise TimeoutError(f"no answer for {PATIENCE:g} s, {len(asked)} connections wait")
        for descriptor, _ in ready:
            with asked.pop(descriptor) as answered:
                answer = answered.recv(4096)
            if not answer.startswith(heard):
                raise ConnectionError(f"not {heard!r} but {answer!r} came")
            if begun < count:
                ask()
                begun += 1
    return begun


if __name__ == "__main__":
    sys.exit(main())
