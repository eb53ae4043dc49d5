import asyncio
import os
import select
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from structlog.testing import capture_logs

from tcpgw.config.schema import DnsDiscovery
from tcpgw.discovery import dns as module
from tcpgw.discovery.dns import DnsSource, pause
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.errors import DiscoveryError

TTL = 7
MANY = [f"10.2.0.{i}" for i in range(1, 101)]  # more A records than the 512 bytes of a UDP answer hold
ZONE = [
    "--local=/test/",  # what is not listed under test. does not exist
    f"--local-ttl={TTL}",
    "--host-record=one.test,10.0.0.1",
    "--host-record=six.test,fd00::6",
    "--host-record=dual.test,10.0.0.9,fd00::9",
    "--host-record=brief.test,10.0.0.3,2",
    "--cname=alias.test,one.test",
    *[f"--address=/many.test/{address}" for address in MANY],
    "--srv-host=_plain._tcp.test,one.test,8001,10,30",
    "--srv-host=_plain._tcp.test,dual.test,8002,10,70",
    "--srv-host=_plain._tcp.test,brief.test,8003,20,99",
    "--srv-host=_zero._tcp.test,one.test,8001,0,0",
    "--srv-host=_zero._tcp.test,dual.test,8002,0,50",
    "--srv-host=_six._tcp.test,six.test,8006,0,1",
    "--srv-host=_alias._tcp.test,alias.test,8001,0,1",
    "--srv-host=_stale._tcp.test,one.test,8001,0,1",
    "--srv-host=_stale._tcp.test,gone.test,8002,0,1",
    "--srv-host=_stale._tcp.test,text.test,8003,0,1",
    "--txt-record=text.test,no address",
    "--srv-host=_none._tcp.test",  # the target ".": no such service
]


