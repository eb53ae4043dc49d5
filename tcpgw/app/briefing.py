"""What every worker is to know, and how each is brought up to it.

It is state here, replaced part by part, and a task for each worker tells it what it does not have yet:
whether it is new, was busy or missed a change makes no difference, and one that hangs keeps no other waiting.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from socket import socket
from typing import Any

from tcpgw.app.material import Contents
from tcpgw.balancing.standing import Share
from tcpgw.config import schema, transfer
from tcpgw.endpoints import Endpoint, Snapshot
from tcpgw.process.channel import MOST_FDS
from tcpgw.process.handover import Sockets
from tcpgw.process.worker import WorkerProcess

# Seconds that a worker has to do what it is told: tables of millions of entries take some. One that hangs is
# found by its silence, long before.
_PATIENCE = 120.0

Standing = tuple[Mapping[Endpoint, Share], frozenset[Endpoint]]


class Briefing:
    """`attend` brings a worker up to what is in force, for as long as it lives.

    `slots` says which slots' sockets a worker is to accept on, out of `count` that there are.
    """

    def __init__(self, slots: Callable[[WorkerProcess], Iterable[int]]) -> None:
        self.snapshots: dict[str, Snapshot] = {}
        self._slots = slots
        self._standings: dict[str, Standing] = {}
        self._sockets: Mapping[str, Sockets] = {}
        self._count = 1
        self._plain: dict[str, Any] = {}
        self._contents: Contents = {}
        self._generation = 0
        self._news = asyncio.Event()  # for workers to be told
        self._progress = asyncio.Event()  # in their being told
        self._told: dict[WorkerProcess, int] = {}

    # ---- what is in force ----

    def configure(
        self, config: schema.Config, contents: Contents, sockets: Mapping[str, Sockets], count: int
    ) -> None:
        self._plain = transfer.plain(config)
        self._contents, self._sockets, self._count = contents, sockets, count
        self._generation += 1
        self._news.set()

    def publish(self, snapshot: Snapshot) -> None:
        self.snapshots[snapshot.service] = snapshot
        self._news.set()

    def weigh(self, service: str, shares: Mapping[Endpoint, Share], watched: frozenset[Endpoint]) -> None:
        """As `health.Weigh`."""
        self._standings[service] = shares, watched
        self._news.set()

    def forget(self, services: Iterable[str]) -> None:
        """Tell nobody of these services any more."""
        for name in services:
            self.snapshots.pop(name, None)
            self._standings.pop(name, None)

    def dismiss(self, worker: WorkerProcess) -> None:
        """A worker is gone."""
        self._told.pop(worker, None)
        self._progress.set()

    # ---- workers ----

    async def followed(self, workers: Callable[[], Iterable[WorkerProcess]]) -> None:
        """Return when each of these that accepts has the configuration in force."""
        while any(
            worker.accepting.is_set() and not worker.leaving and self._told.get(worker, 0) < self._generation
            for worker in workers()
        ):
            self._progress.clear()
            await self._progress.wait()

    async def attend(self, worker: WorkerProcess) -> None:
        told: dict[str, Snapshot] = {}
        weighed: dict[str, Standing] = {}
        given: set[socket] = set()
        while not worker.leaving:
            generation = self._generation
            if self._told.get(worker) != generation:
                await self._configure(worker, given)
                self._told[worker] = generation
            # Before the snapshots: what is new in one has its slow start from the beginning.
            for service, standing in list(self._standings.items()):
                if weighed.get(service) is not standing:
                    await worker.call("weigh", service, *_plain(*standing), timeout=_PATIENCE)
                    weighed[service] = standing
            for service, snapshot in list(self.snapshots.items()):
                if told.get(service) is not snapshot:
                    await worker.call("publish", *snapshot.plain(), timeout=_PATIENCE)
                    told[service] = snapshot
            if not worker.accepting.is_set() and not worker.leaving:
                await worker.call("accept", timeout=_PATIENCE)
                worker.accepting.set()
            self._progress.set()
            if generation == self._generation and not self._has_news(told, weighed):
                self._news.clear()
                await self._news.wait()

    def _has_news(self, told: Mapping[str, Snapshot], weighed: Mapping[str, Standing]) -> bool:
        return any(told.get(service) is not one for service, one in self.snapshots.items()) or any(
            weighed.get(service) is not one for service, one in self._standings.items()
        )

    async def _configure(self, worker: WorkerProcess, given: set[socket]) -> None:
        sockets = self._sockets
        given.intersection_update(sock for one in sockets.values() for sock in one.sockets)
        new = [
            (name, sock)
            for name, one in sockets.items()
            for slot in self._slots(worker)
            for sock in one.of_worker(slot, self._count)
            if sock not in given
        ]
        outlived = [name for name, one in sockets.items() if one.outlived]
        for start in range(0, len(new), MOST_FDS):
            names, socks = zip(*new[start : start + MOST_FDS], strict=True)
            await worker.call("lend", names, fds=[sock.fileno() for sock in socks], timeout=_PATIENCE)
            given.update(socks)
        await worker.call(
            "configure", self._plain, outlived, dict(self._contents), self._count, timeout=_PATIENCE
        )


def _plain(
    shares: Mapping[Endpoint, Share], watched: frozenset[Endpoint]
) -> tuple[list[tuple[str, int, float, bool]], list[tuple[str, int]]]:
    weights = [(*endpoint, share.value, share.by_key) for endpoint, share in shares.items()]
    return weights, [(endpoint.host, endpoint.port) for endpoint in watched]
