"""A layer that does nothing is not noticed from either side; its own reasons join those of its neighbours."""

import asyncio
import os
import socket

import pytest

from tcpgw.relay.layers import Layer
from tests.support.layering import Above, Below
from tests.support.streams import in_time, until

OTHER_END = OSError("broken")


async def joined() -> tuple[Below, Layer, Above]:
    below, above = Below(), Above()
    layer = Layer(above)
    layer.connection_made(below)
    return below, layer, above


# ---- passing on ----


async def test_bytes_and_ends_are_passed_on() -> None:
    """Everything that one side says is heard on the other, as it was said."""
    below, layer, above = await joined()
    layer.data_received(b"question")
    assert above.data == b"question"
    layer.write(b"an")
    layer.writelines([b"sw", b"er"])
    assert below.written == [b"an", b"swer"]
    assert layer.can_write_eof()
    layer.write_eof()
    assert layer.eof_received() is True
    layer.close()
    assert below.calls == ["write_eof", "close"]
    layer.connection_lost(None)
    assert above.events == ["made", "eof", "lost"]
    assert above.error is None


async def test_what_is_asked_of_the_transport() -> None:
    """Limits, sizes and extra information are the lower transport's."""
    below, layer, above = await joined()
    layer.set_write_buffer_limits(high=100)
    assert layer.get_write_buffer_limits() == below.limits == (25, 100)
    below.buffered = 7
    assert layer.get_write_buffer_size() == 7
    assert layer.get_extra_info("peername") == ("10.0.0.1", 1)
    assert layer.get_extra_info("cipher", "none") == "none"
    assert layer.get_protocol() is above
    other = Above()
    layer.set_protocol(other)
    layer.data_received(b"x")
    assert other.data == b"x"
    assert above.data == b""


async def test_an_upper_protocol_may_end_with_the_end() -> None:
    """What `eof_received` answers goes down."""
    layer = Layer(Above(keep_open=False))
    layer.connection_made(Below())
    assert layer.eof_received() is False


async def test_nothing_is_written_after_a_close() -> None:
    """Nor after an abort, which goes down at once."""
    below, layer, _ = await joined()
    layer.abort()
    layer.write(b"x")
    layer.writelines([b"x"])
    assert layer.is_closing()
    assert below.calls == ["abort"]
    assert below.written == []


# ---- flow control ----


async def test_reading_needs_both_to_want_it() -> None:
    """The lower transport is read while neither the upper protocol nor the layer has a reason against it."""
    below, layer, _ = await joined()
    assert layer.is_reading()
    layer.pause_reading()
    assert not layer.is_reading()
    layer.hold(True)
    layer.hold(True)
    layer.resume_reading()
    assert layer.is_reading()
    assert not below.reading
    layer.hold(False)
    assert below.reading


async def test_reading_ends_with_the_end() -> None:
    """A transport that was told to read on would tell of the end once more."""
    below, layer, _ = await joined()
    layer.eof_received()
    layer.resume_reading()
    assert not below.reading


async def test_writing_needs_both_to_allow_it() -> None:
    """The upper protocol is told once to pause, and to resume when the last reason is gone."""
    _, layer, above = await joined()
    layer.pause_writing()
    layer.choke(True)
    layer.resume_writing()
    assert above.events == ["made", "pause"]
    layer.choke(False)
    layer.choke(False)
    assert above.events == ["made", "pause", "resume"]


async def test_who_pauses_as_soon_as_it_is_connected_is_not_read() -> None:
    """Uvloop starts to read once it has told of the connection, whatever it was told meanwhile."""
    below, above = Below(), Above()
    above.when = lambda event: above.transport.pause_reading() if event == "made" else None
    layer = Layer(above)
    layer.connection_made(below)
    below.resume_reading()  # as uvloop does
    await asyncio.sleep(0)
    assert not below.reading


# ---- losses, over real sockets ----


async def over_sockets(above: Above) -> tuple[Layer, socket.socket]:
    here, there = socket.socketpair()
    layer = Layer(above)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: layer, here)
    return layer, there


async def test_what_came_before_a_failed_write_is_delivered() -> None:
    """The peer has said why before it hung up; only then comes the loss, and no socket with it."""
    above = Above()
    layer, there = await over_sockets(above)
    sock = layer.get_extra_info("socket")
    assert sock is not None
    sockets: list[object] = []
    above.when = lambda event: sockets.append(layer.get_extra_info("socket")) if event == "lost" else None
    layer.pause_reading()
    there.send(b"refused")
    there.close()
    layer.write(b"more")
    await in_time(above.lost.wait())
    assert above.data == b"refused"
    assert isinstance(above.error, OSError)
    assert sockets == [None]


async def test_who_closes_hears_nothing_more() -> None:
    """What came meanwhile was not wanted."""
    above = Above()
    layer, there = await over_sockets(above)
    layer.pause_reading()
    there.send(b"late")
    there.close()
    layer.close()
    await in_time(above.lost.wait())
    assert above.data == b""
    layer.pause_writing()  # of a transport that is gone
    assert above.events == ["made", "lost"]


async def test_an_abort_while_the_rest_is_read() -> None:
    """Whoever has had enough of it gets no more."""
    above = Above()
    layer, there = await over_sockets(above)
    above.when = lambda event: layer.abort() if event == "data" else None
    layer.pause_reading()
    there.setblocking(False)
    sent = there.send(os.urandom(100_000))
    assert sent == 100_000
    there.close()
    layer.write(b"more")
    await in_time(above.lost.wait())
    assert 0 < len(above.data) < sent


async def test_layers_are_stacked() -> None:
    """Each is the lower transport of the next; flow control and the loss go through all of them."""
    above = Above()
    outer = Layer(Layer(above))
    here, there = socket.socketpair()
    await asyncio.get_running_loop().connect_accepted_socket(lambda: outer, here)
    inner = above.transport
    inner.pause_reading()
    there.send(b"before")
    there.close()
    inner.write(b"more")
    await in_time(above.lost.wait())
    assert above.data == b"before"
    await until(lambda: here.fileno() < 0)


@pytest.mark.parametrize("closes", [True, False])
async def test_a_layer_whose_lower_transport_has_no_socket(closes: bool) -> None:
    """There is nothing to read then."""
    below, layer, above = await joined()
    if closes:
        layer.close()
    layer.connection_lost(OTHER_END)
    assert above.error is OTHER_END
    assert below.written == []
