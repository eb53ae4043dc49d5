"""Signals, as what they ask for: the first SIGTERM to drain, the second to stop at once, SIGHUP to reload."""

import asyncio
import os
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
def written(*numbers: signal.Signals) -> Iterator[int]:
    """Have signals written to a descriptor, which is yielded, for programs without a loop: a byte each.

    They do nothing else, for as long as the context lasts. Needs the main thread.
    """
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    # A full pipe means that enough is to be read.
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield reader
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


@contextmanager
def ignored(*numbers: signal.Signals) -> Iterator[None]:
    """Take no notice of signals that would end the process, for as long as the context lasts."""
    with handled(dict.fromkeys(numbers, lambda: None)):
        yield
