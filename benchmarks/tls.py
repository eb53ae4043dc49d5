"""What does the TLS layer cost beside uvloop's own TLS, under the same protocol?

    python benchmarks/tls.py [--rounds 9] [--quick]

One server process offers three protocols by both: an echo, one that only reads and one that only writes. The
client is Python's blocking `ssl`, on another core. Runs of the two alternate, and each pair gives a ratio: of
the server's CPU time, and of the time that passed. Below 1, the layer is cheaper.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from statistics import median
from typing import IO, cast

import trustme
import uvloop

from tcpgw.access.tls import ServerTls, server_context
from tcpgw.relay.handshake import accept_tls
from tcpgw.relay.tls import TlsLayer

CLIENT_CORE, SERVER_CORE = 0, 1
MESSAGE = b"x" * 64
BLOCK = b"y" * (256 * 1024)
MIB = 1 << 20
# The relays' own. uvloop's TLS would have 512 KiB, and with them fewer turns.
HIGH_WATER = 64 * 1024


class Echo(asyncio.Protocol):
    """Sends back what it reads, as a relay passes it on."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class Sink(Echo):
    """Says so once it has read as many bytes as the first eight say, in digits."""

    left = 0

    def data_received(self, data: bytes) -> None:
        if not self.left:
            self.left, data = int(data[:8]), data[8:]
        self.left -= len(data)
        if not self.left:
            self.transport.write(b".")


class Source(Echo):
    """Writes as many bytes as it is asked for."""

    left = 0
    paused = False

    def data_received(self, data: bytes) -> None:
        self.left = int(data)
        self.resume_writing()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        while self.left > 0 and not self.paused:
            self.transport.write(BLOCK)
            self.left -= len(BLOCK)


PROTOCOLS: dict[str, Callable[[], asyncio.Protocol]] = {"echo": Echo, "sink": Sink, "source": Source}


# ---- the server ----


async def accept(sock: socket.socket, tls: ServerTls, protocol: Callable[[], asyncio.Protocol]) -> None:
    """Serve by the layer, one client after another."""
    loop = asyncio.get_running_loop()
    while True:
        accepted, _ = await loop.sock_accept(sock)
        conversation = await accept_tls(loop, accepted, tls)
        layer = TlsLayer(protocol(), conversation, strict=False)
        await loop.connect_accepted_socket(lambda layer=layer: layer, accepted)  # type: ignore[misc]


async def serve() -> None:
    """Print the ports, then the CPU seconds used so far for every line read."""
    os.sched_setaffinity(0, {SERVER_CORE})
    loop = asyncio.get_running_loop()
    issued = trustme.CA().issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
    tls = server_context([(chain, issued.private_key_pem.bytes())])
    ports, tasks = {}, []
    for name, protocol in PROTOCOLS.items():
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        tasks.append(loop.create_task(accept(sock, tls, protocol)))
        server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=tls.choose(""))
        ports[name] = {"layer": sock.getsockname()[1], "uvloop": server.sockets[0].getsockname()[1]}
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    answer = json.dumps(ports)
    while True:
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()
        if not await reader.readline():
            os._exit(0)
        answer = str(time.process_time())


# ---- the client ----


@dataclass(frozen=True)
class Run:
    """Microseconds for each unit of a workload."""

    cpu: float
    wall: float


class Client:
    """Drives the server over connections of one version of TLS."""

    def __init__(self, stdin: IO[str], stdout: IO[str], newest: ssl.TLSVersion) -> None:
        self._stdin, self._stdout = stdin, stdout
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        self._context.maximum_version = newest

    def cpu(self) -> float:
        self._stdin.write("\n")
        self._stdin.flush()
        return float(self._stdout.readline())

    def run(self, workload: str, port: int, units: int) -> Run:
        with socket.create_connection(("127.0.0.1", port)) as raw, self._context.wrap_socket(raw) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            WORKLOADS[workload](sock, max(units // 10, 1))
            cpu, wall = self.cpu(), time.perf_counter()
            WORKLOADS[workload](sock, units)
            wall = time.perf_counter() - wall
            return Run(1e6 * (self.cpu() - cpu) / units, 1e6 * wall / units)


def round_trips(sock: ssl.SSLSocket, units: int) -> None:
    for _ in range(units):
        sock.sendall(MESSAGE)
        sock.recv(len(MESSAGE))


def upload(sock: ssl.SSLSocket, units: int) -> None:
    sock.sendall(b"%08d" % (units * MIB))
    for _ in range(units * MIB // len(BLOCK)):
        sock.sendall(BLOCK)
    sock.recv(1)


def download(sock: ssl.SSLSocket, units: int) -> None:
    sock.sendall(b"%08d" % (units * MIB))
    left, room = units * MIB, bytearray(len(BLOCK))
    while left > 0:
        left -= sock.recv_into(room)


WORKLOADS = {"echo": round_trips, "sink": upload, "source": download}
UNITS = {"echo": ("round trip of 64 B", 5000), "sink": ("MiB read", 90), "source": ("MiB written", 90)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="does everything still work? no figures")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        uvloop.run(serve())
    command = [sys.executable, __file__, "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        if server.stdin is None or server.stdout is None:
            raise RuntimeError("no pipes to the server")
        os.sched_setaffinity(0, {CLIENT_CORE})
        ports = json.loads(server.stdout.readline())
        print(
            f"Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, uvloop {version('uvloop')},", end=" "
        )
        print(f"{platform.platform()}, load {os.getloadavg()[0]:.1f}")
        print("TLS  for each              layer µs CPU  uvloop µs CPU  ratio  range         ratio of time")
        for newest in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
            client = Client(server.stdin, server.stdout, newest)
            for workload in WORKLOADS:
                name = newest.name.removeprefix("TLSv").replace("_", ".")
                print(name, report(client, workload, ports[workload], args.quick, args.rounds), sep="  ")
        server.stdin.close()


def report(client: Client, workload: str, ports: dict[str, int], quick: bool, rounds: int) -> str:
    unit, units = UNITS[workload]
    units, rounds = (units // 10, 1) if quick else (units, rounds)
    runs: dict[str, list[Run]] = {"layer": [], "uvloop": []}
    for one in range(rounds):
        for way in sorted(runs, reverse=bool(one % 2)):
            runs[way].append(client.run(workload, ports[way], units))
    layer, other = runs["layer"], runs["uvloop"]
    cpu = sorted(mine.cpu / theirs.cpu for mine, theirs in zip(layer, other, strict=True))
    wall = median(mine.wall / theirs.wall for mine, theirs in zip(layer, other, strict=True))
    mine, theirs = (median(run.cpu for run in way) for way in (layer, other))
    ratio = f"{median(cpu):>5.2f}  {cpu[0]:.2f} to {cpu[-1]:.2f}"
    return f"{unit:<20}  {mine:>12.1f}  {theirs:>13.1f}  {ratio}  {wall:>13.2f}"


if __name__ == "__main__":
    main()
