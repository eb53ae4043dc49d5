"""Looks at a gateway each second."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from structlog.testing import capture_logs

from tcpgw.app.background import Background
from tcpgw.app.monitor.alerting import Alerting
from tcpgw.app.monitor.monitor import Monitor
from tcpgw.app.monitor.picture import Picture
from tests.support.pictures import config, picture
from tests.support.streams import until


class Watched:
    """A monitor that runs, and what it asked for."""

    def __init__(self, background: Background) -> None:
        self.lags: list[float] = []
        self.fault: Exception | None = None
        settings = config()
        self.monitor = Monitor(settings, self._picture, self._asked, Alerting(settings, background))
        background.start(self.monitor.run(), "monitor")

    def _picture(self, lag: float) -> Picture:
        self.lags.append(lag)
        if self.fault is not None:
            raise self.fault
        return picture(config=config())

    async def _asked(self) -> None:
        pass


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[Watched]:
    background = Background()
    try:
        yield Watched(background)
    finally:
        await background.close()


async def test_a_loop_that_is_held_is_late() -> None:
    """The greatest lateness of the last second is told, wherever in it that was."""
    async with watched() as one:
        await asyncio.sleep(0.2)
        time.sleep(0.3)  # noqa: ASYNC251 - the loop is to be held
        await until(lambda: len(one.lags) == 2)
        assert 0.2 < one.lags[1] < 0.6


async def test_a_look_that_fails_ends_nothing() -> None:
    """It is logged, once a minute, and the next one that does not fail is as if nothing had been."""
    with capture_logs() as logs:
        async with watched() as one:
            one.fault = RuntimeError("can't start new thread")
            await until(lambda: len(one.lags) == 2)
            assert one.monitor.view() is None
            one.fault = None
            await until(lambda: one.monitor.view() is not None)
    lines: list[Any] = [line for line in logs if line["event"] == "not_looked"]
    assert [line["log_level"] for line in lines] == ["error"]
