"""The demo's child processes: small instances, and the gateway in front of them.

`python -m tcpgw.demo.instances predict|echo|infer NAME` is one instance. It says its port on stdout and
serves until it is killed. Each kind tells the client which instance it has met: predict in each HTTP answer,
the echo in the line that begins every connection, infer (see `infer`) in each answer to a request.
"""

import asyncio
import ctypes
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter, deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseRequestHandler, StreamRequestHandler, ThreadingTCPServer
from typing import Any, ClassVar, Literal, Self

from tcpgw.endpoints import Endpoint
from tcpgw.errors import TcpgwError

Kind = Literal["predict", "echo", "infer"]
OnEvent = Callable[[dict[str, Any]], None]

# Seconds. A start is an interpreter's; an end is the gateway's, whose clients have closed already.
_START, _STOP = 15.0, 5.0
_SHOWN_LINES = 5
_PR_SET_PDEATHSIG = 1  # prctl(2)
_libc = ctypes.CDLL(None)


class DemoError(TcpgwError):
    """A process of the demo did not start, or died: the demo cannot go on."""


# ---- what runs in an instance ----


class _Server(ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128  # the default, 5, refuses a burst that any real server takes
    name: ClassVar[str] = ""

    def handle_error(self, *_: object) -> None:
        """Say nothing: a connection that breaks is the demo's subject, and the clients count it."""


class _Predict(BaseHTTPRequestHandler):
    """Answers a POST of JSON with the instance's name and what it was sent."""

    protocol_version = "HTTP/1.1"  # keep-alive
    wbufsize = -1  # head and body in one segment
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            json.loads(body)
        except ValueError:
            self.send_error(400, "The body is not JSON")
            return
        answer = prediction(_Server.name, body)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing: stdout is for the port."""


class _Echo(StreamRequestHandler):
    """Names the instance in a line, then sends back whatever comes until the client has finished."""

    disable_nagle_algorithm = True

    def handle(self) -> None:
        self.wfile.write(f"{_Server.name}\n".encode())
        while data := self.request.recv(65536):
            self.wfile.write(data)


def prediction(instance: str, body: bytes) -> bytes:
    """The whole answer to a body, byte for byte, so that the client can compare it."""
    return b'{"instance": "%s", "input": %s}\n' % (instance.encode(), body)


def main(kind: str, name: str) -> None:
    """Serve on a port of the kernel's choice until killed."""
    if kind == "infer":
        from tcpgw.demo.infer import serve  # noqa: PLC0415 - the others start sooner without

        serve(name)
        return
    handler: type[BaseRequestHandler] = {"predict": _Predict, "echo": _Echo}[kind]
    _Server.name = name
    with _Server(("127.0.0.1", 0), handler) as server:
        print(server.server_address[1], flush=True)  # noqa: T201
        server.serve_forever()


# ---- what starts and ends them ----


async def _spawn(*args: str, stdout: int = DEVNULL, stderr: int | None = None) -> Process:
    """Start `python -m …` so that it never outlives this process, however this process ends."""

    def die_with_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", *args,
        stdin=DEVNULL, stdout=stdout, stderr=stderr,
        start_new_session=True,  # a terminal's Ctrl-C is for the demo, which then ends them in order
        preexec_fn=die_with_parent,
    )  # fmt: skip


async def _end(process: Process, number: int) -> int:
    """Send a signal, and SIGKILL where that does not end it in time. Returns the exit status. Idempotent."""
    if process.returncode is None:
        process.send_signal(number)
    try:
        async with asyncio.timeout(_STOP):
            return await process.wait()
    except TimeoutError:
        process.kill()
        return await process.wait()


