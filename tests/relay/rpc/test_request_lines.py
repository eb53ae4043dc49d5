"""Which requests have lines in the log, and what these say."""

import asyncio
import random
from collections.abc import Callable, Iterator
from logging import ERROR, WARNING
from math import inf
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
from structlog.testing import capture_logs

from tcpgw.config.log import RequestLog
from tcpgw.endpoints import Endpoint
from tcpgw.errors import Code
from tcpgw.relay.rpc.call import Batch
from tcpgw.relay.rpc.request_lines import Asked, RequestLines
from tcpgw.relay.rpc.routing import Rule
from tcpgw.relay.rpc.session import RpcSession
from tcpgw.wire.codec import PARTS, Piece, Run
from tests.support.rpc import Bed, Instance, Request, bed, hold
from tests.support.streams import Line, until

ENDPOINT = Endpoint("10.0.0.1", 80)
CLIENT = cast(
    "RpcSession", SimpleNamespace(client=SimpleNamespace(id=7, address=("192.0.2.1", 5), grant=None))
)
RULE = Rule("m", listener="l", timeout=1.0)


def run(count: int, came: float = 0.0, rule: Rule = RULE) -> Run:
    parts: list[Piece] = [b""] * (PARTS * count)
    return CLIENT, parts, Batch(came, rule)


def answered(lines: RequestLines, *runs: Run, now: float) -> list[Line]:
    """What is told of runs that came back together."""
    with capture_logs() as logs:
        if now - min(batch.came for *_, batch in runs) >= lines.least:
            lines.answered_runs(runs, now, "s", ENDPOINT)
    assert all(line.pop("event") == "request" for line in logs)
    return logs


def stop_time(lines: RequestLines) -> None:
    """For its limit, which needs no event loop then."""
    limit = lines._limit
    limit._later = lambda *_: cast("Any", SimpleNamespace(cancel=lambda: None))
    limit._clock = lambda: limit._at


# ---- slow ones ----


def test_slow_requests() -> None:
    """Those that took as long as that, with what there is to know, and no others of the same read."""
    lines = RequestLines(RequestLog(slow=1.0))
    assert answered(lines, run(5), run(3), now=0.999) == []
    told = answered(
        lines, run(5, came=1.0), run(3, came=0.25), run(1, came=0.9, rule=Rule("", timeout=1)), now=1.5
    )
    assert told == [
        {
            "log_level": "warning",
            "conn": 7,
            "client": "192.0.2.1:5",
            "listener": "l",
            "service": "s",
            "endpoint": "10.0.0.1:80",
            "method": "m",
            "seconds": 1.25,
            "outcome": "ok",
            "count": 3,
            "slow": True,
        }
    ]
    (line,) = answered(lines, run(1, rule=Rule("", timeout=1.0)), now=1.0)
    assert (line["method"], "count" in line) == ("*", False)


# ---- errors ----


def test_errors_of_instances() -> None:
    """So many of a run; the others of it have a line where they are slow."""
    lines = RequestLines(RequestLog(slow=1.0))
    for now, outcomes in ((0.5, [("error", 2, False)]), (2.0, [("error", 2, True), ("ok", 3, True)])):
        mixed = run(5)
        lines.note_errors(mixed[1], 2)
        told = answered(lines, run(1), mixed, now=now)[-len(outcomes) :]
        assert [(line["outcome"], line["count"], line.get("slow", False)) for line in told] == outcomes
        assert lines.least == 1.0
    assert answered(lines, run(5), now=0.5) == []


def test_errors_that_are_not_asked_for() -> None:
    """They have lines where they are slow, as all others."""
    lines = RequestLines(RequestLog(errors=False))
    some = run(1)
    lines.note_errors(some[1], 1)
    assert answered(lines, some, now=5.0) == []
    lines.change(RequestLog(errors=False, slow=1.0))
    lines.note_errors(some[1], 1)
    (line,) = answered(lines, some, now=5.0)
    assert (line["outcome"], line["slow"]) == ("error", True)
    with capture_logs() as logs:
        lines.failed(Asked(CLIENT, RULE, "s", None), 0.0, Code.NO_ENDPOINT, "why")
    assert logs == []