def free_port() -> int:
    """A port that is free for TCP and UDP, chosen by the kernel."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        udp.bind(tcp.getsockname())
        return int(tcp.getsockname()[1])


@pytest.fixture(scope="module")
def server(need: Callable[[str], str]) -> Iterator[str]:
    """The address of a real dnsmasq that knows ZONE and asks nobody else."""
    port = free_port()
    command = [
        need("dnsmasq"),
        "--no-daemon",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--no-resolv",
        "--no-hosts",
    ]
    command += ["--bind-interfaces", "--listen-address=127.0.0.1", f"--port={port}", *ZONE]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        wait_until_started(process)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def wait_until_started(process: "subprocess.Popen[bytes]") -> None:
    assert process.stderr is not None
    said = b""
    while b"started" not in said:
        ready, _, _ = select.select([process.stderr], [], [], 10)
        more = os.read(process.stderr.fileno(), 65536) if ready else b""
        if not more:
            pytest.fail(f"dnsmasq did not start; it said {said.decode()!r}")
        said += more


def ask(resolver: str | list[str], name: str, record: str = "A", **settings: Any) -> DnsSource:
    resolvers = [resolver] if isinstance(resolver, str) else resolver
    port = {} if record == "SRV" else {"port": 80}
    table = {"type": "dns", "name": name, "record": record, "resolvers": resolvers, **port, **settings}
    return DnsSource(DnsDiscovery.model_validate(table))


Answer = Callable[[dns.message.Message], dns.message.Message]


@asynccontextmanager
async def replying(answer: Answer | None) -> AsyncIterator[str]:
    """A name server for what dnsmasq cannot do: it sends what `answer` makes of the question, or nothing."""

    class Server(asyncio.DatagramProtocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: Any) -> None:
            if answer is not None:
                self.transport.sendto(answer(dns.message.from_wire(data)).to_wire(), addr)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Server, local_addr=("127.0.0.1", 0))
    try:
        yield "{}:{}".format(*transport.get_extra_info("sockname"))
    finally:
        transport.close()


def made_of(*, answer: tuple[str, ...] = (), additional: tuple[str, ...] = (), code: int = 0) -> Answer:
    """Replies of such records, each as a zone file has it: name, TTL, class, type, data."""

    def build(question: dns.message.Message) -> dns.message.Message:
        reply = dns.message.make_response(question)
        reply.flags |= dns.flags.RA
        reply.set_rcode(dns.rcode.Rcode(code))
        for section, lines in ((reply.answer, answer), (reply.additional, additional)):
            for line in lines:
                name, ttl, *rest = line.split(maxsplit=4)
                section.append(dns.rrset.from_text(name, int(ttl), *rest))
        return reply

    return build


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("one.test", "A", ["10.0.0.1"]),
        ("one.test.", "A", ["10.0.0.1"]),
        ("alias.test", "A", ["10.0.0.1"]),
        ("dual.test", "A", ["10.0.0.9"]),
        ("dual.test", "AAAA", ["fd00::9"]),
    ],
)
async def test_addresses(server: str, name: str, record: str, expected: list[str]) -> None:
    """A and AAAA records, behind a CNAME too, become endpoints with the configured port."""
    assert list(await ask(server, name, record).fetch()) == [Member(Endpoint(host, 80)) for host in expected]


async def test_list_too_long_for_udp(server: str) -> None:
    """A truncated answer is asked for again over TCP and comes whole."""
    members = await ask(server, "many.test").fetch()
    assert sorted(member.endpoint.host for member in members) == sorted(MANY)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("_plain._tcp.test", [("10.0.0.1", 8001, 30), ("10.0.0.9", 8002, 70)]),
        ("_zero._tcp.test", [("10.0.0.1", 8001, 1), ("10.0.0.9", 8002, 50)]),
        ("_six._tcp.test", [("fd00::6", 8006, 1)]),
        ("_alias._tcp.test", [("10.0.0.1", 8001, 1)]),
        ("_none._tcp.test", []),
    ],
)
async def test_services(server: str, name: str, expected: list[tuple[str, int, int]]) -> None:
    """SRV gives ports and weights: of the lowest priority, 0 as 1, AAAA only without A, nothing for `.`."""
    members = await ask(server, name, "SRV").fetch()
    assert [(*member.endpoint, member.weight) for member in sorted(members)] == expected


@pytest.mark.parametrize(("name", "record"), [("one.test", "AAAA"), ("one.test", "SRV")])
async def test_no_data_is_an_empty_list(server: str, name: str, record: str) -> None:
    """A name that exists without such records says that there is no instance."""
    assert list(await ask(server, name, record).fetch()) == []


async def test_record_without_address_is_left_out_and_reported_once(server: str) -> None:
    """A stale SRV target costs the others nothing, and is logged when it turns up, not at each fetch."""
    source = ask(server, "_stale._tcp.test", "SRV")
    with capture_logs() as logs:
        for _ in range(2):
            assert list(await source.fetch()) == [Member(Endpoint("10.0.0.1", 8001))]
    assert [line["event"] for line in logs] == ["dns_records_left_out"]
    assert logs[0]["records"] == ["gone.test. has no address", "text.test. has no address"]


async def test_record_with_port_zero_is_left_out() -> None:
    """An SRV record that no connection can use costs the others nothing."""
    records = ("_x._tcp.test. 9 IN SRV 0 1 0 one.test.", "_x._tcp.test. 9 IN SRV 0 1 81 one.test.")
    answer = made_of(answer=records, additional=("one.test. 9 IN A 10.0.0.1",))
    async with replying(answer) as resolver:
        with capture_logs() as logs:
            members = await ask(resolver, "_x._tcp.test", "SRV").fetch()
    assert list(members) == [Member(Endpoint("10.0.0.1", 81))]
    assert logs[0]["records"] == ["one.test. has port 0"]


@pytest.mark.parametrize("weights", [(4, 9), (9, 4)])
async def test_endpoint_named_twice(weights: tuple[int, int]) -> None:
    """Of two weights for one endpoint the greater counts, in whatever order the server sends them."""
    names = ("one.test.", "uno.test.")
    srv = (f"_x._tcp.test. 9 IN SRV 0 {w} 81 {n}" for w, n in zip(weights, names, strict=True))
    answer = made_of(answer=tuple(srv), additional=tuple(f"{n} 9 IN A 10.0.0.1" for n in names))
    async with replying(answer) as resolver:
        members = await ask(resolver, "_x._tcp.test", "SRV").fetch()
    assert Snapshot.of("web", members, taken_at=0.0).members == (Member(Endpoint("10.0.0.1", 81), 9),)


@pytest.mark.parametrize(
    ("name", "record", "ttl"),
    [("one.test", "A", TTL), ("brief.test", "A", 2), ("_plain._tcp.test", "SRV", TTL)],
)
async def test_ttl_is_known(server: str, name: str, record: str, ttl: float) -> None:
    """After an answer the source knows for how long it is good."""
    source = ask(server, name, record)
    await source.fetch()
    assert source.ttl == ttl


async def test_shortest_ttl_counts() -> None:
    """An SRV answer is good for as long as the first of its addresses to expire."""
    additional = ("one.test. 3 IN A 10.0.0.1",)
    async with replying(
        made_of(answer=("_x._tcp.test. 9 IN SRV 0 1 81 one.test.",), additional=additional)
    ) as resolver:
        source = ask(resolver, "_x._tcp.test", "SRV")
        await source.fetch()
    assert source.ttl == 3


@pytest.mark.parametrize(
    ("refresh", "ttl", "jitter", "seconds"),
    [
        (10, 300, 1.0, 10),
        (10, 300, 1.1, 11),
        (10, 4, 1.0, 4),
        (10, 4, 0.9, 3.6),
        (10, 0, 0.9, 1),
        (0.5, 9, 1.1, 1),
    ],
)
def test_pause(refresh: float, ttl: float, jitter: float, seconds: float) -> None:
    """The shorter of refresh and TTL, jittered, and never less than a second."""
    assert pause(refresh, ttl, jitter) == pytest.approx(seconds)


async def test_waits_for_the_pause(server: str) -> None:
    """Waiting goes on for the TTL of the last answer, so it is not over at once."""
    source = ask(server, "one.test")
    await source.fetch()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(source.wait(), 0.01)
    await source.close()


async def explained(source: DnsSource) -> str:
    with pytest.raises(DiscoveryError) as raised:
        await source.fetch()
    return str(raised.value)


async def test_unknown_name_is_explained(server: str) -> None:
    """NXDOMAIN is an error that names the question and the key to look at."""
    text = await explained(ask(server, "gone.test"))
    assert "DNS A gone.test: there is no such name (NXDOMAIN): check discovery.name" in text


async def test_refusal_is_explained(server: str) -> None:
    """A server that will not answer is named, with its reason and what to do."""
    text = await explained(ask(server, "one.elsewhere"))
    assert server.replace(":", "@") in text
    assert "REFUSED" in text
    assert "discovery.resolvers" in text


async def test_server_failure_is_explained() -> None:
    """SERVFAIL is an error, not an empty list."""
    async with replying(made_of(code=dns.rcode.SERVFAIL)) as resolver:
        assert "SERVFAIL" in await explained(ask(resolver, "one.test"))


async def test_server_failure_for_a_target_fails_the_fetch() -> None:
    """Where a target's addresses cannot be asked for, the list is not shortened silently."""

    def answer(question: dns.message.Message) -> dns.message.Message:
        services = question.question[0].rdtype == dns.rdatatype.SRV
        records = ("_x._tcp.test. 9 IN SRV 0 1 81 one.test.",)
        return (made_of(answer=records) if services else made_of(code=dns.rcode.SERVFAIL))(question)

    async with replying(answer) as resolver:
        assert "SERVFAIL" in await explained(ask(resolver, "_x._tcp.test", "SRV"))