class Instance:
    """One instance, a process of its own. Made by `start`; `endpoint` is there once it is `ready`."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.endpoint: Endpoint
        self.killed = False
        self._process = process

    @classmethod
    async def start(cls, kind: Kind, name: str) -> Self:
        return cls(name, await _spawn("tcpgw.demo.instances", kind, name, stdout=PIPE))

    async def ready(self) -> None:
        """Wait until it listens. Raises DemoError where it does not."""
        try:
            async with asyncio.timeout(_START):
                port = await self._process.stdout.readline() if self._process.stdout else b""
        except TimeoutError:
            raise DemoError(f"the instance {self.name} did not listen within {_START:g} s") from None
        if not port:
            raise DemoError(f"the instance {self.name} ended before it listened")
        self.endpoint = Endpoint("127.0.0.1", int(port))

    async def kill(self) -> None:
        """SIGKILL, as the kernel's out-of-memory killer would: no farewell to any client. Idempotent."""
        self.killed = True
        await _end(self._process, signal.SIGKILL)


class GatewayProcess:
    """`tcpgw run -c FILE`, and what its log says. Made by `start`.

    `listeners` says where it accepts, `members` which endpoints are in force for each service.
    `second_choice` counts the connections for which the key's first candidate did not answer. `ended_on`
    holds, for each endpoint in `watched`, the client addresses of the connections that ended there.
    `pending_on` counts, by endpoint, the requests under way on its connections when these broke. `ended` is
    set at the end of the log.
    """

    def __init__(self, process: Process, on_event: OnEvent | None) -> None:
        self.listeners: dict[str, str] = {}
        self.members: dict[str, set[str]] = {}
        self.second_choice = 0
        self.watched: set[str] = set()
        self.ended_on: dict[str, set[str]] = {}
        self.pending_on: Counter[str] = Counter()
        self.ended = asyncio.Event()
        self._process = process
        self._on_event = on_event
        self._last: deque[str] = deque(maxlen=_SHOWN_LINES)
        self._changed = asyncio.Condition()
        self._reading = asyncio.create_task(self._read(), name="gateway's log")

    @classmethod
    async def start(cls, config: Path, on_event: OnEvent | None = None) -> Self:
        """Start it; it may not accept yet. `on_event` gets each event of its log."""
        return cls(await _spawn("tcpgw", "run", "-c", str(config), stderr=PIPE), on_event)

    async def until(self, done: Callable[[], bool], what: str) -> None:
        """Wait for what the log is to say. Raises DemoError where it does not come, or the gateway died."""
        try:
            async with asyncio.timeout(_START), self._changed:
                await self._changed.wait_for(lambda: done() or self.ended.is_set())
        except TimeoutError:
            raise DemoError(self._complaint(f"waited {_START:g} s in vain: {what}")) from None
        if not done():
            raise DemoError(self._complaint(f"the gateway ended: {what} not seen"))

    async def stop(self) -> int:
        """SIGTERM, then read its log to the end. Returns the exit status. Idempotent."""
        status = await _end(self._process, signal.SIGTERM)
        await self._reading
        return status

    def _complaint(self, what: str) -> str:
        return "\n".join((what, "the last lines of the gateway's log:", *self._last))

    async def _read(self) -> None:
        stderr = self._process.stderr
        while stderr and (line := (await stderr.readline()).decode(errors="replace")):
            self._last.append(line.rstrip())
            try:
                self._note(json.loads(line))
            except ValueError:  # a traceback's: the log itself is JSON
                continue
            await self._tell()
        self.ended.set()
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _note(self, line: dict[str, Any]) -> None:
        if self._on_event:
            self._on_event(line)
        match line["event"]:
            case "ready":
                self.listeners = line["listeners"]
            case "snapshot_published":
                members = self.members.setdefault(line["service"], set())
                members.difference_update(line["removed"])
                members.update(line["added"])
            case "channel_lost":
                self.pending_on[line["endpoint"]] += line["pending"]
            case "connection_closed" if "tries" in line:  # on the rpc plane it had no endpoint of its own
                self.second_choice += line["tries"] > 1
                if line["endpoint"] in self.watched:
                    self.ended_on.setdefault(line["endpoint"], set()).add(line["client"])


if __name__ == "__main__":
    main(*sys.argv[1:])
