"""How a running gateway is asked, and what becomes of those that cannot be."""

from pathlib import Path

import pytest

from tcpgw.app.control import RefusedError
from tests.support.command import tcpgw
from tests.support.control import answering

ASKING = [
    ["status"], ["reload"], ["upgrade"], ["drain", "10.0.0.1:80"], ["undrain", "10.0.0.1:80"],
    ["weight", "10.0.0.1:80", "3"], ["connections"], ["alerts"], ["silence", "x"], ["unsilence", "x"],
    ["trace", "--client", "10.0.0.7"], ["top", "--once"],
]  # fmt: skip


@pytest.mark.parametrize("command", ASKING, ids=lambda command: command[0])
def test_without_a_gateway_it_fails(config: Path, command: list[str]) -> None:
    """With 1, where one was looked for and what else to try; with 2 where there is no such file."""
    code, out, err = tcpgw(*command, "-c", config)
    assert (code, out) == (1, "")
    assert f"no gateway that runs with {config} answers in {config.parent}/run" in err
    assert "Is it running? If so, use the path that it was started with as -c" in err
    code, out, err = tcpgw(*command, "-c", config.parent / "other.toml")
    assert (code, out) == (2, "")
    assert "other.toml: no such file" in err


@pytest.mark.parametrize("command", ASKING, ids=lambda command: command[0])
def test_an_older_gateway_is_no_riddle(config: Path, command: list[str]) -> None:
    """What it does not know yet, it is to be upgraded for."""
    with answering(config, {}):
        code, out, err = tcpgw(*command, "-c", config)
    assert (code, out) == (1, "")
    assert "of an older version than this command: `tcpgw upgrade` replaces it" in err


def test_an_error_commands_no_terminal(config: Path) -> None:
    """Whatever it quotes; it may have several lines."""

    def refuse() -> None:
        raise RefusedError("a\x1b[2J\nb")

    with answering(config, {"reload": refuse}):
        assert tcpgw("reload", "-c", config) == (2, "", "a\\x1b[2J\nb\n")


@pytest.mark.parametrize("command", ASKING, ids=lambda command: command[0])
def test_each_tells_its_options(command: list[str]) -> None:
    """And is told of itself by the program."""
    code, out, _ = tcpgw(command[0], "--help")
    assert code == 0
    assert "--config" in out
    assert f" {command[0]} " in tcpgw("--help").out
