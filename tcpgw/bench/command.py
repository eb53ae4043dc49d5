"""`tcpgw bench`: its options, and what is refused before any load."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from pydantic import TypeAdapter

from tcpgw.address import Address
from tcpgw.bench.plan import MAX_SIZE, MAX_TIMEOUT, Mode, Plan
from tcpgw.config.values import Duration, Size

T = TypeVar("T")

_LEAST_RATE = 0.01  # a request in 100 s
_ROUNDS = 5
_PICTURES = (".svg", ".png")

_duration = TypeAdapter[float](Duration).validate_python
_size = TypeAdapter[int](Size).validate_python


def bench(
    target: Annotated[str, typer.Argument(metavar="HOST:PORT", help="A gateway's listener, or an instance.")],
    mode: Annotated[
        Mode, typer.Option(help="tcp: every byte must come back. rpc: msgpack-rpc over u32be frames.")
    ] = Mode.TCP,
    method: Annotated[
        str | None,
        typer.Option(
            help="With --mode rpc: called with one binary parameter, which echo must return.",
            show_default="echo",
        ),
    ] = None,
    connections: Annotated[
        int, typer.Option("--connections", "-c", min=1, help="Of all processes together.")
    ] = 10,
    depth: Annotated[
        int | None,
        typer.Option(
            "--depth", "-d", min=1, help="Closed loop: requests in flight on a connection.", show_default="1"
        ),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            "-r",
            min=_LEAST_RATE,
            help="Open loop: so many requests per second, whatever is answered. Latency counts from when a "
            "request was due, not from when it could be sent.",
        ),
    ] = None,
    size: Annotated[
        str, typer.Option(metavar="SIZE[,SIZE]", help="Payload, as 64,1KiB: requests take turns.")
    ] = "64",
    duration: Annotated[str, typer.Option(metavar="DURATION", help="Of what is measured, as 10s.")] = "10s",
    warm_up: Annotated[str, typer.Option(metavar="DURATION", help="Load before that, not counted.")] = "2s",
    timeout: Annotated[
        str,
        typer.Option(metavar="DURATION", help=f"To connect, and for an answer. At most {MAX_TIMEOUT:g}s."),
    ] = "5s",
    processes: Annotated[
        int, typer.Option("--processes", "-p", min=1, help="The generator's own, one core each.")
    ] = 1,
    compare: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Measure this one in turn with the first, and print ratios."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="With --compare: runs of each target.", show_default=str(_ROUNDS)),
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON; - is stdout.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw latency by percentile, as .svg or .png.")
    ] = None,
) -> None:
    """Put load on a target, check every answer, and measure rate and latency.

    A run lasts as long as warm-up and duration, and at most the time-out longer.
    """
    if method is not None and mode is not Mode.RPC:
        raise _refusal("--method", "tcp has no methods: use --mode rpc")
    if depth is not None and rate is not None:
        raise _refusal("--depth", "is for the closed loop: at a fixed --rate, requests go when they are due")
    if rounds is not None and compare is None:
        raise _refusal("--rounds", "is for --compare: a single target is measured once, for --duration")
    plan = Plan(
        mode=mode,
        method=method or "echo",
        connections=connections,
        depth=depth or 1,
        rate=rate,
        sizes=_read("--size", _sizes, size),
        duration=_read("--duration", _seconds, duration),
        warm_up=0.0 if warm_up in {"0", "0s", "0ms"} else _read("--warm-up", _seconds, warm_up),
        timeout=_read("--timeout", _seconds, timeout),
        processes=processes,
    )
    targets = [_read("HOST:PORT", _address, target)]
    if compare is not None:
        targets.append(_read("--compare", _address, compare))
    _check(plan)
    _check_files(as_json, plot)
    from tcpgw.bench.view import run_bench  # noqa: PLC0415 - the histogram's library is no part of a gateway

    raise typer.Exit(
        run_bench(plan, targets, (rounds or _ROUNDS) if compare else 1, as_json=as_json, plot=plot)
    )


def _refusal(option: str, message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint=f"'{option}'")


def _read(option: str, reader: Callable[[str], T], text: str) -> T:
    try:
        return reader(text)
    except ValueError as exc:  # pydantic's is one, and holds the reader's own sentence
        errors: list[Any] = exc.errors() if hasattr(exc, "errors") else []
        message = errors[0]["msg"].removeprefix("Value error, ") if errors else str(exc)
        raise _refusal(option, message) from None


def _address(text: str) -> Address:
    address = Address.parse(text)
    if not (address.path or address.port):
        raise ValueError(f"{text!r} has no port that can be connected to")
    return address


def _seconds(text: str) -> float:
    """Read a duration as configurations write it, or a number of seconds."""
    try:
        plain = float(text)
    except ValueError:
        return _duration(text)
    return _duration(plain)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(_size(int(part) if part.isdecimal() else part) for part in text.split(","))


def _check(plan: Plan) -> None:
    """Refuse what no load can be made of."""
    if plan.timeout > MAX_TIMEOUT:
        raise _refusal("--timeout", f"at most {MAX_TIMEOUT:g}s: the histogram ends there")
    if plan.processes > plan.connections:
        raise _refusal("--processes", f"each needs a connection: use --connections {plan.processes} or more")
    if max(plan.sizes) > MAX_SIZE:
        raise _refusal("--size", f"at most {MAX_SIZE >> 20}MiB")
    if plan.mode is Mode.TCP and min(plan.sizes) == 0:
        raise _refusal("--size", "nothing comes back of 0 bytes: at least 1 with --mode tcp")


def _check_files(as_json: Path | None, plot: Path | None) -> None:
    """Refuse files that could not be written, before the time for the load is spent."""
    for option, file in (("--json", as_json), ("--plot", plot)):
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise _refusal(option, f"{file} cannot be written: a folder, or in one that is not there")
    if plot is None:
        return
    if plot.suffix not in _PICTURES:
        raise _refusal("--plot", f"{plot.name} says no format: let it end in {' or '.join(_PICTURES)}")
    from tcpgw.bench.plot import is_possible  # noqa: PLC0415 - as above

    if not is_possible():
        raise _refusal("--plot", "matplotlib is not installed; it comes with: pip install 'tcpgw[plot]'")
