"""Thrift clients and servers that nobody here wrote: Apache's library and thriftpy2, on both sides.

Python's clients number every call 0 and do not look at the number that comes back. Apache's is made to insist
on it here, and on the method's name, as the one for Java does.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from itertools import product
from pathlib import Path

import pytest
from thrift.Thrift import TException
from thriftpy2.thrift import TException as TException2

from tests.support.processes import Address, free_port
from tests.support.rpc import Bed, bed
from tests.support.streams import PATIENCE, until
from tests.support.thrift_ends import (
    ENCODINGS,
    LIBRARIES,
    REFUSED,
    TOLD,
    Client,
    Connect,
    Instances,
    Kind,
    connecting,
    served,
)

UNKNOWN_METHOD, INTERNAL_ERROR, PROTOCOL_ERROR = 1, 6, 7  # of TApplicationException
HUNG_UP = (TException, TException2, EOFError, OSError)
SERVERS = ("apache", "thriftpy2")

every_encoding = pytest.mark.parametrize("encoding", ENCODINGS)
every_library = pytest.mark.parametrize("library", LIBRARIES)
every_server = pytest.mark.parametrize("server", SERVERS)


@pytest.fixture(scope="module")
def instances(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instances]:
    with ExitStack() as stack:
        yield Instances(tmp_path_factory.mktemp("instances"), stack)


def endpoint(instance: Address) -> str:
    return "{}:{}".format(*instance)


@asynccontextmanager
async def between(
    *instances: Address, listener: str = "", service: str = ""
) -> AsyncIterator[tuple[Bed, Connect]]:
    codec = f'codec = "thrift-framed"\n{listener}'
    endpoints = [endpoint(instance) for instance in instances]
    async with bed(endpoints=endpoints, listener=codec, service=service) as g:
        with connecting() as connect:
            yield g, connect


def channels(g: Bed) -> int:
    """How many connections to instances there are."""
    return sum(len(list(target.channels)) for target in g.service.targets.values())


async def holds(instance: Client, count: int) -> None:
    """Return when an instance, asked directly, has so many calls in `hold`."""
    async with asyncio.timeout(PATIENCE):
        while await instance.call("held") != count:
            pass


# ---- calls ----


@every_encoding
@pytest.mark.parametrize(("server", "threaded"), [("apache", True), ("apache", False), ("thriftpy2", True)])
@every_library
async def test_calls(instances: Instances, library: str, server: str, threaded: bool, encoding: str) -> None:
    """Texts of all sizes, declared exceptions, and calls that nobody answers."""
    instance = instances(Kind(server, encoding, threaded))
    # Apache's non-blocking server hangs up where exactly 8 KiB, or a multiple, are there to be read.
    sizes = (0, 1, 100, 3000, 100_000) if threaded else (0, 1, 100, 3000)
    async with between(instance) as (g, connect):
        client = await connect(library, encoding, g.listener.address)
        for size in sizes:
            text = size * "ü"
            assert await client.call("echo", text) == text
        with pytest.raises(REFUSED) as refused:
            await client.call("refuse", "not today")
        assert refused.value.why == "not today"
        before = await client.call("notes")
        for number in range(20):
            await client.call("note", str(number))
        assert await client.call("notes") == before + 20
        client.close()
        line = await g.line()
    assert (line["requests"], line["notifications"]) == (len(sizes) + 3, 20)
    assert line["reason"] == "client_fin"
    assert "errors" not in line


@every_encoding
async def test_an_instances_own_errors(instances: Instances, encoding: str) -> None:
    """What an instance answers with TApplicationException passes as it is."""
    async with between(instances(Kind("apache", encoding))) as (g, connect):
        for library in LIBRARIES:
            client = await connect(library, encoding, g.listener.address)
            with pytest.raises(TOLD) as told:
                await client.call("fail")
            assert (told.value.type, told.value.message) == (INTERNAL_ERROR, "Internal error")
        client = await connect("apache", encoding, g.listener.address)
        with pytest.raises(TOLD) as told:
            await client.call("nonesuch")
        assert (told.value.type, told.value.message) == (UNKNOWN_METHOD, "Unknown function nonesuch")


@every_encoding
@every_server
async def test_one_connection_for_many_clients(instances: Instances, server: str, encoding: str) -> None:
    """Clients of all libraries at once share the instance's one connection, and each gets its own answers."""
    async with between(instances(Kind(server, encoding)), service="rpc = { bulk = 0 }") as (g, connect):
        threads = set()

        async def talk(number: int) -> None:
            client = await connect(LIBRARIES[number % 3], encoding, g.listener.address)
            for turn in range(10):
                text = f"{number} {turn} " + 50 * number * "x"
                assert await client.call("echo", text) == text
                with pytest.raises(REFUSED) as refused:
                    await client.call("refuse", text)
                assert refused.value.why == text
            threads.add(await client.call("thread"))

        await asyncio.gather(*(talk(number) for number in range(9)))
        assert len(threads) == 1