async def test_other_failures_are_explained() -> None:
    """An error that only a broken zone gives names the question and the key to look at."""
    async with replying(made_of(code=dns.rcode.YXDOMAIN)) as resolver:
        text = await explained(ask(resolver, "one.test"))
    assert text.startswith("DNS A one.test: ")
    assert "discovery.name" in text


async def test_cname_loop_is_explained() -> None:
    """An answer that contradicts itself is an error for the operator, not a crash."""
    loop = ("one.test. 9 IN CNAME two.test.", "two.test. 9 IN CNAME one.test.")
    async with replying(made_of(answer=loop)) as resolver:
        text = await explained(ask(resolver, "one.test", timeout=0.3))
    assert text.startswith("DNS A one.test: ")


async def test_silence_is_explained() -> None:
    """A server that never answers costs the time-out, and the error says which server and which key."""
    async with replying(None) as resolver:
        text = await explained(ask(resolver, "one.test", timeout=0.05))
    assert "no answer from" in text
    assert resolver in text
    assert "within 0.05 s" in text
    assert "discovery.timeout" in text


async def test_nobody_there_is_explained() -> None:
    """A server that is not running is named."""
    nobody = f"127.0.0.1:{free_port()}"
    assert nobody in await explained(ask(nobody, "one.test", timeout=0.1))


