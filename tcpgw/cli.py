"""The command line. What a command prints goes to stdout, logs and errors to stderr.

Exit codes: 0 well, 1 failed while running, 2 bad usage or configuration.
"""

import asyncio
import json
import time
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop
from rich.console import Console

from tcpgw import __version__, terminal
from tcpgw.api_key import key
from tcpgw.app import access
from tcpgw.app import main as main_
from tcpgw.app.balancing import make_hash, make_policy
from tcpgw.app.material import read_files
from tcpgw.app.sources import describe, make_sources
from tcpgw.balancing import hashing
from tcpgw.balancing.loads import Loads
from tcpgw.bench.command import bench
from tcpgw.call import CONTEXT, call
from tcpgw.config import load as configuration
from tcpgw.config import schema
from tcpgw.config.share import share
from tcpgw.discovery.source import Source
from tcpgw.endpoints import Endpoint, Snapshot
from tcpgw.errors import ConfigError, DiscoveryError, TcpgwError
from tcpgw.observe import logs
from tcpgw.operate.alerts import alerts, silence, unsilence
from tcpgw.operate.changes import reload, upgrade
from tcpgw.operate.connections import connections
from tcpgw.operate.drain import drain, undrain, weight
from tcpgw.operate.monitoring import monitoring
from tcpgw.operate.status import status
from tcpgw.operate.top import top
from tcpgw.operate.trace import trace
from tcpgw.process.inherited import InheritedError
from tcpgw.process.limits import cpus, needed_files
from tcpgw.relay.session import Someone

log = structlog.get_logger()
# markup=False: "[fd00::1]:80" is an endpoint, not a style.
out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)

app = typer.Typer(
    name="tcpgw",
    help="A TCP gateway for ModelArts services on the VPC high-speed channel.",
    epilog="Exit codes: 0 well, 1 failed while running, 2 bad usage or configuration.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="markdown",
)

ConfigFile = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration (TOML).")]


def main() -> None:
    """Run the command line: the entry point of the `tcpgw` script."""
    app()


