"""`tcpgw bench` as its user meets it: what is refused, what is printed where, the exit code, what is left."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import jsonschema  # type: ignore[import-untyped]
import pytest
import typer
from hdrh.histogram import HdrHistogram
from typer.testing import CliRunner

from tcpgw.bench.command import bench
from tests.bench.instances import Echo, Rpc, Silent, Wrong, serving

app = typer.Typer()
app.command()(bench)

QUICK = ("--duration", "200ms", "--warm-up", "0.05", "--timeout", "300ms", "-c", "3")
_MAIN = "import typer; from tcpgw.bench.command import bench; typer.run(bench)"

_NUMBER = {"type": "number", "minimum": 0}
_COUNT = {"type": "integer", "minimum": 0}
_LATENCY = {"type": ["integer", "null"], "minimum": 0, "maximum": 61_000_000}


def _exactly(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_SUMMARY: dict[str, Any] = {
    "seconds": _NUMBER,
    "requests_per_second": _NUMBER,
    "latency_us": _exactly(dict.fromkeys(("p50", "p90", "p99", "p99.9", "max"), _LATENCY)),
    "answered": _COUNT,
    "failed": _COUNT,
    "errors": {"type": "object", "additionalProperties": _COUNT},
    "bytes_sent_per_second": _NUMBER,
    "bytes_received_per_second": _NUMBER,
    "strays": _COUNT,
    "connections_lost": _COUNT,
    "connects_failed": _COUNT,
    "generator": _exactly({"cores": _NUMBER, "processes": _COUNT, "late": _COUNT, "late_worst_us": _COUNT}),
    "histogram": {"type": "string", "pattern": "^HIST"},
}
SCHEMA = _exactly(
    {
        "tcpgw": {"type": "string"},
        "plan": _exactly(
            {
                "mode": {"enum": ["tcp", "rpc"]},
                "method": {"type": "string"},
                "connections": _COUNT,
                "depth": _COUNT,
                "rate": {"type": ["number", "null"]},
                "sizes": {"type": "array", "items": _COUNT, "minItems": 1},
                "warm_up": _NUMBER,
                "duration": _NUMBER,
                "timeout": _NUMBER,
                "processes": _COUNT,
            }
        ),
        "targets": {
            "type": "array",
            "minItems": 1,
            "items": _exactly(
                {
                    "target": {"type": "string"},
                    **_SUMMARY,
                    "rounds": {"type": "array", "minItems": 1, "items": _exactly(_SUMMARY)},
                }
            ),
        },
        "ratios": {
            "anyOf": [
                {"type": "null"},
                _exactly(dict.fromkeys(("requests_per_second", "p50", "p90", "p99", "p99.9"), _NUMBER)),
            ]
        },
        "warnings": {"type": "array", "items": {"type": "string"}},
        "failures": {"type": "array", "items": {"type": "string"}},
    }
)


class Outcome(NamedTuple):
    code: int | None
    out: str
    err: str


@contextlib.asynccontextmanager
async def benching(
    *args: object, stderr: int = asyncio.subprocess.PIPE
) -> AsyncIterator[asyncio.subprocess.Process]:
    """`tcpgw bench ARGS…` in a process of its own, which is gone after the context."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _MAIN, *map(str, args),
        stdout=asyncio.subprocess.PIPE, stderr=stderr,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def ran(*args: object) -> Outcome:
    async with benching(*args) as process, asyncio.timeout(60):
        out, err = await process.communicate()
    return Outcome(process.returncode, out.decode(), err.decode())


def refused(*args: str) -> str:
    """What it says to a wrong command line, in one line. It must end with 2 and nothing on stdout."""
    result = CliRunner().invoke(app, args, env={"TERMINAL_WIDTH": "1000", "COLUMNS": "1000"})
    assert result.exit_code == 2
    assert result.stdout == ""
    return result.stderr


# ---- results ----