# ---- a thread for each connection ----


@pytest.mark.parametrize(
    ("rpc", "rounds"), [("bulk = 0", [1, 1, 1, 1, 1]), ("exclusive = true, connections = 3", [3, 2])]
)
@every_server
async def test_calls_at_a_time(instances: Instances, server: str, rpc: str, rounds: list[int]) -> None:
    """A server with a thread for each connection does one call of a shared one at a time, and on exclusive
    ones as many as there may be connections; the others wait.
    """
    instance = instances(Kind(server))
    service = f'rpc = {{ {rpc}, queue_timeout = "20s" }}'
    async with between(instance, service=service) as (g, connect):
        direct = await connect(server, "binary", endpoint(instance))
        callers = [await connect("thriftpy2 async", "binary", g.listener.address) for _ in range(5)]
        calls = [asyncio.create_task(client.call("hold", at)) for at, client in enumerate(callers)]
        for count in rounds:
            await holds(direct, count)
            await direct.call("release")
        assert [await call for call in calls] == [0, 1, 2, 3, 4]


async def test_the_slower_of_two_is_not_waited_for(instances: Instances) -> None:
    """Of a hedged call's threads one is still at work when the other has answered: nobody gets behind it."""
    both = [instances(Kind(server)) for server in SERVERS]
    listener = 'methods = { hold = { idempotent = true, hedge = "10ms" } }'
    service = "rpc = { exclusive = true, connections = 1, hedge_budget = 1.0 }"
    async with between(*both, listener=listener, service=service) as (g, connect):
        direct = [await connect("thriftpy2", "binary", endpoint(instance)) for instance in both]
        client = await connect("thriftpy2 async", "binary", g.listener.address)
        for quick in direct:
            await until(lambda: channels(g) == len(both))
            held = asyncio.create_task(client.call("hold", 7))
            for one in direct:
                await holds(one, 1)
            await quick.call("release")
            assert await held == 7
            for _ in both:
                assert await client.call("echo", "next") == "next"
            for one in direct:
                await one.call("release")
                await holds(one, 0)  # a oneway call may be done later than what comes next


@every_encoding
async def test_a_server_that_hangs_up(instances: Instances, encoding: str) -> None:
    """thriftpy2's server answers an undeclared exception by hanging up: on exclusive connections nobody but
    the caller notices, and is told what happened.
    """
    instance = instances(Kind("thriftpy2", encoding))
    async with between(instance, service="rpc = { exclusive = true, connections = 2 }") as (g, connect):
        direct = await connect("thriftpy2", encoding, endpoint(instance))
        other = await connect("thriftpy2 async", encoding, g.listener.address)
        held = asyncio.create_task(other.call("hold", 7))
        await holds(direct, 1)
        for library in LIBRARIES:
            client = await connect(library, encoding, g.listener.address)
            with pytest.raises(TOLD, match=f"upstream_lost: .*{endpoint(instance)}"):
                await client.call("fail")
            assert await client.call("echo", "again") == "again"
        await direct.call("release")
        assert await held == 7
    assert len(g.events("channel_lost")) == len(LIBRARIES)


# ---- what the gateway says ----


METHODS = """
[listener.methods]
refuse = "deny"
hold = { timeout = "100ms", max_inflight = 1 }
"""


