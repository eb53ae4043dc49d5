"""Another configuration for a gateway that runs: what changes is in force, and nobody else notices."""

import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
from structlog.testing import capture_logs

from tcpgw.app.background import Background
from tcpgw.app.gateway import Gateway
from tcpgw.app.relays import Relays
from tcpgw.config.load import loads
from tcpgw.demo.cloud import Cloud
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.errors import CredentialError
from tcpgw.relay.rpc.service import RpcService
from tcpgw.relay.sockets import BindError
from tests.support import instances as streams
from tests.support.instances import account, events, members, modelarts, running
from tests.support.processes import free_port
from tests.support.rpc import Client, Instance, connected, echo, hold
from tests.support.streams import UNJUDGED, Peer, dial, in_time, listening, open_sockets, until

# ---- configurations ----


def service(*endpoints: str, name: str = "s", more: str = "", policy: str = "round_robin") -> str:
    listed = ", ".join(f'"{endpoint}"' for endpoint in endpoints)
    return f"""
        [[service]]
        name = "{name}"
        discovery = {{ type = "static", endpoints = [{listed}] }}
        balance = {{ policy = "{policy}" }}
        health = {{ {UNJUDGED} }}
        {more}
    """


def listener(route: str = '"s"', *, name: str = "l", bind: str = "127.0.0.1:0", more: str = "") -> str:
    return f"""
        [[listener]]
        name = "{name}"
        bind = "{bind}"
        route = {route}
        {more}
    """


RPC = 'mode = "rpc"'
ORDINARY = 2
"""Connections to an instance: one for all, and one for bulk."""


def rpc(*more: str, route: str = '"s"', name: str = "l", bind: str = "127.0.0.1:0") -> str:
    return listener(route, name=name, bind=bind, more="\n".join((RPC, *more)))


def hasty(text: str) -> str:
    """A drain that asks every connection at once, where nothing else is said."""
    return text if "[gateway]" in text else text + '[gateway]\ndrain = "1ms"\n'


@contextlib.asynccontextmanager
async def gateway(text: str, folder: Path = Path("/nonexistent")) -> AsyncIterator[Gateway]:
    """Run a gateway. At the end no task, socket, byte or load is left, and nothing was raised unheard."""
    before, tasks = open_sockets(), asyncio.all_tasks()
    bugs: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: bugs.append(context))
    with capture_logs():
        async with Gateway(loads(hasty(text), folder)) as made:
            yield made
    assert made.relays.memory.held == 0
    assert not any(pool.loads.total for pool in made.pools.values())
    await asyncio.sleep(0.01)
    assert not bugs, bugs
    assert asyncio.all_tasks() == tasks
    assert open_sockets() <= before


def _has(made: Gateway, endpoints: Sequence[str]) -> bool:
    return members(made) == set(endpoints)


async def reload(made: Gateway, text: str, folder: Path = Path("/nonexistent")) -> None:
    await in_time(made.reload(loads(hasty(text), folder)))


def address(made: Gateway, name: str = "l") -> tuple[str, int]:
    host, _, port = made.listeners[name].address.rpartition(":")
    return host, int(port)


@contextlib.asynccontextmanager
async def instances(count: int) -> AsyncIterator[list[Instance]]:
    """So many for rpc; what the list holds at the end is killed."""
    made = [Instance() for _ in range(count)]
    for one in made:
        await one.start()
    try:
        yield made
    finally:
        for one in made:
            one.kill()
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def client(made: Gateway, name: str = "l", **how: Any) -> AsyncIterator[Client]:
    one = await connected(made.listeners[name].address, **how)
    try:
        yield one
    finally:
        one.transport.abort()


async def name_of(peer: Peer) -> str:
    """The endpoint that an instance says it is."""
    data = b""
    while not data.endswith(b"\n"):
        data += await peer.read(1)
    return data.decode().strip()


async def is_served(peer: Peer) -> bool:
    await peer.send(b"ping")
    return await peer.read(4) == b"ping"


# ---- connections that are forwarded ----


async def test_a_split_moves_new_connections_alone() -> None:
    """After a change of weights new connections go the new way, and those there are keep their instance."""
    async with running(2) as (a, b):
        services = service(a.endpoint, name="a") + service(b.endpoint, name="b")
        split = '[ {{ service = "a", weight = {} }}, {{ service = "b", weight = {} }} ]'
        async with gateway(services + listener(split.format(1, 0))) as g:
            old = dial(address(g))
            assert await name_of(old) == a.endpoint
            await reload(g, services + listener(split.format(0, 1)))
            new = dial(address(g))
            assert await name_of(new) == b.endpoint
            assert await is_served(old)
            assert await is_served(new)
            old.close()
            new.close()


async def test_an_endpoint_that_is_written_down_is_used() -> None:
    """A static list that grows, or shrinks to a third, is in force at once, with a higher version."""
    async with running(3) as three:
        all_ = [one.endpoint for one in three]
        async with gateway(service(*all_[:1]) + listener()) as g:
            versions = []

            def version() -> Any:
                return g.relays.status()["services"]["s"]["snapshot"]["version"]

            for wanted in (all_, all_[2:]):
                versions.append(version())
                await reload(g, service(*wanted) + listener())
                await until(partial(_has, g, wanted))
                assert {await streams.ask(g, source) for source in streams.clients(6)} == set(wanted)
            versions.append(version())
            assert versions == sorted(set(versions))


