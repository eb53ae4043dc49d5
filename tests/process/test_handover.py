"""Sockets that go to a new process, which says when it accepts."""

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from tcpgw.process.handover import Handover, HandoverError, Sockets, hand_over, told
from tests.support.processes import open_files

PATIENCE = 20.0

SUCCESSOR = """
import os, sys
from tcpgw.process.handover import Handover
handover = Handover.take(os.environ)
assert "TCPGW_HANDOVER" not in os.environ
assert os.environ["GIVEN"] == "too"
for one in handover.sockets.values():
    for sock in one.sockets:
        sock.listen()
handover.accept(handover.sockets.values())
handover.accept([])
for one in handover.sockets.values():
    for sock in one.sockets:
        while True:
            client, _ = sock.accept()
            client.sendall(f"{os.getpid()} {one.bind} {one.address} {one.shared} {one.outlived}".encode())
            client.close()
"""


def bound() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def children() -> set[str]:
    """Processes of this one, those that ended and were not waited for among them."""
    return {
        pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
    }


async def test_a_successor_accepts_on_the_same_sockets() -> None:
    """It knows which listener's they are and what they are, and the environment says it to nobody else."""
    with bound() as sock:
        sockets = {"l": Sockets("127.0.0.1:0", [sock], "where", shared=True, outlived=False)}
        before = open_files()
        pid, taken = await hand_over(
            [sys.executable, "-c", SUCCESSOR], {"GIVEN": "too"}, sockets, seconds=PATIENCE
        )
        try:
            assert taken == ["l"]
            assert open_files() == before
            with socket.create_connection(sock.getsockname(), PATIENCE) as client:
                assert client.recv(1000).decode() == f"{pid} 127.0.0.1:0 where True False"
        finally:
            os.kill(pid, 9)
            await asyncio.to_thread(os.waitpid, pid, 0)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("raise SystemExit(3)", "ended with 3"),
        ("import time; time.sleep(60)", r"does not accept within 0\.5 s"),
    ],
)
async def test_one_that_does_not_come_up_leaves_nothing(program: str, said: str) -> None:
    """It is gone, the sockets stay, and the error says what became of it."""
    others = children()
    with bound() as sock:
        before = open_files()
        with pytest.raises(HandoverError, match=said):
            await hand_over(
                [sys.executable, "-c", program],
                {},
                {"l": Sockets("127.0.0.1:0", [sock])},
                seconds=0.5 if "sleep" in program else PATIENCE,
            )
        assert open_files() == before
        sock.listen()
    assert children() == others


async def test_what_cannot_be_executed_is_said() -> None:
    """With the command's name."""
    before = open_files()
    with pytest.raises(HandoverError, match="no-such-program cannot be executed: No such file"):
        await hand_over(["no-such-program"], {}, {}, seconds=PATIENCE)
    assert open_files() == before


async def test_who_gives_up_leaves_nothing() -> None:
    """Cancelled, it has ended the process that it started."""
    others = children()
    waiting = asyncio.create_task(
        hand_over([sys.executable, "-c", "import time; time.sleep(60)"], {}, {}, seconds=PATIENCE)
    )
    await asyncio.sleep(0.1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert children() == others


def test_mostly_nothing_is_handed_over() -> None:
    """Then there are no sockets, and nobody waits to hear."""
    handover = Handover.take({"PATH": "/bin"})
    assert handover.sockets == {}
    assert not handover.is_one
    handover.accept([Sockets("x")])


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_socket_is_somebodys(count: int, workers: int) -> None:
    """Whatever their number; a shared one is everybody's."""
    sockets = [socket.socket() for _ in range(count)]
    one = Sockets("x", sockets)
    given = [sock for slot in range(1, workers + 1) for sock in one.of_worker(slot, workers)]
    assert sorted(map(id, given)) == sorted(map(id, sockets))
    shared = Sockets("x", sockets[:1], shared=True)
    assert all(shared.of_worker(slot, workers) == sockets[:1] for slot in range(1, workers + 1))
    one.close()
    one.close()


def test_what_is_told_can_be_taken() -> None:
    """One variable, and the descriptors to pass."""
    with bound() as sock:
        variables, fds = told({"a": Sockets("b", [sock])}, 99)
        assert list(variables) == ["TCPGW_HANDOVER"]
        assert fds == [99, sock.fileno()]
