"""`tcpgw call` as its user meets it: what is printed where, and the exit code."""

import asyncio
import json
from pathlib import Path
from queue import Queue
from typing import Any

import msgpack
import pytest
import typer
from typer.testing import CliRunner

from tcpgw.call import CONTEXT, call, plain
from tcpgw.errors import Code
from tcpgw.service import RpcError, Service
from tests.conftest import Need
from tests.support.rpc_ends import certificate, served
from tests.support.streams import PATIENCE, refusing

app = typer.Typer()
app.command(context_settings=CONTEXT)(call)


def run(*args: str, **env: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of `tcpgw call ARGS…`."""
    done = CliRunner().invoke(app, args, env=env)
    return done.exit_code, done.stdout, done.stderr


async def echo(*params: Any) -> Any:
    return params


def test_each_argument_is_a_parameter() -> None:
    """Parameters are JSON values, negative numbers too, and the result is printed as JSON, text as it is."""
    with served(Service({"echo": echo})) as address:
        code, out, err = run(address, "echo", "5", "-1.5", '"é"', '{"a": [null, true]}')
        assert (code, err) == (0, "")
        assert json.loads(out) == [5, -1.5, "é", {"a": [None, True]}]
        assert "é" in out
        assert run(address, "tcpgw.ping") == (0, '"pong"\n', "")


@pytest.mark.parametrize("text", ["text", "{", "'a'", "", "[" * 100_000, "--unknown"])
def test_what_is_not_json_is_named(text: str) -> None:
    """An argument that is not JSON ends the command with 2, before anything is sent."""
    code, out, err = run("127.0.0.1:1", "m", "1", text)
    assert (code, out) == (2, "")
    assert err.startswith("parameter 2, ")
    assert "is not JSON" in err
    assert len(err) < 400


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nowhere", "m"), "'nowhere' is no address"),
        (
            ("127.0.0.1:1", "m", str(2**64)),
            "parameter 1, '18446744073709551616', cannot be sent: MessagePack has no form",
        ),
        (("127.0.0.1:1", "m", "--timeout", "nan"), "--timeout"),
        (("127.0.0.1:1", "m", "--token", "secret-value"), "write env:NAME or file:PATH"),
        (("127.0.0.1:1", "m", "--token", "env:TCPGW_TEST_UNSET"), "TCPGW_TEST_UNSET is not set"),
    ],
)
def test_bad_usage_ends_with_2(args: tuple[str, ...], message: str) -> None:
    """What can never work is said in a sentence, without a secret in it, and the exit code is 2."""
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert message in err
    assert "secret-value" not in err


def test_errors_end_with_1() -> None:
    """An error as answer is printed with its code; a server that is not there, with its address."""

    async def fail() -> None:
        raise RpcError(Code.NO_ENDPOINT, "no instance takes requests")

    with served(Service({"fail": fail})) as address:
        assert run(address, "fail") == (1, "", "no_endpoint: no instance takes requests\n")
    with refusing() as address:
        code, out, err = run(address, "m")
        assert (code, out) == (1, "")
        assert f"cannot connect to {address}" in err


def test_a_time_out_ends_with_1() -> None:
    """--timeout bounds the whole command."""

    async def never() -> None:
        await asyncio.sleep(3600)

    with served(Service({"never": never}, stop_timeout=0.1)) as address:
        code, out, err = run(address, "never", "--timeout", "0.2")
        assert (code, out) == (1, "")
        assert "never had no answer" in err


def test_a_notification_prints_nothing() -> None:
    """--notify sends, waits for nothing, and what was sent arrives."""
    seen = Queue[list[int]]()
    with served(Service({"seen": seen.put})) as address:
        assert run(address, "seen", "[1]", "--notify") == (0, "", "")
        assert seen.get(timeout=PATIENCE) == [1]


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    """The token is fetched from where the option says, and presented before the call."""
    file = tmp_path / "token"
    file.write_text("from-file\n")
    tokens: list[str] = []
    with served(Service({"tcpgw.auth": tokens.append, "echo": echo})) as address:
        assert run(address, "echo", "--token", f"file:{file}")[0] == 0
        assert run(address, "echo", "--token", "env:TCPGW_TEST_TOKEN", TCPGW_TEST_TOKEN="from-env")[0] == 0
    assert tokens == ["from-file", "from-env"]


def test_tls(need: Need, tmp_path: Path) -> None:
    """--tls checks the certificate, by the authorities that $SSL_CERT_FILE names."""
    made = certificate(need("openssl"), tmp_path, "IP:127.0.0.1")
    with served(Service(tls=made.server())) as address:
        assert run(address, "tcpgw.ping", "--tls", SSL_CERT_FILE=str(made.file)) == (0, '"pong"\n', "")
        code, _, err = run(address, "tcpgw.ping", "--tls")
        assert (code, "CERTIFICATE_VERIFY_FAILED" in err) == (1, True)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"a": [1, None, True, 1.5, "é"]}, {"a": [1, None, True, 1.5, "é"]}),
        (b"\x00\xff", {"base64": "AP8="}),
        ("\udcff", {"base64": "/w=="}),
        (msgpack.ExtType(5, b"x"), {"ext": 5, "base64": "eA=="}),
        (msgpack.Timestamp(0, 0), {"timestamp": "1970-01-01T00:00:00Z"}),
        (msgpack.Timestamp(2**62, 0), {"timestamp": "4.611686018427388e+18"}),
        (float("inf"), "inf"),
        ({1: 1, None: 2, b"k": 3}, {"1": 1, "null": 2, '{"base64": "aw=="}': 3}),
    ],
)
def test_what_json_lacks_is_shown(value: Any, shown: Any) -> None:
    """Byte strings, extension types, times, odd numbers and keys are printed as the help says."""
    assert plain(value) == shown
    json.dumps(plain(value), allow_nan=False)