async def test_a_listener_comes() -> None:
    """It accepts when the reload is over, for a new service too, and nobody else is disturbed."""
    async with running(2) as (a, b):
        before = service(a.endpoint) + listener()
        async with gateway(before) as g:
            old = dial(address(g))
            await name_of(old)
            place = g.listeners["l"]
            more = service(b.endpoint, name="t") + listener('"t"', name="m")
            await reload(g, before + more)
            new = dial(address(g, "m"))
            assert await name_of(new) == b.endpoint
            assert g.listeners["l"] is place
            assert await is_served(old)
            old.close()
            new.close()


async def test_a_listener_goes() -> None:
    """New clients are refused at once; a connection goes on to its end, and the figures stay."""
    async with running(1) as (a,):
        kept = service(a.endpoint) + listener(name="k")
        async with gateway(kept + listener()) as g:
            where = address(g)
            old = dial(where)
            await name_of(old)
            await reload(g, kept)
            assert list(g.listeners) == ["k"]
            with pytest.raises(ConnectionRefusedError):
                dial(where)
            assert [one.name for one in g.relays.draining] == ["l"]
            assert await is_served(old)
            old.fin()
            assert await old.read_to_end() == b""
            await until(lambda: not g.relays.draining)
            figures = g.relays.status()["listeners"]["l"]
            assert (figures["accepted"], figures["active"], figures["ended"]) == (
                1,
                0,
                {"client_fin": 1},
            )
            assert figures["bytes_in"] == len(b"ping")
            old.close()


async def test_figures_never_go_down() -> None:
    """What a listener counted is counted with what its successor of the same name counts."""
    async with running(1) as (a,):
        binds = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        async with gateway(service(a.endpoint) + listener(bind=binds[0])) as g:
            for count, bind in enumerate(binds, 1):
                await reload(g, service(a.endpoint) + listener(bind=bind))
                await streams.ask(g, "127.0.0.1")
                assert g.relays.status()["listeners"]["l"]["accepted"] == count
            await until(lambda: not g.relays.draining)
            assert g.relays.status()["listeners"]["l"]["accepted"] == len(binds)


async def test_a_new_name_takes_the_address_over() -> None:
    """A listener that is only called otherwise never closes its address."""
    async with running(1) as (a,):
        bind = f"127.0.0.1:{free_port()}"
        async with gateway(service(a.endpoint) + listener(bind=bind)) as g:
            old = dial(address(g))
            await name_of(old)
            await reload(g, service(a.endpoint) + listener(name="m", bind=bind))
            new = dial(address(g, "m"))
            assert await name_of(new) == a.endpoint
            assert await is_served(old)
            old.close()
            new.close()
            await until(lambda: not g.relays.draining)


async def test_two_listeners_change_places() -> None:
    """Each accepts at the other's address afterwards."""
    async with running(2) as (a, b):
        services = service(a.endpoint, name="a") + service(b.endpoint, name="b")
        one, two = (f"127.0.0.1:{free_port()}" for _ in range(2))
        text = services + listener('"a"', name="a", bind=one) + listener('"b"', name="b", bind=two)
        other = services + listener('"a"', name="a", bind=two) + listener('"b"', name="b", bind=one)
        async with gateway(text) as g:
            await reload(g, other)
            assert g.listeners["a"].address == two
            assert await streams.ask(g, "127.0.0.1", "a") == a.endpoint
            assert await streams.ask(g, "127.0.0.1", "b") == b.endpoint


async def test_who_waits_in_the_queue_is_the_successor_s() -> None:
    """A client that has connected and was not accepted yet when the codec changes gets the new one."""
    one = listener(more="max_connections = 1")
    async with instances(1) as (a,), gateway(service(a.endpoint) + one) as g:
        first = dial(address(g))
        await until(lambda: len(g.listeners["l"].connections) == 1)
        waiting = await connected(g.listeners["l"].address)
        await reload(g, service(a.endpoint) + rpc())
        assert await waiting.is_served()
        first.close()
        waiting.transport.abort()


async def test_limits_hold_for_the_next_connections() -> None:
    """Another number of connections counts at once, and time-outs for those that come."""
    async with running(1) as (a,):
        text = service(a.endpoint) + listener(more="max_connections = 1\nfin_timeout = '1s'")
        async with gateway(text) as g:
            old = dial(address(g))
            await name_of(old)
            new = dial(address(g))
            more = "max_connections = 2\nidle_timeout = '200ms'\nfin_timeout = '200ms'"
            await reload(g, service(a.endpoint) + listener(more=more))
            assert await name_of(new) == a.endpoint
            assert await new.read_to_end() == b""  # idle
            assert await is_served(old)
            old.close()
            new.close()


# ---- what cannot be done ----