async def test_next_server_answers(server: str) -> None:
    """A server that fails is passed over for the next one."""
    async with replying(made_of(code=dns.rcode.SERVFAIL)) as broken:
        members = await ask([broken, server], "one.test").fetch()
    assert list(members) == [Member(Endpoint("10.0.0.1", 80))]


async def test_after_a_failure_the_refresh_interval_counts() -> None:
    """The TTL of an older answer says nothing about when to ask again after a failure."""
    ttls = iter([2, None])

    def answer(question: dns.message.Message) -> dns.message.Message:
        ttl = next(ttls)
        good = made_of(answer=(f"one.test. {ttl} IN A 10.0.0.1",))
        return (good if ttl else made_of(code=dns.rcode.SERVFAIL))(question)

    async with replying(answer) as resolver:
        source = ask(resolver, "one.test", refresh=30)
        await source.fetch()
        assert source.ttl == 2
        await explained(source)
    assert source.ttl == 30


async def test_system_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without configured resolvers the system's are asked, as its file names them at that moment."""
    file = tmp_path / "resolv.conf"
    monkeypatch.setattr(module, "RESOLV_CONF", str(file))
    source = ask([], "one.test", timeout=0.2)
    assert "discovery.resolvers" in await explained(source)
    file.write_text("search test\n")
    assert "discovery.resolvers" in await explained(source)
    file.write_text("nameserver 127.255.255.253\n")
    assert "127.255.255.253" in await explained(source)


@pytest.mark.parametrize(
    "content", [b"nameserver foo.bar\n", b"search ..\n", b"# caf\xe9\n", b"search " + b"x" * 64 + b"\n"]
)
async def test_unusable_system_file_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    """Whatever is wrong with the system's file, the message names it and the setting that replaces it."""
    file = tmp_path / "resolv.conf"
    file.write_bytes(content)
    monkeypatch.setattr(module, "RESOLV_CONF", str(file))
    text = await explained(ask([], "one.test"))
    assert str(file) in text
    assert "discovery.resolvers" in text


@pytest.mark.parametrize("turns", range(5))
async def test_cancellation_leaves_no_socket_open(turns: int) -> None:
    """A fetch that is cancelled closes its socket, at whichever turn of the loop after opening it that is."""
    async with replying(None) as resolver:
        before = open_sockets()
        fetching = asyncio.create_task(ask(resolver, "one.test").fetch())
        while open_sockets() == before:  # noqa: ASYNC110 - the socket appears in the kernel, not in an event
            await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0)
        fetching.cancel()
        with suppress(asyncio.CancelledError):
            await fetching
        await asyncio.sleep(0)  # transports close at the loop's next turn
        assert fetching.cancelled()
        assert open_sockets() == before


def open_sockets() -> int:
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum(str(link).startswith("socket:") for link in links)
