"""The testbed of access.py: redis with and without TLS, a gateway with a listener for each guard, peers."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from typing import NamedTuple

import jwt
import trustme
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from jwt.algorithms import RSAAlgorithm
from peers import (
    DIRECT,
    ENVOY,
    HAPROXY,
    NGINX,
    TCPGW,
    Address,
    Forward,
    Peer,
    Plan,
    tcpgw_gateway,
    tcpgw_tables,
)
from processes import Child, find, first_line, free_ports, require
from stream_testbed import answers_ping
from testbed import Cores, Testbed, installed

from tcpgw.access.keys import new_key

PEERS = (HAPROXY, NGINX, ENVOY, TCPGW)
NETWORKS = 10_000
API_KEYS = 1_000
# The value that bulk is made of. Bytes.
BULK = 1 << 20
# What a quota must be to limit nothing here; all of it is counted nevertheless.
PLENTY = 1_000_000_000


@dataclass(frozen=True)
class Guard:
    """What a listener asks of its clients: further lines of its table, and of its service's.

    `token` is what they say first; `tls`: they speak TLS to it. `inner`: TLS is spoken to the instance.
    """

    name: str
    listener: str = ""
    service: str = ""
    token: str = ""
    tls: bool = False
    inner: bool = False


class Secrets(NamedTuple):
    """Files that the guards name, and what clients show."""

    certificate: Path
    authority: Path
    api_keys: Path
    api_key: str
    jwks: Path
    token: str


def make_secrets(folder: Path) -> Secrets:
    """An authority, a certificate of P-256 for `localhost`, API keys, and an issuer's key of 2,048 bits."""
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    issued = authority.issue_cert("localhost", key_type=trustme.KeyType.ECDSA)
    keys = [new_key(f"client-{number}") for number in range(API_KEYS)]
    private = generate_private_key(public_exponent=65537, key_size=2048)
    claims = {"sub": "client", "aud": "tcpgw", "exp": int(time.time()) + 86_400}
    public = {**RSAAlgorithm.to_jwk(private.public_key(), as_dict=True), "kid": "1", "alg": "RS256"}
    public.pop("key_ops", None)
    made = Secrets(
        certificate=folder / "tls.pem",
        authority=folder / "ca.pem",
        api_keys=folder / "keys",
        api_key=keys[API_KEYS // 2].key,
        jwks=folder / "jwks.json",
        token=jwt.encode(claims, private, "RS256", headers={"kid": "1"}),
    )
    made.certificate.write_bytes(issued.private_key_and_cert_chain_pem.bytes())
    made.authority.write_bytes(authority.cert_pem.bytes())
    made.api_keys.write_text("\n".join(key.line for key in keys) + "\n")
    made.jwks.write_text(json.dumps({"keys": [public]}))
    return made


def guards(secrets: Secrets) -> Sequence[Guard]:
    """One for each question, the first with none at all."""
    return (
        Guard("open"),
        Guard("cidr", f"[listener.access]\nallow = {json.dumps(networks())}\n"),
        Guard(
            "per-source",
            f"[listener.limits]\nper_source = {{ connections = {PLENTY}, new_per_second = {PLENTY} }}\n",
        ),
        Guard(
            "bytes/s",
            f"[listener.limits]\nper_source = {{ bytes_in = {1 << 40}, bytes_out = {1 << 40} }}\n",
        ),
        Guard("api-key", f'[listener.access]\napi_keys = "{secrets.api_keys}"\n', token=secrets.api_key),
        Guard(
            "jwt",
            f'[listener.access.jwt]\nalgorithms = ["RS256"]\njwks = "{secrets.jwks}"\naudience = "tcpgw"\n',
            token=secrets.token,
        ),
        Guard("tls", tls=True),
        Guard(
            "to-tls",
            service=f'tls = {{ ca = "{secrets.authority}", server_name = "localhost" }}\n',
            inner=True,
        ),
    )


def networks() -> list[str]:
    """Ten thousand that no client is of, but the last: loopback's."""
    apart = IPv4Network("10.0.0.0/8").subnets(new_prefix=24)
    return [*(str(network) for _, network in zip(range(NETWORKS - 1), apart, strict=False)), "127.0.0.0/8"]


def guarded(guards: Sequence[Guard]) -> Callable[[Plan], str]:
    """Make what configures a gateway with a listener and a service for each guard."""

    def configure(plan: Plan) -> str:
        tables = (
            tcpgw_tables(forward, guard.service, guard.listener)
            for forward, guard in zip(plan.forwards, guards, strict=True)
        )
        return tcpgw_gateway(plan) + "\n".join(tables)

    return configure


class Way(NamedTuple):
    """A way to redis: direct, through a guard of tcpgw's, or through a peer that ends TLS."""

    name: str
    address: Address
    tls: bool = False
    token: str = ""
    proxy: Child | None = None

    def cpu_seconds(self) -> float:
        """CPU time of the proxy so far, in seconds; 0 for direct."""
        return self.proxy.cpu_seconds() if self.proxy else 0.0


@dataclass(frozen=True)
class AccessTestbed(Testbed):
    plain: Address
    secure: Address
    secrets: Secrets
    guards: Sequence[Guard]

    @classmethod
    def prepare(
        cls, peers: Sequence[Peer], folder: Path, *, cores: Cores, log_connections: bool
    ) -> "AccessTestbed":
        """Find the programs, choose ports, write configurations. Raises BenchmarkError without redis."""
        require("redis-benchmark", "Debian package redis-tools")
        secrets = make_secrets(folder)
        found, left_out = installed(peers)
        all_guards = guards(secrets)
        found = {_with(peer, all_guards): program for peer, program in found.items()}
        ports = iter(free_ports(2 + len(all_guards) + len(found)))
        plain, secure = (Address("127.0.0.1", next(ports)) for _ in range(2))
        # A loopback address of redis for each listener, as in stream_testbed.py.
        hosts = (f"127.0.0.{number}" for number in range(2, 255))

        def forwards(peer: Peer) -> Sequence[Forward]:
            asked = all_guards if peer.name == TCPGW.name else [Guard("tls", tls=True)]
            return [
                Forward(
                    guard.name.replace("/", "-"),
                    Address("127.0.0.1", next(ports)),
                    Address(next(hosts), secure.port if guard.inner else plain.port),
                    certificate=secrets.certificate if guard.tls else None,
                )
                for guard in asked
            ]

        proxies = cls.configure(found, forwards, folder, log_connections=log_connections)
        return cls(folder, cores, proxies, left_out, plain, secure, secrets, all_guards)

    def start(self, ending: ExitStack) -> Mapping[str, Way]:
        """Start everything and wait until all listeners stand; returns the paths by name.

        Raises BenchmarkError, with its last words, where a process does not come up.
        """
        self._start_redis(ending)
        paths = [Way(DIRECT, self.plain), Way("direct-tls", self.secure, tls=True)]
        for proxy in self.proxies:
            child = self.start_proxy(ending, proxy)
            forwards = proxy.plan.forwards
            if proxy.peer.name == TCPGW.name:
                child.wait_until(partial(answers_ping, forwards[0].listener))
                paths += [
                    Way(guard.name, forward.listener, guard.tls, guard.token, child)
                    for guard, forward in zip(self.guards, forwards, strict=True)
                ]
            else:
                child.wait_until(partial(answers_tls, forwards[0].listener))
                paths.append(Way(proxy.peer.name, forwards[0].listener, tls=True, proxy=child))
        return {path.name: path for path in paths}

    def _start_redis(self, ending: ExitStack) -> None:
        program = require("redis-server", "Debian package redis-server")
        file, authority = self.secrets.certificate, self.secrets.authority
        options = f"--port {self.plain.port} --tls-port {self.secure.port} --tls-auth-clients no"
        tls = f"--tls-cert-file {file} --tls-key-file {file} --tls-ca-cert-file {authority}"
        rest = f"--protected-mode no --appendonly no --dir {self.folder}"
        hosts = [self.plain.host]
        hosts += [each.instance.host for proxy in self.proxies for each in proxy.plan.forwards]
        command = [program, *f"{options} {tls} {rest}".split(), "--save", "", "--bind", *hosts]
        child = self.start_child(ending, "redis-server", command, self.cores.load)
        child.wait_until(partial(answers_ping, self.plain))
        first_line(["redis-cli", "-p", str(self.plain.port), "SETRANGE", "bulk", str(BULK - 1), "."])

    def facts(self) -> dict[str, str]:
        redis = first_line([find("redis-server") or "redis-server", "--version"])
        return self.environment({"redis-server": redis})


def _with(peer: Peer, guards: Sequence[Guard]) -> Peer:
    return replace(peer, configure=guarded(guards)) if peer.name == TCPGW.name else peer


def answers_tls(address: Address) -> bool:
    """Ask redis, through whatever ends TLS in between."""
    answer = first_line(
        ["redis-cli", "--tls", "--insecure", "-h", address.host, "-p", str(address.port), "PING"]
    )
    return answer == "PONG"