async def test_an_address_that_is_taken_leaves_everything_as_it_is() -> None:
    """Not one of the changes beside it is in force, and the same configuration can be tried again."""
    async with running(2) as (a, b):
        old = service(a.endpoint, more="wait = '1s'") + listener()
        async with gateway(old) as g:
            client_ = dial(address(g))
            await name_of(client_)
            before = open_sockets(), asyncio.all_tasks(), dict(g.listeners)
            with listening() as taken:
                bind = "{}:{}".format(*taken.getsockname())
                new = (
                    service(b.endpoint)
                    + service(b.endpoint, name="t")
                    + listener(more="max_connections = 5")
                    + listener('"t"', name="free")
                    + listener('"t"', name="taken", bind=bind)
                )
                for _ in range(2):
                    with pytest.raises(BindError, match=f"cannot listen on {bind}"):
                        await reload(g, new)
                assert (open_sockets() - {*before[0]}, g.listeners) == (
                    open_sockets() & {_link(taken)},
                    before[2],
                )
            assert asyncio.all_tasks() == before[1]
            assert list(g.pools) == ["s"]
            assert members(g) == {a.endpoint}
            assert g.listeners["l"]._settings.max_connections == 10_000
            assert await is_served(client_)
            await reload(g, new)
            await until(lambda: members(g) == {b.endpoint})
            assert await streams.ask(g, "127.0.0.1", "taken") == b.endpoint
            client_.close()


def _link(sock: socket.socket) -> str:
    return str(Path(f"/proc/self/fd/{sock.fileno()}").readlink())


async def test_credentials_that_cannot_be_used_leave_everything_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither the listener nor the endpoints beside them have changed."""
    monkeypatch.setitem(__import__("sys").modules, "huaweicloudsdkcore.sdk_request", None)
    async with running(2) as (a, b), gateway(service(a.endpoint) + listener()) as g:
        cloud = """
                [cloud.modelarts]
                endpoint = "http://127.0.0.1:1"
                project_id = "p"
                auth = { type = "aksk", access_key = "a", secret_key = "s" }
            """
        new = cloud + service(b.endpoint) + modelarts("t") + listener() + listener('"t"', name="m")
        tasks = asyncio.all_tasks()
        with pytest.raises(CredentialError):
            await reload(g, new)
        assert asyncio.all_tasks() == tasks
        assert list(g.listeners) == ["l"]
        assert members(g) == {a.endpoint}


async def test_reloads_come_one_after_the_other() -> None:
    """Of several at once the last one is in force at the end, whole."""
    async with running(1) as (a,), gateway(service(a.endpoint) + listener()) as g:
        texts = [
            service(a.endpoint) + listener() + "".join(listener(name=f"m{i}") for i in range(count))
            for count in (3, 0, 2, 1)
        ]
        await asyncio.gather(*(reload(g, text) for text in texts))
        assert list(g.listeners) == ["l", "m0"]
        assert await streams.ask(g, "127.0.0.1", "m0") == a.endpoint


async def test_the_same_configuration_changes_nothing() -> None:
    """Not one object is another."""
    async with instances(1) as (a,):
        text = service(a.endpoint) + rpc()
        async with gateway(text) as g, client(g) as c:
            before = dict(g.listeners), dict(g.pools), dict(g.relays.rpc), g.pools["s"].epoch
            assert await c.is_served()
            assert not await g.reload(loads(hasty(text), Path()))
            assert before == (g.listeners, g.pools, g.relays.rpc, g.pools["s"].epoch)
            assert await c.is_served()
            assert a.accepted == ORDINARY


# ---- discovery ----


async def test_another_source_is_asked() -> None:
    """A service that is asked for elsewhere has the old endpoints until the new ones are known."""
    async with (
        running(2) as (a, b),
        Cloud({"s": [b.endpoint]}, calls_per_minute=2000) as cloud,
        gateway(service(a.endpoint) + listener()) as g,
    ):
        pool = g.pools["s"]
        await reload(g, account(cloud) + modelarts() + listener())
        assert members(g) <= {a.endpoint, b.endpoint}
        await until(lambda: members(g) == {b.endpoint})
        assert g.pools["s"] is pool
        assert pool.snapshot
        assert pool.snapshot.version == 2


async def test_an_account_is_kept() -> None:
    """Token and calls are the user's: a reload asks for no other token and forgets no call."""
    async with running(1) as (a,), Cloud({"s": [a.endpoint], "t": [a.endpoint]}) as cloud:
        text = account(cloud) + modelarts(refresh="1h") + listener()
        async with gateway(text) as g:
            kept = g._discovery._accounts["modelarts"]
            left = kept.budget.left
            more = modelarts("t", refresh="1h") + listener('"t"', name="m")
            await reload(g, text + more)
            assert g._discovery._accounts == {"modelarts": kept}
            assert kept.budget.left == left - 1
            assert members(g, "t") == {a.endpoint}
            await reload(g, text)
            assert kept.stretch() == 1.0
            assert len(kept._services) == 1


