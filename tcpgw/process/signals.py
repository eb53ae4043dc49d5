"""Signals, as what they ask for: the first SIGTERM to drain, the second to stop at once, SIGHUP to reload."""

import asyncio
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

_ENDING = (signal.SIGTERM, signal.SIGINT)


class Ending:
    """`asked` is set by the first SIGTERM or SIGINT, `now` by the second."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.now = asyncio.Event()

    def _signalled(self) -> None:
        (self.now if self.asked.is_set() else self.asked).set()


@contextmanager
def ending() -> Iterator[Ending]:
    """Take the two signals for as long as the context lasts. Needs a running loop in the main thread."""
    loop = asyncio.get_running_loop()
    state = Ending()
    for number in _ENDING:
        loop.add_signal_handler(number, state._signalled)  # noqa: SLF001 - its own file
    try:
        yield state
    finally:
        for number in _ENDING:
            loop.remove_signal_handler(number)


@contextmanager
def handled(handlers: Mapping[signal.Signals, Callable[[], object]]) -> Iterator[None]:
    """Have signals call functions on the loop, for as long as the context lasts. As `ending` otherwise."""
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


@contextmanager
def ignored(*numbers: signal.Signals) -> Iterator[None]:
    """Take no notice of signals that would end the process, for as long as the context lasts."""
    with handled(dict.fromkeys(numbers, lambda: None)):
        yield
