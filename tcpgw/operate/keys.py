"""A terminal's keys, and what else happens to a program that shows a screen."""

import contextlib
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator
from enum import Enum, auto
from typing import Any

from tcpgw.process.signals import written


class Key(Enum):
    """What an operator may press; several keys may mean one thing."""

    QUIT = auto()
    UP = auto()
    DOWN = auto()
    PAGE_UP = auto()
    PAGE_DOWN = auto()
    FIRST = auto()
    LAST = auto()
    SORT = auto()


# As xterm and all who follow it send them, in both modes of their cursor keys.
_BYTES = {
    b"q": Key.QUIT, b"Q": Key.QUIT, b"s": Key.SORT,
    b"k": Key.UP, b"\x1b[A": Key.UP, b"\x1bOA": Key.UP,
    b"j": Key.DOWN, b"\x1b[B": Key.DOWN, b"\x1bOB": Key.DOWN,
    b"b": Key.PAGE_UP, b"\x1b[5~": Key.PAGE_UP,
    b" ": Key.PAGE_DOWN, b"\x1b[6~": Key.PAGE_DOWN,
    b"g": Key.FIRST, b"\x1b[H": Key.FIRST, b"\x1bOH": Key.FIRST, b"\x1b[1~": Key.FIRST,
    b"G": Key.LAST, b"\x1b[F": Key.LAST, b"\x1bOF": Key.LAST, b"\x1b[4~": Key.LAST,
}  # fmt: skip
# Bytes of a sequence that nobody knows the end of; the longest that terminals send have fewer.
_LONGEST = 16
_READ = 1024


class Decoder:
    """Makes keys of what a terminal sends, in whatever pieces it comes."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Key]:
        """Return the keys that are whole now. What means nothing here is passed over."""
        keys = []
        data = self._rest + data
        while data:
            end = _end(data)
            if end is None:
                break
            if (key := _BYTES.get(data[:end])) is not None:
                keys.append(key)
            data = data[end:]
        self._rest = data if len(data) < _LONGEST else b""
        return keys


def _end(data: bytes) -> int | None:
    """Where the first key's bytes end; None: they are not all there."""
    if data[:1] != b"\x1b":
        return 1
    if data[1:2] == b"O":
        return 3 if len(data) > 2 else None
    if data[1:2] != b"[":  # Escape itself, before another key
        return 1 if len(data) > 1 else None
    # ECMA-48, 5.4: parameters and intermediate bytes, then one final byte.
    return next((place + 1 for place in range(2, len(data)) if 0x40 <= data[place] <= 0x7E), None)


class Terminal:
    """Keys without Return and without echo. `ended` once the program is to end: by a signal, or a hang-up."""

    def __init__(self, descriptor: int, signals: int) -> None:
        self.ended = False
        self._descriptor = descriptor
        self._signals = signals
        self._decoder = Decoder()

    def wait(self, seconds: float) -> list[Key]:
        """Return the keys pressed, as soon as there are any; none after `seconds`, a resize, or the end."""
        ready, _, _ = select.select([self._descriptor, self._signals], [], [], max(0.0, seconds))
        if self._signals in ready:
            numbers = set(os.read(self._signals, _READ))
            self.ended = self.ended or bool(numbers - {signal.SIGWINCH})
        if self._descriptor not in ready:
            return []
        try:
            data = os.read(self._descriptor, _READ)
        except OSError:
            data = b""
        self.ended = self.ended or not data
        return self._decoder.feed(data)


@contextlib.contextmanager
def terminal(descriptor: int) -> Iterator[Terminal]:
    """Take a terminal's keys for as long as the context lasts; at its end all its modes are what they were.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP end no process meanwhile, but are told. Ctrl-Z is no key: a shell
    would be left with a screen that is not its own. Needs the main thread.
    """
    before = termios.tcgetattr(descriptor)
    with written(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH) as signals:
        try:
            tty.setcbreak(descriptor)
            modes: list[Any] = termios.tcgetattr(descriptor)
            modes[6][termios.VSUSP] = b"\0"
            termios.tcsetattr(descriptor, termios.TCSANOW, modes)
            yield Terminal(descriptor, signals)
        finally:
            with contextlib.suppress(termios.error):  # a terminal that is gone has no modes
                termios.tcsetattr(descriptor, termios.TCSAFLUSH, before)
