"""`tcpgw trace` with a gateway that a test plays."""

import json
from pathlib import Path
from typing import Any

import pytest

from tcpgw.app.control import RefusedError
from tests.support.command import tcpgw
from tests.support.control import answering

WHO = {"worker": 1, "pid": 100, "listener": "l", "conn": 7, "client": "10.0.0.7:51234"}
EVENT = {"at": 1.0, "event": "allowed", "after": 0.5, **WHO}


class Gateway:
    def __init__(self, *answers: list[dict[str, Any]]) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._answers = list(answers)

    def begin(self, network: str, seconds: float) -> str:
        self.asked.append(("begin", network, seconds))
        return "name"

    def next(self, name: str) -> dict[str, Any]:
        assert name == "name"
        if not self._answers:
            raise RefusedError("there is no trace name")
        events = self._answers.pop(0)
        return {"events": events, "over": events == []}

    def end(self, name: str) -> None:
        self.asked.append(("end", name))

    @property
    def methods(self) -> dict[str, Any]:
        return {"trace_begin": self.begin, "trace_next": self.next, "trace_end": self.end}


def test_events_are_printed_until_it_is_over(config: Path) -> None:
    """Events alone on stdout; for a minute where nothing else is said."""
    gateway = Gateway([EVENT, EVENT], [EVENT], [])
    with answering(config, gateway.methods):
        told = tcpgw("trace", "-c", config, "--client", "10.0.0.0/24")
    assert told.code == 0
    assert told.out.count(" #1 ") == len(told.out.splitlines()) == 3
    assert told.err.splitlines() == [
        "tracing who connects from 10.0.0.0/24, for 60 s; Ctrl-C ends it",
        "0 s: 1 connections, 3 events",
    ]
    assert gateway.asked == [("begin", "10.0.0.0/24", 60.0), ("end", "name")]


def test_programs_get_a_line_of_json_each(config: Path) -> None:
    """For as long as they say."""
    gateway = Gateway([EVENT], [])
    with answering(config, gateway.methods):
        told = tcpgw("trace", "-c", config, "--client", "fd00::1", "--for", "5m", "--json")
    assert [json.loads(line) for line in told.out.splitlines()] == [EVENT]
    assert gateway.asked[0] == ("begin", "fd00::1/128", 300.0)


def test_a_gateway_that_ends_meanwhile(config: Path) -> None:
    """What there was is printed, and why there is no more; with 1."""
    gateway = Gateway([EVENT])
    with answering(config, gateway.methods):
        told = tcpgw("trace", "-c", config, "--client", "10.0.0.7")
    assert (told.code, len(told.out.splitlines())) == (1, 1)
    assert "1 connections, 1 events" in told.err
    assert "the gateway ended meanwhile, or another process took over: there is no trace name" in told.err


def test_what_the_gateway_refuses_is_said(config: Path) -> None:
    """With 2, as it says what to do."""

    def refuse(*_: Any) -> None:
        raise RefusedError("4 traces run already")

    with answering(config, {"trace_begin": refuse}):
        told = tcpgw("trace", "-c", config, "--client", "10.0.0.7")
    assert told == (2, "", "4 traces run already\n")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--client", "10.0.0.7/8"], "is an address inside a network"),
        (["--client", "host"], "is not a network"),
        (["--client", "10.0.0.7", "--for", "11m"], "at most 600 s"),
        (["--client", "10.0.0.7", "--for", "0"], "more than 0"),
        (["--client", "10.0.0.7", "--for", "x"], "--for"),
        ([], "--client"),
    ],
)
def test_what_cannot_be_traced_is_refused(config: Path, options: list[str], why: str) -> None:
    """Before anybody is asked, with what is wrong."""
    told = tcpgw("trace", "-c", config, *options)
    assert (told.code, told.out) == (2, "")
    assert why in " ".join(told.err.replace("│", "").split())
