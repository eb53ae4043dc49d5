"""Endpoints that a name in the DNS stands for: A, AAAA, or SRV with its ports and weights."""

import asyncio
import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.nameserver
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.IN.SRV
import dns.resolver
import structlog
from dns._asyncio_backend import Backend

from tcpgw.config.schema import DnsDiscovery
from tcpgw.endpoints import Endpoint, Member
from tcpgw.errors import DiscoveryError

RESOLV_CONF = "/etc/resolv.conf"

log = structlog.get_logger()


class DnsSource:
    """Asks for one name, taken as complete: neither search domains nor /etc/hosts are looked at.

    A name without records of the kind asked for (NOERROR, NODATA) is an empty list, as is the SRV target "."
    (RFC 2782: no such service).

    Of SRV records only those of the lowest priority number count: the others are for when all of these are
    down, which a list without health cannot express. A record's weight is that of its endpoints. Weight 0 ("a
    very small chance") becomes 1: equal where all are 0, small beside the usual tens and hundreds, and never
    tcpgw's own 0, which would give the instance nothing. HAProxy adds 1 for the same reason.

    A target is asked for its A records and, only where it has none, for AAAA: a target is one instance, and
    with an address of each family it would count twice. A record without an address or with port 0 is left
    out and logged: one stale record must not keep the others' changes away.

    `ttl` is the shortest TTL in the last answer, in seconds; the refresh interval after a failure.
    """

    def __init__(self, settings: DnsDiscovery) -> None:
        self.ttl = settings.refresh
        self._settings = settings
        self._left_out: frozenset[str] = frozenset()

    async def fetch(self) -> Sequence[Member]:
        """Raises DiscoveryError. Bounded by `timeout` in whole, however many questions it takes."""
        settings = self._settings
        self.ttl = settings.refresh
        try:
            # Anew each time, because the system's file may change; in a thread, because it is a file.
            resolver = await asyncio.to_thread(_resolver, settings)
        except (dns.exception.DNSException, OSError, ValueError) as error:
            raise DiscoveryError(
                f"{self}: {RESOLV_CONF} is no use: {error}; mend it, or set discovery.resolvers"
            ) from None
        lookup = _Lookup(resolver)
        try:
            async with asyncio.timeout(settings.timeout):
                members = await (self._services(lookup) if settings.record == "SRV" else self._hosts(lookup))
        except (TimeoutError, dns.exception.DNSException) as error:
            raise DiscoveryError(f"{self}: {_explained(error, settings, resolver)}") from None
        self.ttl = lookup.ttl
        return members

    async def wait(self) -> None:
        """Return after the answer's TTL or the refresh interval, whichever is shorter, but at least 1 s."""
        await asyncio.sleep(pause(self._settings.refresh, self.ttl, random.uniform(0.9, 1.1)))

    async def close(self) -> None:
        """Nothing is held: each question has a socket of its own."""

    def __str__(self) -> str:
        return f"DNS {self._settings.record} {self._settings.name}"

    async def _hosts(self, lookup: "_Lookup") -> list[Member]:
        answer = await lookup.ask(self._settings.name, self._settings.record)
        port = cast("int", self._settings.port)  # the schema demands it for A and AAAA
        return [Member(Endpoint.of(record.to_text(), port)) for record in answer.rrset or ()]

    async def _services(self, lookup: "_Lookup") -> list[Member]:
        answer = await lookup.ask(self._settings.name, "SRV")
        records = [cast("dns.rdtypes.IN.SRV.SRV", record) for record in answer.rrset or ()]
        lowest = min((record.priority for record in records), default=0)
        members, left_out = [], set()
        # By weight, so that of an endpoint named twice the greater weight counts, whatever the order.
        for record in sorted(records, key=lambda record: record.weight):
            if record.priority != lowest or record.target == dns.name.root:
                continue
            addresses = await lookup.addresses(record.target, answer.response)
            if record.port == 0 or not addresses:
                left_out.add(f"{record.target} has {'port 0' if addresses else 'no address'}")
                continue
            weight = max(record.weight, 1)
            members += [Member(Endpoint.of(address, record.port), weight) for address in addresses]
        self._report(frozenset(left_out))
        return members

    def _report(self, left_out: frozenset[str]) -> None:
        if left_out - self._left_out:
            hint = "mend these SRV records; the others are used"
            log.warning("dns_records_left_out", name=self._settings.name, records=sorted(left_out), hint=hint)
        self._left_out = left_out


