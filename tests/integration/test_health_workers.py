"""Health where several processes relay: what they tell adds up, and all know what follows."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from tests.support.processes import GatewayProcess, free_port
from tests.support.sick import Clients, Instance, instances
from tests.support.streams import until
from tests.support.workers import Run, config_of, runs

FOR_LONG = 'ejection = "1m", max_ejection = "5m"'


class Fleet:
    """A gateway of two workers, and the clients and instances of a test."""

    def __init__(
        self, run: Run, gateway: GatewayProcess, made: list[Instance], text: Callable[..., str]
    ) -> None:
        self.run = run
        self.gateway = gateway
        self.instances = made
        self.clients = Clients("{}:{}".format(*run.address))
        self._text = text

    async def status(self) -> dict[str, Any]:
        found: dict[str, Any] = (await asyncio.to_thread(self.run.status))["services"].get("s", {})
        return found

    async def state(self, instance: Instance) -> str:
        return str((await self.status())["endpoints"][instance.endpoint]["state"])

    def logged(self, event: str, **fields: object) -> list[dict[str, Any]]:
        return [one for one in self.gateway.events(event) if fields.items() <= one.items()]

    async def until_logged(self, event: str, count: int = 1, **fields: object) -> None:
        await until(lambda: len(self.logged(event, **fields)) >= count)

    async def reload(self, **changes: Any) -> None:
        self.run.file.write_text(self._text(**changes))
        told = await asyncio.to_thread(self.run.command, "reload")
        assert told.returncode == 0, told.stderr

    async def eject(self, sick: Instance) -> None:
        """Have it ejected for all workers."""
        sick.mood = "resets"
        async with asyncio.timeout(20):
            while not self.logged("endpoint_state", endpoint=sick.endpoint, after="ejected"):
                await self.clients.ask()
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        self.clients.failures.clear()

    async def is_spared_by_all(self, sick: Instance, count: int = 60) -> bool:
        """Whether no client of any worker comes to it."""
        before = sick.accepted
        failed = len(self.clients.failures)
        await self.clients.ask_often(count)
        return sick.accepted == before and len(self.clients.failures) == failed


@contextlib.asynccontextmanager
async def fleet(
    folder: Path, passive: str = FOR_LONG, *, code: int = 0, active: str = '"off"', count: int = 2
) -> AsyncIterator[Fleet]:
    port = free_port()
    async with instances(count) as made:

        def text(
            passive: str = passive, members: list[Instance] = made, workers: int = 2, more: str = "",
            active: str = active,
        ) -> str:  # fmt: skip
            health = f"health = {{ active = {active}, passive = {{ {passive} }} }}"
            addresses: list[Any] = [one.endpoint.split(":") for one in members]
            return config_of(addresses, port, service=health, workers=workers, more=more)

        run = Run(folder, text())
        with run.started(code) as gateway:
            yield Fleet(run, gateway, made, text)
            await asyncio.sleep(0.1)  # what clients have ended ends at instances, which are in this loop


async def test_a_streak_that_workers_share(tmp_path: Path) -> None:
    """Failures in a row count wherever they are met: 20 eject, of which no worker met as many."""
    async with fleet(tmp_path, f"failures = 20, {FOR_LONG}") as f:
        sick, well = f.instances
        sick.mood = "resets"
        while len(f.clients.failures) < 19:
            await f.clients.ask()
        await asyncio.sleep(0.3)
        assert not f.logged("endpoint_state", after="ejected")
        while len(f.clients.failures) < 20:
            await f.clients.ask()
        await f.until_logged("endpoint_state", endpoint=sick.endpoint, after="ejected")
        await asyncio.sleep(0.1)
        assert await f.is_spared_by_all(sick)
        status = await f.status()
        shown = status["endpoints"][sick.endpoint]
        assert (shown["state"], shown["failures"], shown["successes"]) == ("ejected", {"reset": 20}, 0)
        told = (await asyncio.to_thread(f.run.command, "status")).stdout
        row, why = [line for line in told.splitlines() if sick.endpoint in line]
        assert "ejected" in row
        assert "reset 20" in row
        assert why.startswith(f"s: {sick.endpoint} is ejected: ")
        assert status["endpoints"][well.endpoint]["state"] == "healthy"
        assert status["endpoints"][well.endpoint]["successes"] == f.clients.served[well.endpoint]
        assert status["health"] == {"panic": False, "panics": 0, "ejections": 1, "spared": 0}
        accepted = [one["worker"] for one in f.gateway.events("connection_closed")]
        assert set(accepted) == {1, 2}


async def test_a_streak_after_much_that_went_well(tmp_path: Path) -> None:
    """What went well before cannot hide it: little more than `failures` clients fail for each worker."""
    async with fleet(tmp_path, f"failures = 5, {FOR_LONG}") as f:
        sick, _ = f.instances
        await f.clients.ask_often(200)
        sick.mood = "resets"
        async with asyncio.timeout(20):
            while not f.logged("endpoint_state", endpoint=sick.endpoint, after="ejected"):
                await f.clients.ask()
                await asyncio.sleep(0.02)
        # Those of the first tenths of a second may be taken for older than the last success.
        assert 5 <= len(f.clients.failures) <= 2 * 5 + 4


async def test_workers_that_come_later(tmp_path: Path) -> None:
    """A successor of one that died, of one that was asked to leave, and an additional one know who is out."""
    async with fleet(tmp_path) as f:
        sick, _ = f.instances
        await f.eject(sick)
        first, second = f.gateway.ready["workers"]
        os.kill(first, signal.SIGKILL)
        await f.until_logged("worker_ready", 3)
        os.kill(second, signal.SIGTERM)
        await f.until_logged("worker_ready", 4)
        await f.reload(workers=3)
        await f.until_logged("worker_ready", 5)
        assert await f.is_spared_by_all(sick)


async def test_without_the_supervisor(tmp_path: Path) -> None:
    """Who was out stays out: the last shares are in force for as long as the workers take clients."""
    async with fleet(tmp_path, code=-signal.SIGKILL) as f:
        sick, _ = f.instances
        await f.eject(sick)
        workers = f.gateway.ready["workers"]
        os.kill(f.gateway.process.pid, signal.SIGKILL)
        await f.until_logged("supervisor_lost", 2)
        for _ in range(5):
            assert await f.is_spared_by_all(sick)
            await asyncio.sleep(0.2)
        assert not f.clients.failures
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
        await until(lambda: not any(map(runs, workers)))


async def test_reloads_keep_verdicts(tmp_path: Path) -> None:
    """Other settings of health, checks that it passes, and other endpoints leave out who is out."""
    async with fleet(tmp_path, count=3) as f:
        sick, well, coming = f.instances
        await f.reload(members=[sick, well])
        await f.eject(sick)
        await f.reload(members=[sick, well], passive=f"failures = 3, trial_share = 0.5, {FOR_LONG}")
        assert await f.state(sick) == "ejected"
        assert await f.is_spared_by_all(sick)
        await f.reload(members=[sick, well, coming])
        assert await f.state(sick) == "ejected"
        assert await f.is_spared_by_all(sick)
        check = '{ type = "tcp", interval = "100ms", fast_interval = "50ms", timeout = "50ms" }'
        await f.reload(members=[sick, well, coming], active=check)
        assert await f.state(sick) == "ejected"
        await asyncio.sleep(0.3)
        assert await f.is_spared_by_all(sick)
        await f.reload(members=[sick, well], active=check)
        assert await f.is_spared_by_all(sick)


async def test_a_service_that_is_removed_and_added_again(tmp_path: Path) -> None:
    """Nothing is held against its instances from before; what they do now counts as ever."""
    async with fleet(tmp_path) as f:
        sick, well = f.instances
        await f.eject(sick)
        text = f.run.file.read_text()
        other = text.replace('name = "s"', 'name = "t"').replace('route = "s"', 'route = "t"')
        f.run.file.write_text(other)
        assert (await asyncio.to_thread(f.run.command, "reload")).returncode == 0
        await f.clients.ask_often(4)
        await f.reload()
        assert await f.state(sick) == "unknown"
        sick.mood = "well"
        served = await f.clients.ask_often(60)
        assert served[sick.endpoint] > 10
        sick.mood = "resets"
        async with asyncio.timeout(20):
            while len(f.logged("endpoint_state", service="s", endpoint=sick.endpoint, after="ejected")) < 2:
                await f.clients.ask()
                await asyncio.sleep(0.005)
        assert served[well.endpoint] > 10