async def test_a_service_that_has_no_answer_is_waited_for_once(tmp_path: Path) -> None:
    """As long as its `wait` says, and then the rest of the reload is done."""
    async with running(1) as (a,):
        text = service(a.endpoint) + listener()
        silent = """
            [[service]]
            name = "t"
            discovery = { type = "file", path = "none.json", refresh = "10ms" }
            wait = "150ms"
        """
        async with gateway(text) as g:
            loop = asyncio.get_running_loop()
            began = loop.time()
            await reload(g, text + silent + listener('"t"', name="m"), tmp_path)
            assert loop.time() - began >= 0.14  # its clock has milliseconds
            (tmp_path / "none.json").write_text(f'["{a.endpoint}"]')
            await until(lambda: members(g, "t") == {a.endpoint})
            assert await streams.ask(g, "127.0.0.1", "m") == a.endpoint


async def test_what_is_published_before_its_service_is_configured_is_kept() -> None:
    """A snapshot may come first: it is in force when the service is."""
    async with running(2) as (a, b), gateway(service(a.endpoint) + listener()) as g:
        early = Snapshot.of("t", [Member(Endpoint.parse(b.endpoint))], taken_at=0.0, version=7)
        await g.relays.pools.publish(early)
        new = service(a.endpoint) + service(b.endpoint, name="t") + listener() + listener('"t"', name="m")
        await g.relays.apply(loads(new, Path()))
        assert g.pools["t"].snapshot is early
        assert await streams.ask(g, "127.0.0.1", "m") == b.endpoint


# ---- requests ----


async def numbers_of(c: Client, count: int) -> Counter[Any]:
    """The ids of the answers, when there are `count`; each must be a result."""
    answers = await c.got(count)
    assert all(error is None for _, _, error, _ in answers), [a for a in answers if a[2]][:3]
    return Counter(number for _, number, _, _ in answers)


class Load:
    """A client that keeps `depth` requests under way until it is stopped, in bursts and one by one."""

    def __init__(self, client: Client, depth: int, method: str = "m") -> None:
        self.client = client
        self.asked = 0
        self._depth = depth
        self._method = method
        self._stopped = False
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._stopped:
            while self.asked - len(self.client.answers) < self._depth:
                self.client.ask(self.asked, f"k{self.asked % 7}", self.asked, method=self._method)
                self.asked += 1
            await asyncio.sleep(0)

    async def end(self) -> None:
        """Stop, and have every answer exactly once."""
        self._stopped = True
        await self._task
        assert await numbers_of(self.client, self.asked) == Counter(range(self.asked))


def _asked(loads_: Sequence[Load], least: int) -> bool:
    return sum(load.asked for load in loads_) >= least


async def under_load(g: Gateway, texts: Sequence[str], *, methods: Sequence[str] = ("m",)) -> list[Client]:
    """Apply the configurations while clients ask, framed and not, one by one and many at a time."""
    async with contextlib.AsyncExitStack() as stack:
        loads_ = []
        for framed in (True, False):
            for depth in (1, 1, 3, 100):
                for method in methods:
                    one = await stack.enter_async_context(client(g, framed=framed))
                    loads_.append(Load(one, depth, method))
        for text in texts:
            asked = sum(load.asked for load in loads_)
            await until(partial(_asked, loads_, asked + 500))
            await reload(g, text)
        asked = sum(load.asked for load in loads_)
        await until(lambda: sum(load.asked for load in loads_) > asked + 500)
        for load in loads_:
            await in_time(load.end())
    return [load.client for load in loads_]


KEYED = 'balance = { policy = "maglev", key = "params[0]", table_size = 251 }'
SPLIT = '[ {{ service = "s", weight = {} }}, {{ service = "t", weight = {} }} ]'


def changes(kind: str, a: str, b: str) -> list[str]:
    """Configurations to go through, beginning and ending with the same."""

    def of(more: str = "", policy: str = "round_robin", rules: str = "", route: str = '"s"') -> str:
        services = service(a, b, more=more, policy=policy) + service(b, a, name="t", policy=policy)
        return services + rpc(rules, route=route)

    match kind:
        case "rpc":
            texts = [
                of(),
                of("rpc = { connections = 2 }"),
                of("rpc = { exclusive = true, connections = 100 }"),
            ]
        case "policy":
            texts = [of(policy=policy) for policy in ("maglev", "peak_ewma", "round_robin", "ring")]
        case "weights":
            texts = [
                of(route=SPLIT.format(*weights), policy="maglev") for weights in ((1, 0), (1, 1), (0, 1))
            ]
        case "key":
            keyed = service(a, b).replace('balance = { policy = "round_robin" }', KEYED)
            texts = [of(policy="maglev"), keyed + service(b, name="t") + rpc()]
        case "rules":
            texts = [
                of(),
                of(rules='methods = { m = { idempotent = true, hedge = "5ms", service = "t" } }'),
                of(rules='methods = { m = { idempotent = true, hedge = "p95" }, "x*" = "deny" }'),
                of(rules='methods = { "m*" = { timeout = "9s", max_inflight = 100000 } }'),
            ]
        case "deadline":
            texts = [of(), of(rules='deadline = "params[2]"'), of(rules='request_timeout = "50s"')]
        case _:
            texts = [
                of(),
                of(rules='max_inflight = 2\nmax_frame = "1KiB"\nbuffer = "4KiB"'),
                of(rules='max_inflight = 1000\nmax_frame = "32MiB"'),
            ]
    return [*texts, texts[0]]


