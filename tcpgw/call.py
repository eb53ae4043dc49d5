"""`tcpgw call`: one request from the command line. `cli.py` registers `call` as a command of the same name.

JSON has no byte strings, extension types and times: they are printed as `{"base64": "…"}`,
`{"ext": code, "base64": "…"}` and `{"timestamp": "…"}` (RFC 3339), numbers that are none as "nan" or "inf",
and the keys of a map as text.
"""

import base64
import contextlib
import json
import math
import time
from typing import Annotated, Any

import msgpack
import typer
import uvloop
from pydantic import SecretStr, TypeAdapter, ValidationError

from tcpgw import terminal
from tcpgw.client import Client
from tcpgw.config.secret import Secret
from tcpgw.errors import TcpgwError
from tcpgw.wire.messages import pack

CONTEXT = {"ignore_unknown_options": True}
"""Settings of the command: `-1` is a parameter."""

_TOKEN: TypeAdapter[SecretStr] = TypeAdapter(Secret)
_SHOWN = 64  # characters of an argument that a message repeats


def call(
    address: Annotated[
        str, typer.Argument(metavar="HOST:PORT", help="A gateway or an instance, or unix:PATH.")
    ],
    method: Annotated[
        str,
        typer.Argument(metavar="METHOD", help="The method's name; tcpgw.ping where a tcpgw service listens."),
    ],
    params: Annotated[
        list[str] | None,
        typer.Argument(metavar="JSON", help="""A parameter each: 5 '"text"' '{"a": 1}'."""),
    ] = None,
    *,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds, connecting included.")] = 60,
    token: Annotated[
        str, typer.Option(metavar="env:NAME|file:PATH", help="Where the token to present first is.")
    ] = "",
    tls: Annotated[
        bool, typer.Option("--tls", help="Trust the system's authorities, or those of $SSL_CERT_FILE.")
    ] = False,
    notify: Annotated[
        bool, typer.Option("--notify", help="Send a notification: nothing answers it.")
    ] = False,
) -> None:
    """Call a method over MessagePack-RPC (in frames) and print its result as JSON.

    What JSON lacks is printed as {"base64": …}, {"ext": …, "base64": …} or {"timestamp": …}.
    """
    values = [_parameter(number, text) for number, text in enumerate(params or [], 1)]
    secret = _secret(token) if token else ""
    try:
        client = Client(address, tls=tls, token=secret, connect_timeout=timeout)
        end = time.monotonic() + timeout
        result = uvloop.run(_exchange(client, method, values, end, notify=notify))
    except ValueError as exc:
        raise terminal.end(2, str(exc)) from None
    except TcpgwError as exc:
        raise terminal.end(1, str(exc)) from None
    if not notify:
        typer.echo(json.dumps(plain(result), ensure_ascii=False, indent=2))


async def _exchange(client: Client, method: str, params: list[Any], end: float, *, notify: bool) -> Any:
    async with client:
        left = max(end - time.monotonic(), 0.001)
        return await (client.notify if notify else client.call)(method, *params, timeout=left)


def _parameter(number: int, text: str) -> Any:
    where = f"parameter {number}, {text[:_SHOWN]!r},"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        reason = "nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise terminal.end(2, f"""{where} is not JSON: {reason} (text is written '"text"')""") from None
    try:
        pack(value)
    except ValueError as exc:
        raise terminal.end(2, f"{where} cannot be sent: {exc}") from None
    return value


def _secret(where: str) -> str:
    """Fetch the token. One on the command line would stand in the process list and the shell's history."""
    if not where.startswith(("env:", "file:")):
        raise terminal.end(2, "--token: write env:NAME or file:PATH, not the token itself")
    try:
        return _TOKEN.validate_python(where).get_secret_value()
    except ValidationError as exc:
        raise terminal.end(2, f"--token: {exc.errors()[0]['ctx']['error']}") from None


def plain(value: Any) -> Any:
    """Make of a decoded result what JSON can hold, as the module says."""
    match value:
        case dict():
            return {_key(key): plain(inner) for key, inner in value.items()}
        case msgpack.ExtType(code, data):
            return {"ext": code, "base64": base64.b64encode(data).decode()}
        case msgpack.Timestamp():
            with contextlib.suppress(
                OverflowError, ValueError
            ):  # MessagePack's times go beyond the year 9999
                return {"timestamp": value.to_datetime().isoformat().replace("+00:00", "Z")}
            return {"timestamp": str(value.to_unix())}
        case list() | tuple():
            return [plain(inner) for inner in value]
        case bytes():
            return {"base64": base64.b64encode(value).decode()}
        case float() if not math.isfinite(value):
            return str(value)
        case str():
            return _text(value)
    return value


def _text(value: str) -> Any:
    """Text that is none, as old clients and servers send bytes, is shown as bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return plain(value.encode(errors="surrogateescape"))
    return value


def _key(key: Any) -> str:
    shown = plain(key)
    return shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
