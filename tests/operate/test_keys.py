"""What a terminal sends, as keys."""

import contextlib
import os
import signal
import termios
from collections.abc import Iterator

import pytest

from tcpgw.operate.keys import Decoder, Key, terminal


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", [Key.QUIT]),
        (b"jk", [Key.DOWN, Key.UP]),
        (b"\x1b[A\x1b[B", [Key.UP, Key.DOWN]),
        (b"\x1bOA\x1bOB", [Key.UP, Key.DOWN]),
        (b"\x1b[5~\x1b[6~", [Key.PAGE_UP, Key.PAGE_DOWN]),
        (b" b", [Key.PAGE_DOWN, Key.PAGE_UP]),
        (b"gG\x1b[H\x1b[4~", [Key.FIRST, Key.LAST, Key.FIRST, Key.LAST]),
        (b"x\x1b[1;5As\x00\xff", [Key.SORT]),
        (b"\x1bq", [Key.QUIT]),
        (b"\x1b\x1b[A", [Key.UP]),
    ],
)
def test_keys(data: bytes, keys: list[Key]) -> None:
    """In whatever pieces they come; what means nothing here is passed over whole."""
    assert Decoder().feed(data) == keys
    decoder = Decoder()
    assert [key for byte in data for key in decoder.feed(bytes([byte]))] == keys


def test_what_never_ends_is_given_up() -> None:
    """And the next key is one again."""
    decoder = Decoder()
    assert decoder.feed(b"\x1b[" + b"1;" * 20) == []
    assert decoder.feed(b"q") == [Key.QUIT]


@pytest.fixture
def pair() -> Iterator[tuple[int, int]]:
    """A terminal's two ends: who types, and what the program has."""
    person, program = os.openpty()
    yield person, program
    for end in (person, program):
        with contextlib.suppress(OSError):  # a test may have closed it
            os.close(end)


def test_keys_need_no_return_and_modes_come_back(pair: tuple[int, int]) -> None:
    """Also where the program fails. Typed ahead, they are nobody else's afterwards."""
    person, program = pair
    before = termios.tcgetattr(program)
    with contextlib.suppress(ZeroDivisionError), terminal(program) as keys:
        os.write(person, b"j")
        assert keys.wait(5.0) == [Key.DOWN]
        assert keys.wait(0.0) == []
        assert not keys.ended
        assert termios.tcgetattr(program) != before
        os.write(person, b"rm -rf\n")
        raise ZeroDivisionError
    assert termios.tcgetattr(program) == before


@pytest.mark.parametrize(
    ("number", "ends"),
    [(signal.SIGINT, True), (signal.SIGTERM, True), (signal.SIGHUP, True), (signal.SIGWINCH, False)],
)
def test_signals_end_the_waiting(pair: tuple[int, int], number: signal.Signals, *, ends: bool) -> None:
    """A resize has it drawn anew; the others are an end, and harm nobody."""
    handler = signal.getsignal(number)
    with terminal(pair[1]) as keys:
        os.kill(os.getpid(), number)
        assert keys.wait(5.0) == []
        assert keys.ended is ends
        assert keys.wait(0.0) == []
    assert signal.getsignal(number) == handler


def test_a_hang_up_is_the_end(pair: tuple[int, int]) -> None:
    """Whoever looked has gone, and nobody waits for keys of theirs."""
    with terminal(pair[1]) as keys:
        os.close(pair[0])
        assert keys.wait(5.0) == []
        assert keys.ended
