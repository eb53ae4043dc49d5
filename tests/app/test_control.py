"""The socket on which a running gateway is asked."""

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tcpgw.app.control import FAILED, REFUSED, RefusedError, RunningError, controlled, refuse_second
from tcpgw.client import Client, RpcError
from tcpgw.errors import Blame, ConfigError, Fault, TcpgwError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the sockets are."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    return tmp_path / "run"


async def answer() -> str:
    return "done"


async def refuse() -> None:
    raise ConfigError([Fault("listener[0].bind", "is wrong")])


async def fail() -> None:
    raise TcpgwError("not now")


async def repeat(word: str, times: int = 1) -> str:
    return word * times


async def decline() -> None:
    raise RefusedError("nobody has it")


async def test_methods_are_called_by_name(folder: Path) -> None:
    """What they raise says whether the file is at fault; only the owner may ask; nothing is left."""
    methods = {"answer": answer, "refuse": refuse, "fail": fail}
    async with controlled(Path("x.toml"), methods) as place:
        assert place is not None
        assert place.parent == folder
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        async with Client(f"unix:{place}") as client:
            assert await client.call("answer") == "done"
            with pytest.raises(RpcError, match="is wrong") as refused:
                await client.call("refuse")
            with pytest.raises(RpcError, match="not now") as failed:
                await client.call("fail")
    assert (refused.value.code, failed.value.code) == (REFUSED, FAILED)
    assert os.listdir(folder) == []  # noqa: PTH208


async def test_methods_take_parameters() -> None:
    """Other ones than they have are the asker's fault, who may be of another version."""
    methods: dict[str, Callable[..., Any]] = {"repeat": repeat, "decline": decline}
    async with controlled(Path("x.toml"), methods) as place, Client(f"unix:{place}") as client:
        assert await client.call("repeat", "x") == "x"
        assert await client.call("repeat", "x", 3) == "xxx"
        for params in ([], ["x", 1, 2]):
            with pytest.raises(RpcError, match="another version") as refused:
                await client.call("repeat", *params)
            assert refused.value.code == REFUSED
        with pytest.raises(RpcError, match="nobody has it") as refused:
            await client.call("decline")
        assert refused.value.code == REFUSED


@pytest.mark.parametrize(("blame", "code"), [("operator", REFUSED), ("cloud", FAILED), ("gateway", FAILED)])
async def test_who_is_to_blame_decides_the_code(blame: Blame, code: str) -> None:
    """Whatever the error: what the operator can mend is refused."""

    class OddError(TcpgwError):
        pass

    OddError.blame = blame

    async def ask() -> None:
        raise OddError("odd")

    async with controlled(Path("x.toml"), {"ask": ask}) as place, Client(f"unix:{place}") as client:
        with pytest.raises(RpcError, match="odd") as answered:
            await client.call("ask")
    assert answered.value.code == code


async def test_one_file_has_one_gateway(folder: Path) -> None:
    """A second one is told of the first; another file has a socket of its own; one left over is nobody's."""
    async with controlled(Path("x.toml"), {"answer": answer}):
        with pytest.raises(RunningError, match=r"runs with x\.toml already"):
            refuse_second(Path("x.toml"))
        async with controlled(Path("y.toml"), {}) as other:
            assert other is not None
    with socket.socket(socket.AF_UNIX) as killed:  # as a killed gateway leaves it
        killed.bind(str(folder / other.name))
    refuse_second(Path("y.toml"))
    async with controlled(Path("y.toml"), {"answer": answer}) as again, Client(f"unix:{again}") as client:
        assert await client.call("answer") == "done"


async def test_a_successor_is_asked_from_its_beginning_on() -> None:
    """Nobody is asked in between, and the end of the old one does not end the new one's."""

    async def old() -> str:
        return "old"

    async def new() -> str:
        return "new"

    before = controlled(Path("x.toml"), {"who": old})
    place = await before.__aenter__()
    async with controlled(Path("x.toml"), {"who": new}) as again:
        assert again == place
        await before.__aexit__(None, None, None)
        async with Client(f"unix:{place}") as client:
            assert await client.call("who") == "new"


async def test_without_a_place_it_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says so, with where it looked."""
    monkeypatch.setattr("tcpgw.app.control.usable", lambda _: False)
    with capture_logs() as logs:
        async with controlled(Path("x.toml"), {"answer": answer}) as place:
            assert place is None
    assert [line["event"] for line in logs] == ["no_control_socket"]
    assert "/run/tcpgw" in logs[0]["hint"]