KINDS = ["rpc", "policy", "weights", "key", "rules", "deadline", "limits"]


@pytest.mark.parametrize("kind", KINDS)
async def test_every_request_is_answered_once_across_changes(kind: str) -> None:
    """Clients that pipeline while settings change get each answer, once, and keep their connections."""
    async with instances(2) as (a, b):
        texts = changes(kind, a.endpoint, b.endpoint)
        async with gateway(texts[0]) as g:
            await under_load(g, [*texts[1:], *texts[1:]])
            assert len(g.relays.rpc) <= 2
            await until(lambda: len(g.relays._channels._running) == len(g.relays.rpc))


async def test_requests_under_way_finish_where_they_are() -> None:
    """With other `rpc` settings the old connections stay until their requests are answered, then they go."""
    async with instances(1) as (a,):
        a.behave = hold
        async with gateway(service(a.endpoint) + rpc()) as g, client(g) as c:
            for number in range(5):
                c.ask(number, number)
            await until(lambda: len(a.held) == 5)
            (old,) = g.relays.rpc.values()
            await reload(g, service(a.endpoint, more="rpc = { connections = 2 }") + rpc())
            (new,) = g.relays.rpc.values()
            assert new is not old
            a.behave = echo
            assert (await c.call("next", number=99)) == ["next"]
            assert a.accepted == ORDINARY + 3
            await asyncio.sleep(0.15)
            assert len(a.links) == ORDINARY + 3
            a.answer_all()
            assert await numbers_of(c, 6) == Counter([99, *range(5)])
            await until(lambda: len(a.links) == 3)
            status = g.relays.status()["services"]["s"]["rpc"]
            assert (status["answered"], status["failed"]) == (6, 0)


async def test_what_waits_is_sent_by_who_keeps_it() -> None:
    """Requests that wait for room when settings change go out when there is."""
    async with instances(1) as (a,):
        a.behave = hold
        more = "rpc = {{ max_inflight = {}, queue_timeout = '9s' }}"
        async with gateway(service(a.endpoint, more=more.format(1)) + rpc()) as g, client(g) as c:
            for number in range(3):
                c.ask(number, number)
            await until(lambda: len(a.held) == 1)
            await reload(g, service(a.endpoint, more=more.format(2)) + rpc())
            a.behave = echo
            a.answer_all()
            assert await numbers_of(c, 3) == Counter(range(3))


async def test_a_method_that_is_denied_is_denied_to_who_is_connected() -> None:
    """The next request is; one under way is answered. Taken back, the method is served again."""
    async with instances(1) as (a,):
        text = service(a.endpoint) + rpc()
        denied = service(a.endpoint) + rpc('methods = { "admin.*" = "deny" }')
        async with gateway(text) as g, client(g) as c, client(g, framed=False) as bare:
            a.behave = hold
            c.ask(1, "x", method="admin.stop")
            await until(lambda: a.held)
            a.behave = echo
            await reload(g, denied)
            a.answer_all()
            assert await numbers_of(c, 1) == Counter([1])
            for one in (c, bare):
                assert (await one.call("x", method="admin.stop"))["code"] == "denied"
                assert await one.is_served()
            await reload(g, text)
            for one in (c, bare):
                assert await one.call("x", method="admin.stop") == ["x"]


async def test_the_figures_of_a_rule_go_on() -> None:
    """A rule that stays counts on, whatever is changed of it."""
    async with instances(1) as (a,):
        rules = 'methods = {{ m = {{ timeout = "{}" }} }}'
        async with gateway(service(a.endpoint) + rpc(rules.format("1s"))) as g, client(g) as c:
            assert await c.is_served()
            for timeout in ("2s", "3s"):
                await reload(g, service(a.endpoint) + rpc(rules.format(timeout)))
                assert await c.is_served()
            plane = g.listeners["l"]._plane
            rule = plane.routing.rules.patterns["m"]  # type: ignore[attr-defined]
            assert rule.timeout == 3.0
            method = g.relays.status()["services"]["s"]["rpc"]["methods"]["l"]["m"]
            assert (method["latency"]["count"], method["outcomes"]) == (3, {"ok": 3})


async def test_a_route_that_is_changed_moves_the_next_requests() -> None:
    """A client that is connected asks the other service from then on."""
    async with instances(2) as (a, b):
        services = service(a.endpoint) + service(b.endpoint, name="t")
        async with gateway(services + rpc()) as g, client(g) as c:
            for instance, route in ((a, '"s"'), (b, '"t"'), (a, '"s"')):
                await reload(g, services + rpc(route=route))
                count = len(instance.requests)
                assert await c.is_served()
                assert len(instance.requests) == count + 1


async def test_a_limit_of_frames_holds_for_who_is_connected() -> None:
    """A frame above the new limit ends its connection; one that only the old limit refused passes."""
    async with instances(1) as (a,):
        texts = [service(a.endpoint) + rpc(f'max_frame = "{size}"') for size in ("1KiB", "64KiB", "1KiB")]
        async with gateway(texts[0]) as g, client(g) as c, client(g, framed=False) as bare:
            for one in (c, bare):
                assert await one.is_served()
            await reload(g, texts[1])
            for one in (c, bare):
                assert await one.call(bytes(20_000)) == [bytes(20_000)]
            await reload(g, texts[2])
            for one in (c, bare):
                one.ask(5, bytes(20_000))
                await in_time(one.ended.wait())
            packed = msgpack.packb("frame_too_large")
            assert packed
            await until(lambda: not g.listeners["l"].connections)
            assert g.relays.status()["listeners"]["l"]["ended"] == {"frame_too_large": 2}


