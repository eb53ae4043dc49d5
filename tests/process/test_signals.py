import asyncio
import os
import signal

import pytest

from tcpgw.process.signals import ending, handled, ignored, written
from tests.support.streams import in_time


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_asks_and_the_second_demands(number: int) -> None:
    """One signal sets `asked` alone, the next one `now`, and more change nothing."""
    with ending() as end:
        assert not end.asked.is_set()
        os.kill(os.getpid(), number)
        await in_time(end.asked.wait())
        assert not end.now.is_set()
        os.kill(os.getpid(), number)
        await in_time(end.now.wait())
        os.kill(os.getpid(), number)


async def test_the_two_signals_count_together() -> None:
    """Ctrl-C after a supervisor's SIGTERM is the second signal."""
    with ending() as end:
        os.kill(os.getpid(), signal.SIGTERM)
        await in_time(end.asked.wait())
        os.kill(os.getpid(), signal.SIGINT)
        await in_time(end.now.wait())


async def test_afterwards_the_signals_end_the_process() -> None:
    """Whoever signals after the context, or after an error inside it, is not left waiting."""
    with pytest.raises(RuntimeError, match="inside"), ending():
        raise RuntimeError("inside")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


async def test_signals_call_what_they_ask_for() -> None:
    """On the loop, each time; afterwards they are what they were."""
    calls: list[str] = []
    with handled({signal.SIGHUP: lambda: calls.append("reload"), signal.SIGUSR2: lambda: calls.append("go")}):
        for number in (signal.SIGHUP, signal.SIGUSR2, signal.SIGHUP):
            os.kill(os.getpid(), number)
            before = len(calls)
            while len(calls) == before:  # noqa: ASYNC110 - the signal wakes the loop, and nothing else does
                await asyncio.sleep(0.001)
    assert calls == ["reload", "go", "reload"]
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


async def test_a_signal_may_mean_nothing() -> None:
    """What would end the process does not."""
    with ignored(signal.SIGHUP, signal.SIGUSR2):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR2)
        await asyncio.sleep(0.01)


def test_signals_are_written_for_programs_without_a_loop() -> None:
    """Each as a byte, and none does anything else; afterwards they are what they were."""
    before = signal.getsignal(signal.SIGINT)
    with written(signal.SIGINT, signal.SIGWINCH) as descriptor:
        with pytest.raises(BlockingIOError):
            os.read(descriptor, 1)
        os.kill(os.getpid(), signal.SIGWINCH)
        os.kill(os.getpid(), signal.SIGINT)
        assert sorted(os.read(descriptor, 100)) == sorted([signal.SIGWINCH, signal.SIGINT])
    assert signal.getsignal(signal.SIGINT) == before
    assert signal.set_wakeup_fd(-1) == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.read(descriptor, 1)
