"""A periodic timer of microseconds: the event loop's own is one of milliseconds.

At 1,000 requests a second the loop's timer would send every request half a millisecond late on average, and
that would be in the latency. Spinning instead would take the core that the target needs. So: timerfd(2),
which Python offers from 3.13 on only, hence libc.
"""

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator

from tcpgw.bench.plan import BenchError

_SECOND = 1_000_000_000
_CLOCK_MONOTONIC = 1  # clock_gettime(2); what time.monotonic_ns reads on Linux
_TFD_TIMER_ABSTIME = 1
_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("it_interval", _Timespec), ("it_value", _Timespec))


@contextlib.contextmanager
def ticking(call: Callable[[], None], *, first: int, spacing: int) -> Iterator[None]:
    """Call from the running loop, at `first` (of time.monotonic_ns) and then every `spacing` nanoseconds.

    One call stands for all that the loop came too late for. Raises BenchError where the kernel refuses.
    """
    descriptor = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if descriptor < 0:
        raise BenchError(f"no timer for the fixed rate: {os.strerror(ctypes.get_errno())}")

    def tick() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(descriptor, 8)
            call()

    loop = asyncio.get_running_loop()
    try:
        # A time of 0 would disarm it.
        value = _Itimerspec(
            _Timespec(*divmod(max(1, spacing), _SECOND)), _Timespec(*divmod(max(1, first), _SECOND))
        )
        _libc.timerfd_settime(descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(value), None)
        loop.add_reader(descriptor, tick)
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