async def test_a_client_that_was_full_is_read_again() -> None:
    """With a higher max_inflight the requests that were not read go out at once."""
    async with instances(1) as (a,):
        a.behave = hold
        async with gateway(service(a.endpoint) + rpc("max_inflight = 2")) as g, client(g) as c:
            for number in range(20):
                c.ask(number, number)
            await until(lambda: len(a.held) == 2)
            await reload(g, service(a.endpoint) + rpc("max_inflight = 50"))
            await until(lambda: len(a.held) == 20)
            a.answer_all()
            assert await numbers_of(c, 20) == Counter(range(20))


async def test_an_rpc_listener_goes() -> None:
    """Its clients get their answers and then FIN, and the connections to instances that only it used end."""
    async with instances(2) as (a, b):
        kept = service(a.endpoint) + service(b.endpoint, name="t") + rpc()
        async with gateway(kept + rpc(name="m", route='"t"')) as g, client(g, "m") as c:
            b.behave = hold
            c.ask(1, "x")
            await until(lambda: b.held)
            await reload(g, service(a.endpoint) + rpc())
            assert list(g.pools) == ["s"]
            await asyncio.sleep(0.1)
            assert b.links
            b.answer_all()
            assert await numbers_of(c, 1) == Counter([1])
            await in_time(c.ended.wait())
            await until(lambda: not b.links)
            assert len(a.links) == ORDINARY


async def test_a_service_that_comes_back_is_a_new_one() -> None:
    """Removed and added again, with its old listener still draining, it serves."""
    async with instances(1) as (a,):
        other = service(a.endpoint, name="t") + rpc(name="m", route='"t"')
        async with gateway(other + service(a.endpoint) + rpc()) as g, client(g) as c:
            a.behave = hold
            c.ask(1, "x")
            await until(lambda: a.held)
            await reload(g, other)
            a.behave = echo
            await reload(g, other + service(a.endpoint) + rpc())
            async with client(g) as new:
                assert await new.is_served()
            a.answer_all()
            assert await numbers_of(c, 1) == Counter([1])
            await in_time(c.ended.wait())
            await until(lambda: not g.relays.draining)
            await until(lambda: len(g.relays._channels._running) == 2)


async def test_longer_frames_on_one_listener_concern_the_services_of_all() -> None:
    """Answers as long as the longest listener allows pass, for the clients of each."""
    async with instances(1) as (a,):
        texts = [
            service(a.endpoint) + rpc('max_frame = "64KiB"') + rpc(f'max_frame = "{size}"', name="m")
            for size in ("64KiB", "1MiB")
        ]
        async with gateway(texts[0]) as g, client(g) as c, client(g, "m") as m:
            assert await c.is_served()
            (old,) = g.relays.rpc.values()
            await reload(g, texts[1])
            (new,) = g.relays.rpc.values()
            assert new is not old
            assert await c.is_served()
            assert await m.call(bytes(500_000)) == [bytes(500_000)]
            await reload(g, texts[0])
            assert list(g.relays.rpc.values()) == [new]


async def test_memory_is_resized() -> None:
    """rpc_memory holds from the reload on."""
    async with instances(1) as (a,):
        text = service(a.endpoint) + rpc('max_frame = "1MiB"')
        async with gateway(text) as g, client(g) as c:
            await reload(g, '[gateway]\nrpc_memory = "16MiB"\n' + text)
            assert g.relays.memory.limit == 16 << 20
            assert await c.is_served()


async def test_retries_across_a_change_find_their_place() -> None:
    """Requests whose service and rule are gone, and whose connection breaks then, are told."""
    async with instances(1) as (a,):
        rules = 'methods = { m = { service = "t", timeout = "9s" } }'
        services = service(a.endpoint) + service(a.endpoint, name="t")
        async with gateway(services + rpc(rules)) as g, client(g) as c:
            a.behave = hold
            for number in range(3):
                c.ask(number, number)
                c.ask(10 + number, number, method="other")
            await until(lambda: len(a.held) == 6)
            await reload(g, service(a.endpoint, name="u") + rpc(route='"u"'))
            a.behave = echo
            a.cut()
            answers = await c.got(6)
            assert Counter(number for _, number, _, _ in answers) == Counter([0, 1, 2, 10, 11, 12])
            assert {error["code"] for _, _, error, _ in answers} == {"upstream_lost"}
            assert await c.is_served()


