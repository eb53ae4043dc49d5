"""Who is in debt waits for as long as its bucket says, and nobody else does."""

from collections.abc import Callable
from typing import Any

from tcpgw.relay.metering import Metered
from tests.support.layering import Above, Below


class Timer:
    def __init__(self, at: float, call: Callable[[], object]) -> None:
        self.at = at
        self.call = call
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """A loop's timers, and the time that they go by."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[Timer] = []

    def call_later(self, delay: float, call: Callable[[], object]) -> Timer:
        self.timers.append(Timer(self.now + delay, call))
        return self.timers[-1]

    def pass_to(self, now: float) -> None:
        self.now = now
        due = [timer for timer in self.timers if timer.at <= now and not timer.cancelled]
        self.timers = [timer for timer in self.timers if timer not in due]
        for timer in due:
            timer.call()


class Rate:
    """10 bytes per second, and no burst."""

    def __init__(self) -> None:
        self.paid_at = 0.0

    def take(self, n: int, now: float) -> float:
        self.paid_at = max(self.paid_at, now) + n / 10
        return self.paid_at - now


def metered(clock: Clock, reading: Rate | None, writing: Rate | None) -> tuple[Below, Metered, Above]:
    below, above = Below(), Above()
    loop: Any = clock
    layer = Metered(above, loop, reading, writing, lambda: clock.now)
    layer.connection_made(below)
    return below, layer, above


async def test_reading_stops_while_its_bucket_is_in_debt() -> None:
    """What was read is passed on; the next read waits until all of it is paid for."""
    clock = Clock()
    below, layer, above = metered(clock, Rate(), None)
    layer.data_received(b"x" * 20)
    assert above.data == b"x" * 20
    assert not below.reading
    layer.write(b"free")
    assert above.events == ["made"]
    clock.pass_to(1.9)
    assert not below.reading
    clock.pass_to(2.0)
    assert below.reading
    assert clock.timers == []


async def test_writing_stops_while_its_bucket_is_in_debt() -> None:
    """The upper protocol is told; what it writes all the same goes out and prolongs the pause."""
    clock = Clock()
    below, layer, above = metered(clock, None, Rate())
    layer.data_received(b"free")
    layer.write(b"x" * 10)
    assert above.paused
    layer.writelines([b"y" * 5, b"z" * 5])
    assert below.written == [b"x" * 10, b"y" * 5 + b"z" * 5]
    clock.pass_to(1.0)
    assert above.paused
    clock.pass_to(2.0)
    assert not above.paused
    assert above.events == ["made", "pause", "resume"]


async def test_the_upper_protocols_wish_counts_as_well() -> None:
    """A debt that ends does not read for somebody who has paused, nor the reverse."""
    clock = Clock()
    below, layer, _ = metered(clock, Rate(), None)
    layer.data_received(b"x" * 10)
    layer.pause_reading()
    clock.pass_to(1.0)
    assert not below.reading
    layer.resume_reading()
    assert below.reading
    layer.data_received(b"x" * 10)
    layer.resume_reading()
    assert not below.reading


async def test_a_debt_that_others_make_longer() -> None:
    """Of one bucket for many, each waits for the debts of all."""
    clock, bucket = Clock(), Rate()
    first, second = metered(clock, bucket, None), metered(clock, bucket, None)
    first[1].data_received(b"x" * 10)
    second[1].data_received(b"x" * 10)
    clock.pass_to(1.0)
    assert not first[0].reading
    clock.pass_to(2.0)
    assert first[0].reading
    assert second[0].reading


async def test_one_bucket_for_both_directions() -> None:
    """Each direction has its own pause."""
    clock, bucket = Clock(), Rate()
    below, layer, above = metered(clock, bucket, bucket)
    layer.data_received(b"x" * 10)
    layer.write(b"x" * 10)
    assert above.paused
    assert not below.reading
    clock.pass_to(2.0)
    assert not above.paused
    assert below.reading


async def test_no_timer_outlives_the_connection() -> None:
    """Not even one for what is read as it is lost; and nothing is charged after a close."""
    clock = Clock()
    _, layer, _ = metered(clock, Rate(), Rate())
    layer.data_received(b"x" * 10)
    layer.write(b"x" * 10)
    assert len(clock.timers) == 2
    layer.close()
    layer.write(b"x" * 10)
    layer.writelines([b"x" * 10])
    layer.connection_lost(None)
    assert all(timer.cancelled for timer in clock.timers)


async def test_who_is_not_in_debt_is_not_held_up() -> None:
    """Nor is a timer made."""

    class Full(Rate):
        def take(self, n: int, now: float) -> float:  # noqa: ARG002
            return 0.0

    clock = Clock()
    below, layer, above = metered(clock, Full(), Full())
    layer.data_received(b"x" * 10)
    layer.write(b"x" * 10)
    assert below.reading
    assert not above.paused
    assert clock.timers == []
