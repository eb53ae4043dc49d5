"""`tcpgw connections` of a gateway that runs: what its clients do, in whichever process."""

import contextlib
import json
import socket
import threading
from pathlib import Path
from typing import Any

from tcpgw.service import Service
from tests.support.processes import PATIENCE, free_port, wait_until
from tests.support.rpc_ends import served
from tests.support.streams import listening
from tests.support.workers import Run, config_of


def listed(run: Run, *options: str) -> dict[str, Any]:
    told = run.command("connections", "--json", *options)
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def test_streams_of_all_workers_are_listed(tmp_path: Path) -> None:
    """Each once, with its client and endpoint; who waits for an answer first, where that is asked for."""
    with contextlib.ExitStack() as stack, listening() as instance:
        run = Run(tmp_path, config_of([instance.getsockname()], free_port()))
        stack.enter_context(run.started())
        clients = [stack.enter_context(socket.create_connection(run.address, PATIENCE)) for _ in range(24)]
        instance.settimeout(PATIENCE)
        for _ in clients:
            stack.enter_context(instance.accept()[0])
        names = ["{}:{}".format(*client.getsockname()) for client in clients]
        clients[7].sendall(b"a question")
        wait_until(lambda: listed(run)["total"] == len(clients))
        found = listed(run, "--count", "100", "--service", "s")
        assert sorted(one["client"] for one in found["connections"]) == sorted(names)
        assert {one["worker"] for one in found["connections"]} == {1, 2}
        assert {one["endpoint"] for one in found["connections"]} == {"{}:{}".format(*instance.getsockname())}
        assert {one["state"] for one in found["connections"]} == {"open"}
        assert len({(one["worker"], one["conn"]) for one in found["connections"]}) == len(clients)
        assert found["unheard"] == []

        wait_until(lambda: listed(run, "--slowest")["connections"][0]["waiting"])
        slowest = listed(run, "--slowest", "--count", "3")
        assert slowest["connections"][0]["client"] == names[7]
        assert (len(slowest["connections"]), slowest["total"]) == (3, len(clients))
        assert slowest["connections"][0]["bytes_in"] == len(b"a question")

        told = run.command("connections", "--count", "2")
        assert told.stdout.endswith("\n2 of 24 connections\n")
        told = run.command("connections", "--service", "x")
        assert (told.returncode, told.stderr) == (2, "no service is called 'x': there are s\n")


def test_rpc_clients_are_listed_with_how_long_they_wait(tmp_path: Path) -> None:
    """Whose request is held, and none who is only connected."""
    free = threading.Event()
    with served(Service({"wait": lambda: free.wait(PATIENCE)})) as one, contextlib.ExitStack() as stack:
        host, port = one.split(":")
        listener = 'mode = "rpc"\ncodec = "msgpack-rpc"'
        run = Run(tmp_path, config_of([(host, int(port))], free_port(), more=listener))
        stack.enter_context(run.started())
        held = stack.enter_context(socket.create_connection(run.address, PATIENCE))
        stack.enter_context(socket.create_connection(run.address, PATIENCE))
        held.sendall(b"\0\0\0\x09\x94\0\x01\xa4wait\x90")
        wait_until(lambda: (listed(run, "--slowest")["connections"] or [{}])[0].get("in_flight"))
        first, second = listed(run, "--slowest")["connections"]
        assert (first["in_flight"], second["in_flight"]) == (1, 0)
        assert first["waiting"] > second["waiting"] == 0
        assert first["endpoint"] is None
        free.set()
        assert held.recv(100)
        wait_until(lambda: not listed(run, "--slowest")["connections"][0]["in_flight"])
