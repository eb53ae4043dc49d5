"""A control socket without a gateway: commands ask it, and a test says what it answers."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tcpgw.app.control import controlled
from tests.support.processes import PATIENCE

Answers = Mapping[str, Callable[..., Any]]


@contextlib.contextmanager
def answering(config: Path, answers: Answers) -> Iterator[None]:
    """Answer for the gateway that runs with this file, in another thread, until the context ends."""
    ready, over = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    def awaited(answer: Callable[..., Any]) -> Callable[..., Any]:
        async def method(*params: Any) -> Any:
            return answer(*params)

        return method

    async def serve() -> None:
        async with controlled(config, {name: awaited(answer) for name, answer in answers.items()}) as place:
            assert place is not None
            ready.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(PATIENCE)
        loop.close()