class _Lookup:
    """The questions of one fetch, one after another: at most some hundred, each answered by a cache nearby.

    `ttl` is the shortest seen so far.
    """

    def __init__(self, resolver: dns.asyncresolver.Resolver) -> None:
        self.ttl: float = dns.ttl.MAX_TTL
        self._resolver = resolver
        self._addresses: dict[dns.name.Name, list[str]] = {}

    async def ask(self, name: dns.name.Name | str, record: str) -> dns.resolver.Answer:
        answer = await self._resolver.resolve(name, record, raise_on_no_answer=False, backend=_Backend())
        self.ttl = min(self.ttl, answer.chaining_result.minimum_ttl)
        return answer

    async def addresses(self, target: dns.name.Name, response: dns.message.Message) -> list[str]:
        """A target's addresses, out of the answer that named it if they are there. Empty: it has none."""
        if target not in self._addresses:
            self._addresses[target] = self._enclosed(target, response) or await self._asked(target)
        return self._addresses[target]

    def _enclosed(self, target: dns.name.Name, response: dns.message.Message) -> list[str]:
        # A server may leave additional records out, but no part of a set of them (RFC 2181, section 5), so
        # that this is all that a question of its own would bring.
        records = response.get_rrset(response.additional, target, dns.rdataclass.IN, dns.rdatatype.A)
        if records is None:
            return []
        self.ttl = min(self.ttl, records.ttl)
        return [record.to_text() for record in records]

    async def _asked(self, target: dns.name.Name) -> list[str]:
        try:
            for kind in ("A", "AAAA"):
                if records := (await self.ask(target, kind)).rrset:
                    return [record.to_text() for record in records]
        except dns.resolver.NXDOMAIN:
            pass  # the server knows for certain that there is none
        return []


class _Backend(Backend):
    """dnspython's own, except that cancellation while a UDP socket is being opened closes that socket.

    uvloop (0.23) awaits the new transport unguarded in `create_datagram_endpoint` and forgets it when it is
    cancelled there. Opening one waits for nobody, so it may finish.
    """

    async def make_socket(self, af: int, socktype: int, *args: Any, **kwargs: Any) -> Any:
        made = super().make_socket(af, socktype, *args, **kwargs)  # type: ignore[no-untyped-call]
        if socktype != socket.SOCK_DGRAM:
            return await made
        opening = asyncio.ensure_future(made)
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            with suppress(OSError):
                await (await opening).close()
            raise


def pause(refresh: float, ttl: float, jitter: float) -> float:
    """Seconds to wait: the shorter of both, times `jitter` (about 1, so that a fleet's questions spread out).

    At least 1 s, because a TTL of 0 means "do not cache", not "ask without end".
    """
    return max(1.0, min(refresh, ttl) * jitter)


def _resolver(settings: DnsDiscovery) -> dns.asyncresolver.Resolver:
    """Reads a file where the settings name no resolvers. Raises DNSException, OSError or ValueError."""
    resolver = dns.asyncresolver.Resolver(RESOLV_CONF, configure=not settings.resolvers)
    if settings.resolvers:
        resolver.nameservers = [dns.nameserver.Do53Nameserver(*endpoint) for endpoint in settings.resolvers]
    resolver.lifetime = settings.timeout
    return resolver


def _explained(error: Exception, settings: DnsDiscovery, resolver: dns.asyncresolver.Resolver) -> str:
    """What happened and what to do about it."""
    match error:
        case TimeoutError() | dns.exception.Timeout():
            servers = ", ".join(map(str, settings.resolvers or resolver.nameservers))
            return (
                f"no answer from {servers} within {settings.timeout:g} s: check that they run and can be "
                "reached over UDP and TCP, or raise discovery.timeout"
            )
        case dns.resolver.NXDOMAIN():
            return (
                "there is no such name (NXDOMAIN): check discovery.name; it must be complete, as search "
                "domains are not tried"
            )
        case dns.resolver.NoNameservers():
            return f"{error} Mend the zone or the server, or name another server in discovery.resolvers"
        case _:
            return f"{error} Check discovery.name and its zone"
