"""The verdicts: which figures break which promise."""

from dataclasses import replace
from typing import Any

import pytest

from tcpgw.demo.result import Result, RpcResult, make_promises

_RPC = RpcResult(
    connections_lost=0,
    requests=20_000,
    missing=0,
    wrong=0,
    failed=24,
    failed_elsewhere=0,
    pending_on_killed=24,
    killed="127.0.0.1:40012",
    slowest_answer=0.2,
    connections_per_endpoint={f"127.0.0.1:4001{number}": 2 for number in range(4)},
    requests_per_endpoint={},
    errors=[],
)
_GOOD = Result(
    seconds=20.0,
    connections=8000,
    failed=0,
    cut_with_instance=5,
    second_choice=60,
    bytes_exchanged=200_000_000,
    bytes_mismatched=0,
    per_endpoint={},
    killed="127.0.0.1:40002",
    keys_on_killed=26,
    moved_while_steady=0,
    moved_on_remove=26,
    moved_on_remove_needlessly=0,
    added="127.0.0.1:40009",
    moved_on_add=23,
    moved_on_add_needlessly=0,
    api_calls=35,
    api_calls_refused=0,
    token_calls=3,
    gateway_status=0,
    errors=[],
    rpc=_RPC,
)


def _broken(result: Result) -> list[str]:
    return [promise.text for promise in make_promises(result) if not promise.kept]


def test_connections_cut_with_their_instance_break_no_promise() -> None:
    """What no gateway can save is told apart from what failed."""
    assert _broken(_GOOD) == []


@pytest.mark.parametrize(
    ("changes", "promise"),
    [
        ({"failed": 1}, "no connection fails"),
        ({"bytes_mismatched": 1}, "every byte"),
        ({"moved_while_steady": 1}, "without a change"),
        ({"moved_on_remove": 25}, "a lost instance"),
        ({"moved_on_remove_needlessly": 1}, "a lost instance"),
        ({"moved_on_add": 0}, "a new instance"),
        ({"moved_on_add": 60}, "a new instance"),
        ({"moved_on_add_needlessly": 1}, "a new instance"),
        ({"api_calls_refused": 1}, "the cloud's limits"),
        ({"gateway_status": 1}, "the gateway ends"),
    ],
)
def test_each_broken_promise_is_named(changes: dict[str, int], promise: str) -> None:
    """One figure out of order breaks its own promise and no other."""
    [broken] = _broken(replace(_GOOD, **changes))  # type: ignore[arg-type]  # all of them are numbers
    assert broken.startswith(promise)


@pytest.mark.parametrize("failed", [0, 23])
def test_requests_that_were_saved_break_no_promise(failed: int) -> None:
    """Those that were never sent to the dead instance are answered by another."""
    assert _broken(replace(_GOOD, rpc=replace(_RPC, failed=failed))) == []


@pytest.mark.parametrize(
    ("changes", "promise"),
    [
        (
            {"connections_per_endpoint": {f"127.0.0.1:4001{number}": 5 for number in range(4)}},
            "1,000 clients",
        ),
        ({"connections_per_endpoint": {"127.0.0.1:40010": 2}}, "1,000 clients"),
        ({"connections_per_endpoint": {}}, "1,000 clients"),
        ({"missing": 1}, "every request"),
        ({"wrong": 1}, "every request"),
        ({"failed": 25}, "only what a dead"),
        ({"failed_elsewhere": 1}, "only what a dead"),
        ({"connections_lost": 1}, "no rpc client"),
    ],
)
def test_each_broken_promise_of_rpc_is_named(changes: dict[str, Any], promise: str) -> None:
    """So it is for the rpc clients; an instance that did not say what it sees counts as broken, too."""
    [broken] = _broken(replace(_GOOD, rpc=replace(_RPC, **changes)))
    assert broken.startswith(promise)
