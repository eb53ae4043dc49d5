"""A Mux and its clients, as tests use them: what a session and a channel do, in a line each."""

from tcpgw.wire.codec import LARGE
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.mux import Failed, Mux
from tests.support.batches import Given, Shared
from tests.support.msgpack_messages import Written, delivered

FRAMED, BARE = MsgpackRpc(framed=True), MsgpackRpc(framed=False)
MAX = 16 * LARGE


class Room:
    """An account of so many bytes."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.limit = limit
        self.held = 0
        self.asked: list[int] = []

    def take(self, size: int) -> bool:
        assert size > 0
        self.asked.append(size)
        if self.held + size > self.limit:
            return False
        self.held += size
        return True

    def give(self, size: int) -> None:
        assert 0 < size <= self.held
        self.held -= size


def mux_of(*, framed: bool, max_frame: int = MAX, room: Room | None = None) -> Mux:
    return Mux(FRAMED if framed else BARE, FRAMED, max_frame, room or Room(), framed=framed)


def enter(mux: Mux, message: Written, owner: str, batch: Shared) -> int:
    """Enter a request as its client's session does. Returns its number."""
    data = message.framed
    read = FRAMED.read(data, 0, len(data))
    return mux.enter(read.token, len(message.rest), [data[read.rest :]], owner, batch)


def tell(mux: Mux, message: Written) -> None:
    data = message.framed
    read = FRAMED.read(data, 0, len(data))
    mux.tell(read.token, len(message.rest), [data[read.rest :]])


def flushed(mux: Mux) -> bytes:
    return b"".join(mux.flush())


def received(mux: Mux, data: bytes) -> list[Given]:
    """The answers to give after `data`, one by one. What was reserved for them is given back."""
    runs = mux.receive(data)
    large, mux.large = mux.large, []
    for one in large:
        mux._account.give(one.reserved)
    return delivered(runs, [(owner, parts, batch) for owner, parts, batch, _ in large])


def failed(mux: Mux) -> list[Failed]:
    """The requests whose answers were not kept."""
    requests, mux.failed = mux.failed, []
    return requests