async def test_a_table() -> None:
    """The result goes to stdout as a table that names load and target; nothing goes to stderr."""
    async with serving(Echo) as target:
        outcome = await ran(target, *QUICK, "--depth", "2")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("tcp, 64 B, 3 connections, depth 2, closed loop, 0.2 s")
    for row in (str(target), "requests/s", "latency p99.9", "latency max", "received", "failed"):
        assert row in outcome.out
    assert "ratio" not in outcome.out


async def test_json_alone_on_stdout() -> None:
    """`--json -` prints one JSON object of a fixed form, whose histogram other tools can read."""
    async with serving(Rpc) as target:
        outcome = await ran(
            target, *QUICK, "--mode", "rpc", "--rate", "300", "--size", "0,1KiB", "-p", "2", "--json", "-"
        )
    assert (outcome.code, outcome.err) == (0, "")
    result = json.loads(outcome.out)
    jsonschema.validate(result, SCHEMA)
    assert result["plan"] == {
        "mode": "rpc",
        "method": "echo",
        "connections": 3,
        "depth": 1,
        "rate": 300,
        "sizes": [0, 1024],
        "warm_up": 0.05,
        "duration": 0.2,
        "timeout": 0.3,
        "processes": 2,
    }
    (found,) = result["targets"]
    assert (found["target"], found["answered"], found["errors"]) == (str(target), 60, {})
    assert found["generator"]["processes"] == 2
    assert HdrHistogram.decode(found["histogram"]).get_total_count() == 60
    assert (result["ratios"], result["failures"]) == (None, [])


async def test_two_targets_compared(tmp_path: Path) -> None:
    """Both are measured in every round and shown with their ratio; JSON and picture go to their files."""
    pytest.importorskip("matplotlib", reason="comes with the extra plot")
    async with serving(Echo) as one, serving(Echo) as other:
        files = ("--json", tmp_path / "r.json", "--plot", tmp_path / "r.svg")
        outcome = await ran(one, *QUICK, "--compare", other, "--rounds", "2", *files)
    assert (outcome.code, outcome.err) == (0, "")
    assert "ratio" in outcome.out
    result = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(result, SCHEMA)
    sides = result["targets"]
    assert [side["target"] for side in sides] == [str(one), str(other)]
    for side in sides:
        assert len(side["rounds"]) == 2
        assert side["answered"] == sum(each["answered"] for each in side["rounds"])
        assert side["seconds"] == pytest.approx(0.4)
    rates = [[each["requests_per_second"] for each in side["rounds"]] for side in sides]
    mean = sum(a / b for a, b in zip(*rates, strict=True)) / 2  # of two, the median
    assert result["ratios"]["requests_per_second"] == pytest.approx(mean)
    assert str(other) in (tmp_path / "r.svg").read_text()


async def on_a_terminal(*args: object) -> str:
    """Run it with a terminal for its stderr. Returns what that showed."""
    master, terminal = os.openpty()
    seen = bytearray()
    loop = asyncio.get_running_loop()
    os.set_blocking(master, False)
    loop.add_reader(master, lambda: seen.extend(os.read(master, 65536)))
    try:
        async with benching(*args, stderr=terminal) as process, asyncio.timeout(60):
            await process.communicate()
    finally:
        loop.remove_reader(master)
        os.close(terminal)
        os.close(master)
    assert process.returncode == 0
    return seen.decode()


async def test_a_progress_bar_on_a_terminal_alone() -> None:
    """A terminal sees target and rate while the load runs; where JSON goes to stdout it sees nothing."""
    async with serving(Echo) as target:
        seen = await on_a_terminal(target, *QUICK, "--duration", "400ms")
        assert str(target) in seen
        assert re.search(r"[0-9]/s", seen)
        assert await on_a_terminal(target, *QUICK, "--json", "-") == ""


# ---- failures ----


async def test_nobody_listens() -> None:
    """A refused connection is a sentence and a 1, at once."""
    outcome = await ran("127.0.0.1:1", "--duration", "600s")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == "cannot connect to 127.0.0.1:1: connection refused: nothing listens there\n"


async def test_wrong_answers_fail() -> None:
    """An instance that changes bytes is found out, though rates and latencies look well."""
    async with serving(Wrong) as target:
        outcome = await ran(target, *QUICK)
    assert outcome.code == 1
    assert "wrong_payload" in outcome.out
    assert outcome.err.startswith(f"{target} answered no request: ")


