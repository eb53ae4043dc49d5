"""What operators say of endpoints, and what they are told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tcpgw.app.control import RefusedError
from tcpgw.operate import drain as module
from tests.support.command import tcpgw
from tests.support.control import answering

A = "10.0.0.1:80"


def one(
    *, weight: int | None = 3, given: int | None = 3, override: str | None = None, changed: bool = True
) -> Any:
    return {
        "service": "s", "endpoint": A, "weight": weight, "given_weight": given, "override": override,
        "changed": changed,
    }  # fmt: skip


def answer(found: dict[str, Any], why: str = "") -> Callable[..., Any]:
    asked: list[tuple[Any, ...]] = []

    def method(*params: Any) -> Any:
        asked.append(params)
        return {"endpoints": [found], "kept": not why, "why": why}

    method.asked = asked  # type: ignore[attr-defined]
    return method


def test_options_reach_the_gateway(config: Path) -> None:
    """As they are: it alone knows services and endpoints."""
    drained = answer(one(override="drained"))
    undrained, weighed = answer(one()), answer(one(weight=5, override="weight"))
    with answering(config, {"drain": drained, "undrain": undrained, "weight": weighed}):
        assert tcpgw("drain", A, "-c", config) == (0, f"s: {A} is drained\n", "")
        assert tcpgw("drain", A, "-c", config, "--service", "s", "--force").code == 0
        assert (
            tcpgw("undrain", A, "-c", config).out
            == f"s: {A} is no longer drained: weight 3, as discovery says\n"
        )
        assert tcpgw("weight", A, "5", "-c", config).out == f"s: {A}: weight 5 (discovery: 3)\n"
        assert tcpgw("weight", A, "auto", "-c", config, "--service", "s").code == 0
    assert drained.asked == [(A, None, False), (A, "s", True)]  # type: ignore[attr-defined]
    assert undrained.asked == [(A, None)]  # type: ignore[attr-defined]
    assert weighed.asked == [(A, 5, None), (A, "auto", "s")]  # type: ignore[attr-defined]


DRAINED = one(weight=0, override="drained")


@pytest.mark.parametrize(
    ("found", "weight", "said"),
    [
        (one(given=None, weight=None), "5", "discovery leaves it out at the moment"),
        (DRAINED, "5", "drained, so its weight is 0; after `tcpgw undrain` it is 5"),
        (DRAINED, "auto", "drained, so its weight is 0; after `tcpgw undrain` it is 3, as discovery says"),
    ],
)
def test_a_weight_that_is_not_in_force_says_so(config: Path, found: Any, weight: str, said: str) -> None:
    """And why, and when it will be."""
    with answering(config, {"weight": answer(found)}):
        assert tcpgw("weight", A, weight, "-c", config).out == f"s: {A}: {said}\n"


def test_what_does_not_last_is_said(config: Path) -> None:
    """On stderr with the reason, and only where something was said that could be lost."""
    with answering(config, {"drain": answer(one(override="drained"), "the disk is full")}):
        code, _, err = tcpgw("drain", A, "-c", config)
        assert (code, err) == (0, "It ends with the gateway's process: the disk is full.\n")
    with answering(config, {"undrain": answer(one(changed=False), "the disk is full")}):
        out = f"s: {A} is not drained: weight 3, as discovery says\n"
        assert tcpgw("undrain", A, "-c", config) == (0, out, "")


def test_a_refusal_is_exit_code_2(config: Path) -> None:
    """With the gateway's words."""

    def refuse(*_: Any) -> Any:
        raise RefusedError("no service has it")

    with answering(config, {"drain": refuse}):
        assert tcpgw("drain", A, "-c", config) == (2, "", "no service has it\n")


def test_waiting_ends_when_nothing_is_in_flight(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at the first glance: a worker may have taken the drain up a moment later."""
    monkeypatch.setattr(module, "_LOOK", 0.001)
    figures = iter([0, 4, 0, 0, 1000])
    statuses = {
        "drain": answer(one(override="drained")),
        "status": lambda: {"services": {"s": {"endpoints": {A: {"inflight": next(figures)}}}}},
    }
    with answering(config, statuses):
        code, out, err = tcpgw("drain", A, "-c", config, "--wait", "1m")
    assert (code, out, err) == (0, f"s: {A} is drained\nnothing is in flight there\n", "")
    assert next(figures) == 1000


def test_waiting_has_an_end(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 1 and what is left."""
    monkeypatch.setattr(module, "_LOOK", 0.001)
    statuses = {
        "drain": answer(one(override="drained")),
        "status": lambda: {"services": {"s": {"endpoints": {A: {"inflight": 4}}}}},
    }
    with answering(config, statuses):
        code, _, err = tcpgw("drain", A, "-c", config, "--wait", "10ms")
    assert (code, err) == (1, "after 0.01 s 4 are still in flight there; it stays drained\n")


def test_what_discovery_leaves_out_is_not_waited_for(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It drains by itself, and nobody counts what is in flight there."""
    monkeypatch.setattr(module, "_LOOK", 0.001)
    statuses = {"drain": answer(one(override="drained")), "status": lambda: {"services": dict[str, Any]()}}
    with answering(config, statuses):
        assert tcpgw("drain", A, "-c", config, "--wait", "1").code == 0