@every_encoding
@every_library
async def test_what_the_gateway_says(instances: Instances, library: str, encoding: str) -> None:
    """Its errors are TApplicationException, in the client's encoding, and the connection goes on: so does an
    instance whose thread is still at work on what nobody awaits any more.
    """
    instance = instances(Kind("apache", encoding))
    service = "rpc = { exclusive = true, connections = 1 }"
    async with between(instance, listener=METHODS, service=service) as (g, connect):
        client = await connect(library, encoding, g.listener.address)
        other = await connect("thriftpy2 async", encoding, g.listener.address)
        direct = await connect(library, encoding, endpoint(instance))
        with pytest.raises(TOLD) as told:
            await client.call("refuse", "me")
        assert told.value.type == INTERNAL_ERROR
        assert told.value.message == "denied: this method is not allowed here"
        held = asyncio.create_task(other.call("hold", 1))
        await until(lambda: g.pool.loads.total == 1)
        with pytest.raises(TOLD, match="overloaded: 1 requests of hold are under way"):
            await client.call("hold", 2)
        with pytest.raises(TOLD, match=f"deadline_exceeded: .*{endpoint(instance)}"):
            await held
        assert await client.call("echo", "on") == "on"
        await direct.call("release")
        client.close()
        line = await g.line()
        assert line["errors"] == {"denied": 1, "overloaded": 1}


@every_encoding
async def test_an_instance_is_killed(tmp_path: Path, encoding: str) -> None:
    """Who waits for it is told so, of which endpoint; when it is back, the same connections are served."""
    kind, instance = Kind("thriftpy2", encoding), ("127.0.0.1", free_port())
    lost = f"upstream_lost: .*{endpoint(instance)}"
    none = "no_endpoint: service s reaches none of its 1 endpoints"
    async with AsyncExitStack() as stack:
        with served(kind, tmp_path, instance[1]):
            g, connect = await stack.enter_async_context(between(instance, service="rpc = { bulk = 0 }"))
            ends = [await connect(library, encoding, g.listener.address) for library in LIBRARIES]
            calls = [asyncio.create_task(client.call("hold", 1)) for client in ends]
            await until(lambda: g.pool.loads.total == len(LIBRARIES))
        for call in calls:
            with pytest.raises(TOLD, match=lost) as told:
                await call
            assert told.value.type == INTERNAL_ERROR
        await until(lambda: g.events("channel_failed"))
        for client in ends:
            with pytest.raises(TOLD, match=none):
                await client.call("echo", "anybody?")
        with served(kind, tmp_path, instance[1]):
            await until(lambda: channels(g))
            for client in ends:
                assert await client.call("echo", "back") == "back"
            await stack.aclose()


async def test_clients_that_are_turned_away(instances: Instances) -> None:
    """Old binary, and frames that are too large, are answered with the reason; the connection ends."""
    async with between(instances(Kind("apache")), listener='max_frame = "64KiB"') as (g, connect):
        for library in ("apache", "thriftpy2"):
            client = await connect(library, "old binary", g.listener.address)
            with pytest.raises(TOLD, match=r"bad_frame: .*have it written strict") as told:
                await client.call("echo", "x")
            assert told.value.type == PROTOCOL_ERROR
            with pytest.raises(HUNG_UP):
                await client.call("echo", "x")
        for library, encoding in product(LIBRARIES, ENCODINGS):
            client = await connect(library, encoding, g.listener.address)
            assert encoding == "compact" or await client.call("echo", "fits") == "fits"
            with pytest.raises(TOLD, match=r"frame_too_large: .*max_frame allows 65536"):
                await client.call("echo", 70_000 * "x")
            with pytest.raises(HUNG_UP):
                await client.call("echo", "x")
    assert Counter(line["reason"] for line in g.lines) == {"protocol_error": 2, "frame_too_large": 6}


@every_encoding
@every_server
async def test_a_client_in_the_wrong_encoding(instances: Instances, server: str, encoding: str) -> None:
    """Servers hang up on an encoding that is not theirs: who used it reads that in it; others are served."""
    wrong = {"binary": "compact", "compact": "binary"}[encoding]
    async with between(instances(Kind(server, wrong))) as (g, connect):
        right = await connect("apache", wrong, g.listener.address)
        for library in LIBRARIES:
            client = await connect(library, encoding, g.listener.address)
            with pytest.raises(TOLD, match=r"upstream_lost: .*the instance closed the connection"):
                await client.call("echo", "x")
            await until(lambda: channels(g) == 2)
            assert await right.call("echo", "x") == "x"