def test_many_errors_are_counted() -> None:
    """Beyond the limit they are left out: an instance that dies may fail thousands."""
    lines = RequestLines(RequestLog(per_second=20))
    stop_time(lines)
    asked = Asked(CLIENT, RULE, "s", ENDPOINT, b"m" * 200)
    with capture_logs() as logs:
        for _ in range(1000):
            lines.failed(asked, 0.0, Code.UPSTREAM_LOST, "it broke")
        lines.close()
        lines.close()
    assert [line["event"] for line in logs] == 20 * ["request"] + ["log_lines_suppressed"]
    assert (logs[20]["count"], logs[20]["setting"]) == (980, "gateway.log.requests.per_second")
    assert (logs[0]["outcome"], logs[0]["error"], logs[0]["log_level"]) == (
        "upstream_lost", "it broke", "warning"
    )  # fmt: skip
    assert logs[0]["called"] == b"m" * 128 + b"..."


@pytest.fixture
def log_level() -> Iterator[Callable[[int], None]]:
    """Sets the least important level that is logged."""
    before = structlog.get_config()
    yield lambda level: structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))
    structlog.configure(**before)


def test_what_the_level_leaves_out_is_not_made(log_level: Callable[[int], None]) -> None:
    """Nobody is asked which answers have lines that the level leaves out, and none is counted as left out."""
    settings = RequestLog(sample=1.0, slow=1.0, per_second=1)
    asked = Asked(CLIENT, RULE, "s", ENDPOINT)
    for level, least, events in ((WARNING, 1.0, ["request", "log_lines_suppressed"]), (ERROR, inf, [])):
        log_level(level)
        lines = RequestLines(settings)
        assert lines.least == least
        stop_time(lines)
        with capture_logs() as logs:
            for _ in range(5):
                lines.answered(asked, 0.5)
                lines.answered(asked, 0.5, error=True)
            lines.failed(asked, 0.0, Code.UPSTREAM_LOST, "it broke")
            lines.failed(asked, 0.0, Code.UPSTREAM_LOST, "it broke")
            lines.close()
        assert [line["event"] for line in logs] == events
        assert all(line.get("count", 1) == 1 for line in logs)


# ---- the sample ----


@pytest.mark.parametrize("share", [0.01, 0.3, 0.999])
def test_a_sample_is_of_requests(share: float) -> None:
    """Counts of sampled lines, divided by their share, add up to all, however requests came together."""
    random.seed(1)
    lines = RequestLines(RequestLog(sample=share, per_second=1_000_000))
    asked = drawn = 0
    for size in range(1, 600):
        asked += 2 * size + 1
        told = answered(lines, run(size), run(1), run(size), now=0.0)
        assert all(
            (line["sample"], line["outcome"], line["log_level"]) == (share, "ok", "info") for line in told
        )
        drawn += sum(line.get("count", 1) for line in told)
    assert asked == 359_999
    assert abs(drawn / share - asked) < 0.05 * asked


def test_the_smallest_sample_there_is() -> None:
    """Whatever the configuration takes as a share is one, though it comes to nothing."""
    lines = RequestLines(RequestLog(sample=5e-324))
    assert answered(lines, run(5), run(1), now=0.0) == []


def test_a_sample_of_all() -> None:
    """Is each request."""
    lines = RequestLines(RequestLog(sample=1.0))
    told = answered(lines, run(5), run(1), now=0.0)
    assert [(line.get("count", 1), line["sample"]) for line in told] == [(5, 1.0), (1, 1.0)]


