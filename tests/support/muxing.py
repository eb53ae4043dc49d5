"""A Mux and its clients, as tests use them: what a session and a channel do, in a line each."""

from tcpgw.wire.codec import LARGE, Batch
from tcpgw.wire.msgpack_rpc import MsgpackRpc
from tcpgw.wire.mux import Mux
from tests.support.msgpack_messages import Written, delivered

FRAMED, BARE = MsgpackRpc(framed=True), MsgpackRpc(framed=False)
MAX = 16 * LARGE


def mux_of(*, framed: bool, max_frame: int = MAX) -> Mux:
    return Mux(FRAMED if framed else BARE, FRAMED, max_frame, framed=framed)


def batch(name: str, came: float = 0.0) -> Batch:
    return (name, came, None, None)


def enter(mux: Mux, message: Written, of: Batch) -> int:
    """Enter a request as its client's session does. Returns its number."""
    data = message.framed
    read = FRAMED.read(data, 0, len(data))
    return mux.enter(read, len(message.rest), [data[read.rest :]], of)


def tell(mux: Mux, message: Written) -> None:
    data = message.framed
    read = FRAMED.read(data, 0, len(data))
    mux.tell(read, len(message.rest), [data[read.rest :]])


def flushed(mux: Mux) -> bytes:
    return b"".join(mux.flush())


def received(mux: Mux, data: bytes) -> list[tuple[Batch, bytes]]:
    """The answers to give after `data`, one by one."""
    runs = mux.receive(data)
    large, mux.large = mux.large, []
    return delivered(runs, large)
