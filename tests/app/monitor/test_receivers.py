"""Receivers as the configuration names them: begun, kept and ended with it."""

import asyncio
from typing import Any

import pytest

from tcpgw.app.background import Background
from tcpgw.app.monitor.receivers import Receivers
from tcpgw.config.schema import Alerts
from tests.support.alerts import WALL, alert, over
from tests.support.inbox import Inbox
from tests.support.streams import until


def alerts(**receivers: Any) -> Alerts:
    return Alerts.model_validate({"group_wait": 0, "group_interval": 1, **receivers})


async def test_one_that_stays_goes_on(background: Background, received: Inbox) -> None:
    """With what it knows; only its rhythm is another."""
    receivers, hook = Receivers(background), {"url": received.url}
    receivers.follow(alerts(webhook={"a": hook}))
    receivers.look([alert()], [], {}, 0, WALL)
    await until(lambda: receivers.status()[0]["sent"] == 1)
    receivers.follow(alerts(webhook={"a": hook}, repeat=5))
    receivers.look([alert()], [], {}, 4, WALL)
    receivers.look([alert()], [], {}, 5, WALL)
    await until(lambda: receivers.status()[0]["sent"] == 2)


@pytest.mark.parametrize("change", [{"timeout": 9}, {"headers": {"X-Key": "k"}}, {"bearer": "t"}])
async def test_one_that_is_changed_hears_of_the_end(
    background: Background, received: Inbox, change: dict[str, Any]
) -> None:
    """Of all that it was told of, also where that is over at the same time; its figures go on."""
    receivers, hook = Receivers(background), {"url": received.url}
    receivers.follow(alerts(webhook={"a": hook}))
    receivers.look([alert("a"), alert("b", "TcpgwPanic")], [], {}, 0, WALL)
    await until(lambda: len(received.told) == 2)
    receivers.follow(alerts(webhook={"a": hook | change}))
    receivers.look([alert("a")], [over("b", "TcpgwPanic")], {}, 1, WALL)
    receivers.look([], [over("a")], {}, 5, WALL)
    await until(lambda: receivers.status()[0]["sent"] == 5)
    assert received.told[2:] == ["firing TcpgwErrorRate", "resolved TcpgwPanic", "resolved TcpgwErrorRate"]


async def test_one_that_is_mended_hears_what_it_missed(background: Background, received: Inbox) -> None:
    """What was dropped where it could not be reached is told anew, and what waits goes to the new place."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        wrong = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        receivers = Receivers(background)
        receivers.follow(
            alerts(webhook={"a": {"url": wrong, "timeout": 0.05}}, alertmanager={"urls": [received.url]})
        )
        receivers.look([alert()], [], {}, 0, WALL)
        receivers.look([], [over()], {}, 1, WALL)
        await until(lambda: len(received.messages) == 2 and receivers.status()[0]["failed"])
        receivers.follow(
            alerts(
                webhook={"a": {"url": received.url}},
                alertmanager={"urls": [received.url], "bearer": "t"},
            )
        )
        receivers.look([alert()], [], {}, 9, WALL)
        await until(lambda: len(received.messages) == 6)
    told = [one["body"]["status"] for one in received.messages if one["path"] == "/"]
    assert told == ["firing", "resolved", "firing"]
    again = [one for one in received.messages if one["path"] != "/"][2]
    assert again["headers"]["Authorization"] == "Bearer t"


async def test_one_that_goes_is_ended(background: Background, received: Inbox) -> None:
    """Its task too, and the others are not disturbed."""
    receivers = Receivers(background)
    receivers.follow(alerts(webhook={"a": {"url": received.url}, "b": {"url": received.url}}))
    assert _tasks() == {"alerts to a", "alerts to b"}
    receivers.follow(alerts(webhook={"b": {"url": received.url}}))
    await until(lambda: _tasks() == {"alerts to b"})
    await receivers.close()
    assert _tasks() == set()


def _tasks() -> set[str]:
    return {name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("alerts to")}


async def test_one_that_fails_holds_up_nobody(background: Background, received: Inbox) -> None:
    """Neither the one after it nor who has them told."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        stuck = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        receivers = Receivers(background)
        receivers.follow(
            alerts(
                webhook={"stuck": {"url": stuck, "timeout": 3600}, "well": {"url": received.url}},
                alertmanager={"urls": [stuck, received.url]},
            )
        )
        receivers.look([alert()], [], {}, 0, WALL)
        receivers.look([], [over()], {}, 1, WALL + 1)
        await until(lambda: len(received.messages) == 4)
        sent = {(one["receiver"], one["sent"]) for one in receivers.status()}
        assert sent >= {("stuck", 0), ("alertmanager", 0)}
        await receivers.close()
