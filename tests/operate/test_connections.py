"""Connections as an operator sees them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import tcpgw
from tests.support.control import answering

ROW = {
    "worker": 1, "conn": 7, "listener": "l", "client": "[fd00::1]:40000", "service": "s",
    "endpoint": "10.0.0.1:80",
    "age": 75.0, "bytes_in": 2048, "bytes_out": 10, "in_flight": 3, "waiting": 1.25, "connect_time": 0.004,
    "state": "open",
}  # fmt: skip
EARLY = ROW | {
    "conn": 8, "service": None, "endpoint": None, "in_flight": None, "waiting": None, "connect_time": None,
    "state": "setting up",
}  # fmt: skip


def found(*params: Any) -> Any:
    asked.append(params)
    return {"connections": [ROW, EARLY], "total": 30, "unheard": [2]}


asked: list[tuple[Any, ...]] = []


def test_they_are_listed_with_what_is_known(config: Path) -> None:
    """What is not is a dash; whose are missing is said."""
    with answering(config, {"connections": found}):
        code, out, err = tcpgw("connections", "-c", config, "--service", "s", "--slowest", "--count", "2")
    assert (code, asked.pop()) == (0, ("s", True, 2))
    first, second = (
        [cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")
    )
    assert first == [
        "1", "7", "l", "[fd00::1]:40000", "s", "10.0.0.1:80", "1 min", "2.00 KiB", "10 B", "3", "1.25 s",
        "4.00 ms", "open",
    ]  # fmt: skip
    assert second[4:6] + second[9:] == ["-", "-", "-", "-", "-", "setting up"]
    assert out.endswith("\n2 of 30 connections\n")
    assert err == "Without those of workers that did not answer in time: 2.\n"


def test_programs_get_the_answer_as_it_is(config: Path) -> None:
    """One JSON object; by default 20 of all services, the oldest."""
    with answering(config, {"connections": found}):
        told = tcpgw("connections", "-c", config, "--json")
    assert (told.code, told.err, asked.pop()) == (0, "", (None, False, 20))
    assert json.loads(told.out) == {"connections": [ROW, EARLY], "total": 30, "unheard": [2]}


@pytest.mark.parametrize("unheard", [[], [2]])
def test_none_is_a_line(config: Path, unheard: list[int]) -> None:
    """No titles over nothing; whose are missing is said all the same."""
    none = {"connections": [], "total": 0, "unheard": unheard}
    with answering(config, {"connections": lambda *_: none}):
        code, out, err = tcpgw("connections", "-c", config)
    assert (code, out, bool(err)) == (0, "0 connections\n", bool(unheard))


@pytest.mark.parametrize("count", ["0", "1001", "x"])
def test_counts_have_bounds(config: Path, count: str) -> None:
    """Nobody is asked for more."""
    assert tcpgw("connections", "-c", config, "--count", count).code == 2
