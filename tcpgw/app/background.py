"""Tasks that run as long as their owner, and whose death is somebody's to hear of."""

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any


class Background:
    """Owns tasks that handle their errors themselves: one that raises is a bug, which ends `failed`.

    Used in one running event loop.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed = asyncio.Event()
        self._error: BaseException | None = None

    def start(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._error = self._error or error
            self._failed.set()

    async def failed(self) -> None:
        """Return never, or raise what the first task that failed raised."""
        await self._failed.wait()
        assert self._error is not None  # noqa: S101 - set before the event
        raise self._error

    async def stop(self, task: asyncio.Task[None]) -> None:
        """Cancel a task and wait for its end. Idempotent."""
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Stop all. Idempotent."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def first(*awaitables: Awaitable[object]) -> None:
    """Wait for the first of these, raise what it raised, and cancel the others."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
