"""What a running gateway takes from operators, and when not any more."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tcpgw.app.main import EndingError, NoFiguresError, Operation
from tcpgw.process.notify import Notifier


async def nothing() -> None:
    pass


def operation(done: list[Any], view: Any = None) -> Operation:
    async def drain(endpoint: str, service: str | None = None) -> str:
        done.append((endpoint, service))
        await asyncio.sleep(0)
        done.append("done")
        return "drained"

    overrides = SimpleNamespace(drain=drain, undrain=drain, weight=drain)
    names = ("alerts", "silences", "silence", "unsilence")
    figures = SimpleNamespace(**dict.fromkeys(names, nothing))
    supervisor = SimpleNamespace(
        overrides=overrides,
        status=nothing,
        connections=nothing,
        monitor=SimpleNamespace(view=lambda: view, charts=nothing),
        alerting=figures,
        traces=SimpleNamespace(begin=nothing, next=nothing, end=nothing),
    )
    return Operation(cast("Any", supervisor), Notifier())


async def test_changes_are_made_one_after_another() -> None:
    """None before the start; each with its parameters."""
    done: list[Any] = []
    made = operation(done)
    drain = made.methods["drain"]
    both = asyncio.gather(drain("a"), drain("b", "s"))
    for _ in range(10):
        await asyncio.sleep(0)
    assert done == []
    made.started.set()
    assert [*await both] == ["drained", "drained"]
    assert done == [("a", None), "done", ("b", "s"), "done"]
    await made.give_up()


async def test_what_a_successor_would_not_know_is_refused() -> None:
    """Once it has taken over, and once this gateway ends: nothing is taken and then forgotten."""
    done: list[Any] = []
    made = operation(done)
    made.started.set()
    made.succeeded.set()
    with pytest.raises(EndingError):
        await made.methods["drain"]("a")
    await made.give_up()
    with pytest.raises(EndingError):
        await made.methods["drain"]("a")
    assert done == []


async def test_a_view_is_one_or_an_error() -> None:
    """Whoever asks before the first look, or while none succeeds, is to ask again."""
    with pytest.raises(NoFiguresError, match="ask again in a second"):
        await operation([]).methods["view"]()
    assert await operation([], {"at": 1}).methods["view"]() == {"at": 1}