async def test_no_answer_at_all_fails_in_time() -> None:
    """A silent instance never holds the command: it ends when warm-up, duration and time-out have passed."""
    async with serving(Silent) as target:
        outcome = await ran(target, *QUICK, "--rate", "100")
    assert outcome.code == 1
    assert outcome.err.startswith(f"{target} answered no request: ")
    assert "timeout" in outcome.err


async def test_a_signal_ends_everything() -> None:
    """Ctrl-C in the middle is answered with a sentence and a 1, and no connection is left."""
    connected, left = asyncio.Event(), asyncio.Event()
    connections = 0

    class Seen(Echo):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal connections
            connections += 1
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            connected.set()

        def connection_lost(self, _exc: Exception | None) -> None:
            nonlocal connections
            connections -= 1
            if not connections:
                left.set()

    async with serving(Seen) as target, benching(target, "--duration", "600", "-p", "2") as process:
        async with asyncio.timeout(30):
            await connected.wait()
            process.send_signal(signal.SIGINT)
            out, err = await process.communicate()
            await left.wait()
    assert (process.returncode, out, err) == (1, b"", b"Ended by a signal. Nothing is left running.\n")


async def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A result that cannot be kept is an error, but it was printed."""
    (tmp_path / "full.json").symlink_to("/dev/full")
    async with serving(Echo) as target:
        outcome = await ran(target, *QUICK, "--json", tmp_path / "full.json")
    assert outcome.code == 1
    assert "requests/s" in outcome.out
    assert "cannot write" in outcome.err
    assert "No space left on device" in outcome.err


# ---- bad usage ----


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Missing argument"),
        (["127.0.0.1"], "'127.0.0.1' is no address"),
        (["127.0.0.1:0"], "'127.0.0.1:0' has no port that can be connected to"),
        (["h:1", "--compare", "x"], "'--compare': 'x' is no address"),
        (["h:1", "--mode", "udp"], "--mode"),
        (["h:1", "--method", "m"], "'--method': tcp has no methods: use --mode rpc"),
        (["h:1", "-c", "0"], "--connections"),
        (["h:1", "-p", "11"], "'--processes': each needs a connection: use --connections 11 or more"),
        (["h:1", "--depth", "2", "--rate", "5"], "'--depth': is for the closed loop"),
        (["h:1", "--rate", "0"], "--rate"),
        (["h:1", "--rounds", "2"], "'--rounds': is for --compare"),
        (["h:1", "--size", "1kb"], "'--size': '1kb' is not a size: write 64KiB"),
        (["h:1", "--size", "64,"], "'--size': '' is not a size"),
        (["h:1", "--size", "0"], "'--size': nothing comes back of 0 bytes"),
        (["h:1", "--size", "1GiB"], "'--size': at most 64MiB"),
        (["h:1", "--duration", "0"], "'--duration': 0.0 is no usable duration"),
        (["h:1", "--duration", "inf"], "'--duration': inf is no usable duration"),
        (["h:1", "--warm-up", "soon"], "'--warm-up': 'soon' is not a duration"),
        (["h:1", "--timeout", "61s"], "'--timeout': at most 60s"),
        (["h:1", "--plot", "p.pdf"], "'--plot': p.pdf says no format: let it end in .svg or .png"),
        (["h:1", "--plot", "/nowhere/p.svg"], "'--plot': /nowhere/p.svg cannot be written"),
        (["h:1", "--json", "/"], "'--json': / cannot be written"),
    ],
)
def test_bad_usage_is_2(args: list[str], message: str) -> None:
    """What cannot be done is refused before any load, with the option's name and what to do."""
    assert message in refused(*args)


def test_a_plot_without_matplotlib_says_what_to_install() -> None:
    """The optional library is missed before the load, not after it."""
    with patch.dict(sys.modules, {"matplotlib": None}):
        assert "pip install 'tcpgw[plot]'" in refused("127.0.0.1:1", "--plot", "p.svg")
