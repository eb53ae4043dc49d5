"""Lines that are due after a while, by the loop's time or by a test's."""

import asyncio
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    def cancel(self) -> None: ...


Later = Callable[[float, Callable[[], None]], Timer]


def later(seconds: float, what: Callable[[], None]) -> Timer:
    """Have something called by the running event loop."""
    return asyncio.get_running_loop().call_later(seconds, what)