async def test_what_was_never_sent_is_sent_after_a_change() -> None:
    """Requests that an instance has not read, of a service that was replaced, find another endpoint."""
    deaf, well = Instance(deaf=True), Instance()
    await deaf.start()
    await well.start()
    text = service(deaf.endpoint, policy="ring", more="rpc = { bulk = 0 }") + rpc("max_inflight = 4096")
    async with gateway(text) as g, client(g) as c:
        await until(lambda: deaf.links)
        (old,) = g.relays.rpc.values()
        for number in range(200):
            c.ask(number, number, bytes(20_000))
        await until(lambda: any(channel.paused for channel in _channels(old)))
        both = service(deaf.endpoint, well.endpoint, policy="ring", more="rpc = { bulk = 0, queue = 9 }")
        await reload(g, both + rpc("max_inflight = 4096"))
        await until(lambda: len(members(g)) == 2)
        deaf.kill()
        answers = await c.got(200)
        assert Counter(number for _, number, _, _ in answers) == Counter(range(200))
    well.kill()


def _channels(one: RpcService) -> list[Any]:
    return [channel for target in one.targets.values() for channel in target.channels]


async def test_status_is_plain() -> None:
    """All figures can be packed, and say what was asked for."""
    async with instances(1) as (a,), running(1) as (b,):
        text = service(a.endpoint) + rpc() + service(b.endpoint, name="t") + listener('"t"', name="m")
        async with gateway(text) as g, client(g) as c:
            assert await c.is_served()
            assert await streams.ask(g, "127.0.0.1", "m") == b.endpoint
            status = msgpack.unpackb(msgpack.packb(g.relays.status()))
            assert status["listeners"].keys() == {"l", "m"}
            assert status["listeners"]["l"]["active"] == 1
            known = {"weight": 1, "inflight": 0, "failed": 0, "successes": 1, "failures": {}, "picked": 1}
            of_s, of_t = (known | {"connected": connections} for connections in (2, 1))
            # Of the rpc listener: for small requests, and for large ones.
            assert status["services"]["s"]["endpoints"] == {a.endpoint: of_s}
            assert status["services"]["t"]["endpoints"] == {b.endpoint: of_t}
            counted = {"answered": 1, "failed": 0, "expired": 0, "retried": 0, "hedged": 0, "requests_cut": 0}
            drains = {"started": 0, "closed": 0, "reset": 0, "spared": 0}
            of_rpc = status["services"]["s"]["rpc"]
            assert of_rpc["methods"]["l"]["*"]["outcomes"] == {"ok": 1}
            assert {key: of_rpc[key] for key in (*counted, "drains")} == counted | {"drains": drains}
            assert "rpc" not in status["services"]["t"]


async def test_what_changed_is_logged(tmp_path: Path) -> None:
    """One line with a short line for each change, and what it takes another process for."""
    async with running(1) as (a,), gateway(service(a.endpoint) + listener()) as g:
        with capture_logs() as logs:
            log = '[gateway.log]\nlevel = "debug"\n'
            await reload(g, log + service(a.endpoint) + listener(more="max_connections = 5"), tmp_path)
        (line,) = events(logs, "reloaded")
        assert line["changes"] == [
            "gateway.log.level: info -> debug",
            "listener.l.max_connections: 10000 -> 5",
        ]
        assert line["needs_restart"] == ["gateway.log.level"]


# ---- the process that is told by another ----


async def test_sockets_are_given() -> None:
    """A listener accepts on the sockets that come with a configuration: a new one on these, others too."""
    async with running(1) as (a,), gateway(service(a.endpoint) + listener()) as g:
        given = socket.create_server(("127.0.0.1", 0))
        another = socket.create_server(("127.0.0.1", 0))
        where = another.getsockname()
        config = loads(service(a.endpoint) + listener() + listener(name="m"), Path())
        await g.relays.apply(config, {"m": (given,), "l": (another,)})
        assert address(g, "m") == given.getsockname()
        assert await streams.ask(g, "127.0.0.1", "m") == a.endpoint
        assert await streams.ask(g, "127.0.0.1", "l") == a.endpoint
        reader, writer = await in_time(asyncio.open_connection(*where))
        assert (await in_time(reader.readline())).decode().strip() == a.endpoint
        writer.close()


async def test_sockets_of_a_configuration_that_fails_are_closed() -> None:
    """Those that were given are, and those that were opened beside them."""
    async with running(1) as (a,), gateway(service(a.endpoint) + listener()) as g:
        with listening() as taken:
            bind = "{}:{}".format(*taken.getsockname())
            given = socket.create_server(("127.0.0.1", 0))
            before = open_sockets()
            new = listener() + listener(name="m") + listener(name="n") + listener(name="o", bind=bind)
            with pytest.raises(BindError):
                await g.relays.apply(loads(service(a.endpoint) + new, Path()), {"m": (given,)})
            assert given.fileno() == -1
            assert open_sockets() < before


async def test_before_the_start_a_configuration_is_taken_too() -> None:
    """Listeners that came before `start` accept with it, and not sooner."""
    async with instances(1) as (a,):
        first = loads(service(a.endpoint) + rpc(), Path())
        background = Background()
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(background.close)
            relays = await stack.enter_async_context(Relays(first, {}, background))
            await relays.pools.publish(Snapshot.of("s", [Member(Endpoint.parse(a.endpoint))], taken_at=0.0))
            more = "rpc = { connections = 3 }"
            await relays.apply(loads(service(a.endpoint, more=more) + rpc() + rpc(name="m"), Path()))
            assert a.accepted == 0
            await relays.start()
            for name in ("l", "m"):
                one = await connected(relays.listeners[name].address)
                assert await one.is_served()
                one.transport.abort()
            assert a.accepted == 4