def _version(asked: bool) -> None:
    if asked:
        out.print(f"tcpgw {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def run(config: ConfigFile) -> None:
    """Run the gateway in the foreground until SIGTERM or SIGINT; a second one does not wait for draining.

    SIGHUP is `tcpgw reload`, SIGUSR2 `tcpgw upgrade`.
    """
    loaded = _load(config)
    with logs.configured(loaded.gateway.log.format, loaded.gateway.log.level):
        try:
            uvloop.run(main_.run(loaded, config))
        except TcpgwError as exc:
            log.error("stopped", error=str(exc))
            # As with a wrong configuration, another try would end the same way.
            raise typer.Exit(2 if isinstance(exc, InheritedError) else 1) from None
        except Exception:  # a bug: told where operators look, as one line like any other
            log.exception("crashed")
            raise typer.Exit(1) from None


@app.command()
def check(config: ConfigFile) -> None:
    """Validate a configuration and print what would run."""
    loaded = _load(config)
    try:
        access.check(loaded, read_files(loaded))
    except ConfigError as exc:
        raise _refused(config, exc) from None
    services = terminal.table("service", "discovery", "balance", "connect", title="services")
    for service in loaded.service:
        services.add_row(
            service.name,
            describe(service.discovery),
            _balance(service.balance),
            f"{service.connect.candidates} tries of {service.connect.timeout:g} s",
        )
    listeners = terminal.table("listener", "bind", "plane", "route", "connections", title="listeners")
    for listener in loaded.listener:
        total = sum(route.weight for route in listener.route)
        shares = ", ".join(
            route.service if len(listener.route) == 1 else f"{route.service} {route.weight / total:.1%}"
            for route in listener.route
        )
        listeners.add_row(
            listener.name,
            str(listener.bind),
            _plane(listener),
            shares,
            str(listener.max_connections),
        )
    out.print(services, listeners)
    for listener in loaded.listener:
        out.print(f"{listener.name}: {_asked(listener)}", soft_wrap=True)
    gateway = loaded.gateway
    workers = gateway.workers or cpus()
    out.print(
        f"{workers} workers; a stop drains for {gateway.drain:g} s and cuts the rest after"
        f" {gateway.cut_after:g} s; without their supervisor workers accept for {gateway.unsupervised:g} s",
        soft_wrap=True,
    )
    wanted = needed_files(sum(listener.max_connections for listener in share(loaded, workers).listener))
    needs = f"each worker needs up to {wanted} open files (LimitNOFILE=, ulimit -n)"
    out.print(f"{config}: valid; {needs}", soft_wrap=True)


def _plane(listener: schema.Listener) -> str:
    return f"rpc, {listener.codec}" if listener.mode == "rpc" else "stream"


def _asked(listener: schema.Listener) -> str:
    """Who is let in."""
    rules, tls = listener.access, listener.tls
    mutual = isinstance(tls, schema.ServerTls) and tls.client_ca is not None
    kinds = {
        "a certificate": mutual,
        "an API key": rules.api_keys is not None,
        "a JWT": rules.jwt is not None,
    }
    asked = {
        "an allowed network": rules.allow or rules.deny,
        "TLS": tls is not None,
        " or ".join(kind for kind, is_taken in kinds.items() if is_taken): any(kinds.values()),
    }
    words = ", ".join(word for word, is_asked in asked.items() if is_asked)
    return f"clients need {words}" if words else "open to everybody who reaches it"


def _balance(balance: schema.Balance) -> str:
    if balance.policy not in {"maglev", "ring"}:
        return balance.policy
    bound = f", at most {balance.bounded_load:g} times the average" if balance.bounded_load else ""
    return f"{balance.policy} on {balance.key}{bound}"


ServiceName = Annotated[str | None, typer.Option("--service", metavar="NAME", help="Only this service.")]


@app.command()
def endpoints(
    config: ConfigFile,
    service: ServiceName = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask each service's discovery once and print its instances."""
    loaded = _load(config)
    chosen = [_service(loaded, service)] if service else list(loaded.service)
    answers = _ask(loaded, chosen)
    found = {name: answer for name, answer in answers.items() if not isinstance(answer, DiscoveryError)}
    if as_json:
        rows = {
            name: [{"endpoint": str(member.endpoint), "weight": member.weight} for member in snapshot.members]
            for name, snapshot in found.items()
        }
        typer.echo(json.dumps(rows, indent=2))
    else:
        table = terminal.table("service", "endpoint", "weight")
        for name, snapshot in found.items():
            for member in snapshot.members:
                table.add_row(name, str(member.endpoint), str(member.weight))
        out.print(table)
    for name, answer in answers.items():
        if isinstance(answer, DiscoveryError):
            _say(f"service {name}: {answer}")
    if len(found) < len(answers):
        raise typer.Exit(1)


def _ask(config: schema.Config, services: list[schema.Service]) -> dict[str, Snapshot | DiscoveryError]:
    """Ask discovery once for each service. Exits with 1 where the credentials cannot be used at all."""

    async def one(name: str, source: Source) -> Snapshot | DiscoveryError:
        try:
            return Snapshot.of(name, await source.fetch(), taken_at=time.time())
        except DiscoveryError as exc:
            return exc
        finally:
            await source.close()

    async def all_() -> dict[str, Snapshot | DiscoveryError]:
        sources = make_sources(config, services)
        answers = await asyncio.gather(*(one(name, source) for name, source in sources.items()))
        return dict(zip(sources, answers, strict=True))

    with logs.configured("auto", "warning"):
        try:
            return uvloop.run(all_())
        except DiscoveryError as exc:
            _say(str(exc))
            raise typer.Exit(1) from None


@app.command()
def explain(
    config: ConfigFile,
    key: Annotated[
        str,
        typer.Argument(
            help="As balance.key says: 10.0.0.7, 10.0.0.7:40000, or a listener, subject, hash key, method or "
            "field value."
        ),
    ],
    service: Annotated[str, typer.Option("--service", metavar="NAME", help="The service.")],
) -> None:
    """Print the candidates for a key, in order, and why."""
    loaded = _load(config)
    chosen = _service(loaded, service)
    balance = chosen.balance
    try:
        position = _position(balance.key, key)
    except ValueError as exc:
        _say(f"{key!r} is not a key of service {service}, whose balance.key is {balance.key}: {exc}")
        raise typer.Exit(2) from None
    answer = _ask(loaded, [chosen])[service]
    if isinstance(answer, DiscoveryError):
        _say(f"service {service}: {answer}")
        raise typer.Exit(1)
    policy = make_policy(balance, answer.weights, Loads(time.monotonic))
    out.print(f"service {service}: {_balance(balance)}", soft_wrap=True)
    hashed = "jhash" if balance.key in {"source_ip", "source_ip_port"} else "xxhash64"
    out.print(f"key {key}: {hashed} {position:#010x} (seed {hashing.SEED:#x})", soft_wrap=True)
    out.print(policy.explain(position), soft_wrap=True)
    table = terminal.table("candidate", "endpoint", "weight")
    for place, endpoint in enumerate(policy.candidates(position), 1):
        table.add_row(str(place), str(endpoint), str(answer.weights[endpoint]))
    out.print(table, "The order without load: a running gateway passes over endpoints at their bound.")


def _position(key: str, text: str) -> int:
    """Hash a key as a listener would. Raises ValueError."""
    match key:
        case "source_ip":
            client = (Endpoint.of(text, 1).host, 0)  # as a listener sees it: ::ffff:10.0.0.7 is 10.0.0.7
        case "source_ip_port":
            host, port = Endpoint.parse(text)
            client = (host, port)
        case _:  # a listener's name, a method's, or a field's value
            return hashing.other(text.encode(), hashing.SEED)
    return make_hash(key, "", hashing.SEED)(Someone(client))


@app.command("schema")
def schema_() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    typer.echo(json.dumps(configuration.json_schema(), indent=2))


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=1, help="Length; the steps need about 8 s.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Start everything and wait for Ctrl-C.")] = False,
) -> None:
    """Show everything at work on this machine: an emulated cloud, real instances, a real gateway."""
    if as_json and serve:
        raise typer.BadParameter("choose one of --json and --serve")
    from tcpgw.demo.view import run_demo  # noqa: PLC0415 - the emulated cloud is no part of a gateway

    raise typer.Exit(run_demo(seconds, as_json=as_json, serve=serve))


app.command(context_settings=CONTEXT)(call)
app.command()(bench)
app.command()(status)
app.command()(reload)
app.command()(upgrade)
app.command()(drain)
app.command()(undrain)
app.command()(weight)
app.command()(top)
app.command()(connections)
app.command()(trace)
app.command()(alerts)
app.command()(silence)
app.command()(unsilence)
app.add_typer(monitoring)
app.add_typer(key)


def _load(path: Path) -> schema.Config:
    """Load a configuration, or print each fault with its key path and exit with 2."""
    try:
        return configuration.load(path)
    except ConfigError as exc:
        raise _refused(path, exc) from None


def _refused(path: Path, exc: ConfigError) -> typer.Exit:
    for fault in map(str, exc.faults):
        _say(fault if str(path) in fault else f"{path}: {fault}")
    return typer.Exit(2)


def _service(config: schema.Config, name: str) -> schema.Service:
    for service in config.service:
        if service.name == name:
            return service
    _say(f"no service is called {name!r}: there are {', '.join(service.name for service in config.service)}")
    raise typer.Exit(2)


def _say(message: str) -> None:
    err.print(message, style="red", soft_wrap=True)
