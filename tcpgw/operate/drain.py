"""What operators say of endpoints: `tcpgw drain`, `tcpgw undrain`, `tcpgw weight`."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tcpgw import terminal
from tcpgw.operate.ask import ConfigFile, ask
from tcpgw.operate.options import duration

# Seconds between looks at what is in flight. The first is that late too, and the last two must agree: workers
# take a drain up one after the other, and until then they send there.
_LOOK = 0.5

EndpointArgument = Annotated[
    str,
    typer.Argument(metavar="ENDPOINT", help="10.0.1.11:8080 or [fd00::1]:8080, as `tcpgw status` has it."),
]
ServiceOption = Annotated[
    str | None, typer.Option("--service", metavar="NAME", help="In this service; else in all that have it.")
]


def drain(
    endpoint: EndpointArgument,
    config: ConfigFile,
    service: ServiceOption = None,
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Also the last usable one: clients are turned away then.")
    ] = False,
    wait: Annotated[
        float | None,
        typer.Option(
            parser=duration,
            metavar="DURATION",
            help="Return when nothing is in flight there; 1 if not by then. 30s, 5m, or seconds.",
        ),
    ] = None,
) -> None:
    """Give an endpoint nothing new, until `tcpgw undrain`; nobody who is served there is disturbed.

    On tcp listeners connections to it go on until client or instance ends them. On rpc listeners requests
    under way are answered (what is not after 30 s is cut), then the gateway's connections to it are closed;
    clients keep theirs, and their next requests go to other endpoints.

    It is not checked any more, and its state is `draining`. That holds through reloads, upgrades and
    restarts where gateway.state_dir is set, and is forgotten when discovery leaves the endpoint out for 10
    min. Saying it twice changes nothing.

    Exit code 2: there is no such endpoint or service, or no usable one of a service would be left.
    """
    answer = ask(config, "drain", endpoint, service, force)
    for one in answer["endpoints"]:
        was = "" if one["changed"] else " already"
        typer.echo(f"{one['service']}: {one['endpoint']} is drained{was}")
    _note_kept(answer)
    if wait is not None:
        _wait(config, answer["endpoints"], wait)


def undrain(endpoint: EndpointArgument, config: ConfigFile, service: ServiceOption = None) -> None:
    """Take `tcpgw drain` back: the endpoint is checked and gets its weight again.

    That is discovery's, or what `tcpgw weight` gave it last. It begins as one that is new: with
    balance.slow_start its share grows.

    Exit code 2: there is no such endpoint or service.
    """
    answer = ask(config, "undrain", endpoint, service)
    for one in answer["endpoints"]:
        was = "is no longer drained" if one["changed"] else "is not drained"
        typer.echo(f"{one['service']}: {one['endpoint']} {was}{_weight(one)}")
    _note_kept(answer)


def weight(
    endpoint: EndpointArgument,
    weight: Annotated[str, typer.Argument(metavar="WEIGHT|auto", help="1 to 65535; auto: discovery's.")],
    config: ConfigFile,
    service: ServiceOption = None,
) -> None:
    """Give an endpoint another weight than discovery does, until `tcpgw weight ENDPOINT auto`.

    Connections and requests that are there stay where they are. It lasts as long as a drain does: see
    `tcpgw drain --help`. A drained endpoint has it once it is no longer drained.

    Exit code 2: there is no such endpoint or service, or that is no weight.
    """
    answer = ask(config, "weight", endpoint, int(weight) if weight.isdecimal() else weight, service)
    for one in answer["endpoints"]:
        typer.echo(f"{one['service']}: {one['endpoint']}{_weight(one, weight)}")
    _note_kept(answer)


def _weight(one: dict[str, Any], asked: str = "auto") -> str:
    if one["given_weight"] is None:
        return ": discovery leaves it out at the moment"
    if one["override"] == "drained":
        then = f"{one['given_weight']}, as discovery says" if asked == "auto" else int(asked)
        return f": drained, so its weight is 0; after `tcpgw undrain` it is {then}"
    if one["override"] == "weight":
        return f": weight {one['weight']} (discovery: {one['given_weight']})"
    return f": weight {one['weight']}, as discovery says"


def _note_kept(answer: dict[str, Any]) -> None:
    if not answer["kept"] and any(one["override"] for one in answer["endpoints"]):
        why = answer.get("why") or "see its log"  # an older gateway does not say
        typer.secho(f"It ends with the gateway's process: {why}.", err=True, fg="yellow")


def _wait(config: Path, drained: list[dict[str, Any]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    looks = 0
    while True:
        time.sleep(_LOOK)
        left = _in_flight(ask(config, "status"), drained)
        looks = 0 if left else looks + 1
        if looks == 2:
            typer.echo("nothing is in flight there")
            return
        if time.monotonic() >= deadline:
            raise terminal.end(1, f"after {seconds:g} s {left} are still in flight there; it stays drained")


def _in_flight(status: dict[str, Any], drained: list[dict[str, Any]]) -> int:
    """Connections and requests at these endpoints; what discovery leaves out has drained by itself."""
    return sum(
        status["services"]
        .get(one["service"], {})
        .get("endpoints", {})
        .get(one["endpoint"], {})
        .get("inflight", 0)
        for one in drained
    )