async def test_a_listener_that_ends_meanwhile_takes_no_new_connections_along() -> None:
    """While a change connects to slow instances, another listener's end concerns only what that one used."""
    with listening(backlog=0) as slow, contextlib.ExitStack() as stack:
        for _ in range(2):  # its queue is full: it does not answer
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(slow.getsockname())
        late = "{}:{}".format(*slow.getsockname())
        async with instances(1) as (a,):
            text = service(a.endpoint) + rpc()
            async with gateway(text + rpc(name="m")) as g, client(g, "m") as m:
                a.behave = hold
                m.ask(1, "x")
                await until(lambda: a.held)
                await reload(g, text)
                connect = "connect = { timeout = '200ms' }"
                more = service(a.endpoint, late, name="t", more=connect) + rpc(name="n", route='"t"')
                reloading = asyncio.create_task(reload(g, text + more))
                await until(lambda: len(g.relays._channels._running) == 2)
                a.answer_all()
                await until(lambda: not g.relays.draining)
                assert not reloading.done()
                await reloading
                await asyncio.sleep(0.15)
                a.behave = echo
                async with client(g, "n") as n:
                    assert await n.is_served()


async def test_a_reload_that_is_cancelled_leaves_everything_as_it_is(tmp_path: Path) -> None:
    """Who gives up while a new service is waited for has nothing to clean up."""
    async with running(1) as (a,):
        text = service(a.endpoint) + listener()
        silent = """
            [[service]]
            name = "t"
            discovery = { type = "file", path = "none.json" }
        """
        async with gateway(text) as g:
            before = asyncio.all_tasks(), open_sockets()
            new = text + silent + listener('"t"', name="m")
            reloading = asyncio.create_task(g.reload(loads(new, tmp_path)))
            await until(lambda: len(asyncio.all_tasks()) > len(before[0]) + 1)
            reloading.cancel()
            await in_time(asyncio.wait([reloading]))
            assert reloading.cancelled()
            assert (asyncio.all_tasks(), open_sockets()) == before
            assert list(g.listeners) == ["l"]


async def test_another_balance_is_in_force() -> None:
    """With the policy changed the same pool and endpoints are gone through in the new way."""
    async with running(3) as three:
        all_ = [one.endpoint for one in three]
        async with gateway(service(*all_, policy="ring") + listener()) as g:
            pool = g.pools["s"]
            await until(lambda: len(members(g)) == 3)
            assert len({await streams.ask(g, "127.0.0.1") for _ in range(6)}) == 1
            await reload(g, service(*all_, policy="round_robin") + listener())
            assert g.pools["s"] is pool
            assert {await streams.ask(g, "127.0.0.1") for _ in range(6)} == set(all_)


async def test_what_requests_came_to_goes_on() -> None:
    """A fifo listener whose settings change counts on where it was, answers and those that were lost."""
    async with instances(1) as (a,):
        codec = 'mode = "rpc"\ncodec = { name = "fifo", frame = "u32be" }\n'
        async with gateway(service(a.endpoint) + listener(more=codec)) as g, client(g) as c:
            assert await c.is_served()
            await reload(g, service(a.endpoint) + listener(more=f"{codec}max_connections = 9"))
            assert await c.is_served()
            async with client(g) as new:
                assert await new.is_served()
            a.behave = hold
            c.ask(1)
            await until(lambda: a.held)
            a.cut()
            await in_time(c.ended.wait())
            await reload(g, service(a.endpoint) + listener(more=f"{codec}max_connections = 8"))
            requests = g.relays.status()["listeners"]["l"]["requests"]["s"]
            assert requests["outcomes"] == {"ok": 3, "upstream_lost": 1}
            assert requests["latency"]["count"] == 3


async def test_what_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replaced service waits for its requests so long and no longer; their clients are told."""
    monkeypatch.setattr("tcpgw.app.channels._LEAVE", 0.2)
    async with instances(1) as (a,):
        a.behave = hold
        async with gateway(service(a.endpoint) + rpc()) as g, client(g) as c:
            c.ask(1, "x")
            await until(lambda: a.held)
            await reload(g, service(a.endpoint, more="rpc = { queue = 7 }") + rpc())
            ((_, number, error, _),) = await c.got(1)
            assert (number, error["code"]) == (1, "upstream_lost")
            await until(lambda: len(a.links) == ORDINARY)
            assert g.relays.status()["services"]["s"]["rpc"]["failed"] == 1


@pytest.mark.parametrize("seed", range(3))
async def test_any_changes_in_any_order(seed: int) -> None:
    """Whatever follows whatever, every request is answered once."""
    chance = random.Random(seed)
    async with instances(2) as (a, b):
        texts = [text for kind in KINDS for text in changes(kind, a.endpoint, b.endpoint)]
        async with gateway(texts[0]) as g:
            await under_load(g, chance.choices(texts, k=25))
            await until(lambda: len(g.relays._channels._running) == len(g.relays.rpc))
