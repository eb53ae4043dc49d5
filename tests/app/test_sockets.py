"""The listening sockets of a gateway with workers."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tcpgw.app.sockets import grow, lent, listen_on, open_sockets
from tcpgw.config import schema
from tcpgw.config.load import loads
from tcpgw.process.handover import Sockets
from tcpgw.relay.sockets import BindError
from tests.support.processes import open_files


def listeners(*binds: str) -> tuple[schema.Listener, ...]:
    """Called a, b, … in their order."""
    tables = "".join(
        f'[[listener]]\nname = "{name}"\nbind = "{bind}"\nroute = "s"\n'
        for name, bind in zip("abc", binds, strict=False)
    )
    service = '[[service]]\nname = "s"\ndiscovery = { type = "static", endpoints = ["127.0.0.1:9"] }\n'
    return loads(service + tables, Path()).listener


@contextlib.contextmanager
def closing(found: dict[str, Sockets]) -> Iterator[dict[str, Sockets]]:
    try:
        yield found
    finally:
        for one in found.values():
            one.close()


def test_each_worker_has_a_socket_at_one_port() -> None:
    """Also where the kernel chooses that: once, for all."""
    with closing(open_sockets(listeners("127.0.0.1:0", "[::1]:0"), 3, {})) as found:
        assert [len(one.sockets) for one in found.values()] == [3, 3]
        for one in found.values():
            assert len({sock.getsockname()[1] for sock in one.sockets}) == 1
            assert one.address.endswith(f":{one.sockets[0].getsockname()[1]}")
            for sock in one.sockets:
                sock.listen()
            assert (one.shared, one.outlived) == (False, False)


def test_a_unix_socket_is_one_for_all(tmp_path: Path) -> None:
    """A path cannot be bound twice."""
    with closing(open_sockets(listeners(f"unix:{tmp_path}/x.sock"), 3, {})) as found:
        assert len(found["a"].sockets) == 1
        assert found["a"].shared
        assert found["a"].address == f"unix:{tmp_path}/x.sock"
        assert found["a"].of_worker(3, 3) == found["a"].sockets


def test_systemds_socket_is_one_for_all_and_stays() -> None:
    """It is systemd's to open more, and to close."""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        settings = listeners("127.0.0.1:0", "127.0.0.1:0")
        with closing(open_sockets(settings, 2, lent({"a": passed}, settings))) as found:
            assert found["a"].sockets == [passed]
            assert (found["a"].shared, found["a"].outlived) == (True, True)
            assert len(found["b"].sockets) == 2


def test_what_is_given_is_used_where_it_still_fits() -> None:
    """A listener's own at the same bind, or whose bind it was; more are opened beside them."""
    with closing(open_sockets(listeners("127.0.0.1:0"), 1, {})) as old, socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{other.getsockname()[1]}"
        renamed = Sockets(bind, [other], shared=True)
        moved = Sockets("127.0.0.1:1", [])
        given = {"a": old["a"], "x": renamed, "b": moved}
        first = old["a"].sockets[0]
        settings = listeners("127.0.0.1:0", "127.0.0.1:0", bind)
        with closing(open_sockets(settings, 2, given)) as found:
            assert found["a"].sockets[0] is first
            assert [sock.getsockname() for sock in found["a"].sockets] == [first.getsockname()] * 2
            assert found["b"] is not moved
            assert found["c"] is renamed


def test_clients_may_come_before_workers() -> None:
    """They wait; what cannot be listened on is said by its address."""
    with closing(open_sockets(listeners("127.0.0.1:0"), 2, {})) as found:
        listen_on(found.values())
        for _ in range(4):
            socket.create_connection(found["a"].sockets[0].getsockname(), 5).close()
    with socket.socket() as quicker, socket.socket() as ours:
        for sock in (quicker, ours):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        quicker.bind(("127.0.0.1", 0))
        ours.bind(quicker.getsockname())
        quicker.listen()
        with pytest.raises(BindError, match="cannot listen on here"):
            listen_on([Sockets("", [ours], "here")])


def test_who_shares_an_address_is_told() -> None:
    """SO_REUSEPORT lets two gateways take half of the clients each; a port of the kernel's is nobody's."""
    with capture_logs() as logs, closing(open_sockets(listeners("127.0.0.1:0"), 1, {})) as other:
        listen_on(other.values())
        bind = other["a"].address
        with closing(open_sockets(listeners(bind), 2, {})):
            pass
    assert [(line["event"], line["bind"]) for line in logs] == [("address_shared", bind)]
    with capture_logs() as logs, closing(open_sockets(listeners(bind), 2, {})):
        pass
    assert not logs


def test_one_that_cannot_be_opened_leaves_none_open() -> None:
    """Whatever was opened before it; the error names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        before = open_files()
        with pytest.raises(BindError, match=bind):
            open_sockets(listeners("127.0.0.1:0", bind), 2, {})
        assert open_files() == before


def test_more_workers_get_more_sockets() -> None:
    """At the same port; where one is for all, none."""
    settings = listeners("127.0.0.1:0")
    with closing(open_sockets(settings, 1, {})) as found:
        grow(found["a"], settings[0], 3)
        grow(found["a"], settings[0], 2)
        assert len(found["a"].sockets) == 3
        assert len({sock.getsockname() for sock in found["a"].sockets}) == 1
        found["a"].shared = True
        grow(found["a"], settings[0], 9)
        assert len(found["a"].sockets) == 3