def test_what_is_told_anyway_is_no_sample() -> None:
    """Slow ones and errors stand for themselves, and leave the share of the others as it is."""
    lines = RequestLines(RequestLog(sample=1.0, slow=1.0))
    some = run(2)
    lines.note_errors(some[1], 1)
    assert [line.get("sample") for line in answered(lines, some, run(1), now=0.5)] == [None, 1.0, 1.0]
    assert [line.get("sample") for line in answered(lines, run(2), now=1.5)] == [None]


# ---- in a gateway ----


def told(g: Bed) -> list[Line]:
    return g.events("request")


def refuse(request: Request) -> None:
    request.refuse("no")


async def test_by_default_errors_are_told() -> None:
    """Of instances and of the gateway, of ordinary requests and of those that somebody remembers."""
    instance = Instance(refuse)
    rules = 'methods = { known = { idempotent = true }, off = "deny", "known*" = { max_inflight = 5 } }'
    async with bed(instance, listener=rules) as g:
        client = await g.client()
        assert await client.call(method="m") == "no"
        assert await client.call(method="known") == "no"
        assert (await client.call(method="off"))["code"] == "denied"
        instance.behave = hold
        client.ask(4, method="m")
        client.ask(5, method="known\x1b\xff" + 300 * "x")
        await until(lambda: len(instance.held) == 2)
        instance.kill()
        await client.got(5)
        await until(lambda: len(told(g)) == 5)
        client.transport.abort()
        await g.line()
    (number,) = {line["conn"] for line in g.lines}
    assert {(line["conn"], line["listener"], line["service"]) for line in told(g)} == {(number, "l", "s")}
    assert [
        (line["method"], line.get("called"), line["outcome"], line["log_level"]) for line in told(g)[:3]
    ] == [
        ("*", None, "error", "info"),
        ("known", None, "error", "info"),
        ("off", None, "denied", "warning"),
    ]
    assert all(line["endpoint"] == instance.endpoint for line in (told(g)[0], told(g)[1], told(g)[3]))
    assert told(g)[2]["endpoint"] is None
    assert [(line["outcome"], line["method"]) for line in told(g)[3:]] == [
        ("upstream_lost", "*"), ("upstream_lost", "known*")
    ]  # fmt: skip
    assert told(g)[4]["called"] == b"known\x1b\xc3\xbf" + 120 * b"x" + b"..."
    assert all("broke" in line["error"] for line in told(g)[3:])


async def test_requests_that_took_too_long() -> None:
    """Both those that were answered late and those that never were; large answers too."""
    instance = Instance(hold)
    slow = 'log = { requests = { slow = "100ms", errors = false } }'
    async with bed(instance, gateway=slow, listener="methods = { known = { idempotent = true } }") as g:
        client = await g.client()
        for number in range(3):
            client.ask(number, number)
        client.ask(3, 3, method="known")
        client.ask(4, "x" * 1_000_000)
        await until(lambda: len(instance.held) == 5)
        await asyncio.sleep(0.1)
        instance.answer_all()
        await client.got(5)
        await until(lambda: sum(line.get("count", 1) for line in told(g)) == 5)
        assert all(line["slow"] and line["seconds"] >= 0.1 and line["outcome"] == "ok" for line in told(g))
        assert sum(line["method"] == "known" for line in told(g)) == 1
        before = len(told(g))
        instance.behave = lambda request: request.answer()
        assert await client.is_served()
        assert len(told(g)) == before


async def test_every_request_can_be_told() -> None:
    """With a sample of all, as many as there were, whatever way they went."""
    instance = Instance()
    every = "log = { requests = { sample = 1 } }"
    async with bed(instance, gateway=every, listener="methods = { known = { idempotent = true } }") as g:
        clients = [await g.client() for _ in range(5)]
        for place, client in enumerate(clients):
            for number in range(10):
                client.ask(number, number, method="known" if number == 5 else "m")
            client.ask(10, "x" * (100_000 * (place + 1)))
        for client in clients:
            await client.got(11)
        await until(lambda: sum(line.get("count", 1) for line in told(g)) == 55)
        assert {line["sample"] for line in told(g)} == {1}
