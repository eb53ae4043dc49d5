"""The composition root: what the configuration's words stand for, and starts that fail."""

import asyncio
import contextlib
import gc
import ipaddress
import socket
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tcpgw.app.balancing import make_hash, make_policy
from tcpgw.app.gateway import Gateway
from tcpgw.app.sources import make_sources
from tcpgw.balancing import hashing
from tcpgw.balancing.loads import Loads
from tcpgw.config import schema
from tcpgw.config.load import loads
from tcpgw.discovery.dns import DnsSource
from tcpgw.discovery.file import FileSource
from tcpgw.discovery.modelarts import ModelArtsSource
from tcpgw.discovery.static import StaticSource
from tcpgw.endpoints import Endpoint, Member
from tcpgw.errors import CredentialError, DiscoveryError
from tcpgw.relay.session import Someone
from tcpgw.relay.sockets import BindError
from tests.support.instances import events, listener, modelarts
from tests.support.processes import relaying
from tests.support.streams import in_time, listening, open_sockets, until

EIGHT = {Endpoint(f"10.0.0.{octet}", 80): 1 for octet in range(1, 9)}
POSITIONS = range(0, 1 << 32, 1 << 25)

CLOUD = """
    [cloud.{name}]
    endpoint = "http://127.0.0.1:1"
    project_id = "p"
    auth = {auth}
"""
TOKEN = '{ type = "token", token = "t" }'
FILE = """
    [[service]]
    name = "s"
    discovery = { type = "file", path = "list.json", refresh = "10ms" }
    wait = "100ms"
"""


@contextlib.asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """What happens inside must leave no task and no socket behind."""
    before, tasks = open_sockets(), asyncio.all_tasks()
    yield
    gc.collect()  # a socket in a cycle is closed only now, with a ResourceWarning, which is an error
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == tasks
    assert open_sockets() <= before


# ---- starts that fail ----


async def test_a_second_bind_that_fails_leaves_nothing_open() -> None:
    """The error names the address, and the first listener's is free again at once."""
    with listening() as taken, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = "{}:{}".format(*probe.getsockname())
        probe.close()
        bind = "{}:{}".format(*taken.getsockname())
        config = relaying([("127.0.0.1", 9)]).replace("127.0.0.1:0", free) + listener(name="m", bind=bind)
        async with nothing_left():
            with pytest.raises(BindError, match=f"cannot listen on {bind}: Address already in use"):
                await in_time(Gateway(loads(config, Path())).__aenter__())
        host, _, port = free.rpartition(":")
        with socket.create_server((host, int(port)), reuse_port=False):
            pass


async def test_credentials_that_cannot_be_used_leave_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start without the signer that its credentials need is refused, with what to install."""
    monkeypatch.setitem(sys.modules, "huaweicloudsdkcore.sdk_request", None)
    auth = '{ type = "aksk", access_key = "a", secret_key = "s" }'
    config = CLOUD.format(name="modelarts", auth=auth) + modelarts() + listener()
    async with nothing_left():
        with pytest.raises(CredentialError, match=r"cloud.modelarts.auth .* pip install 'tcpgw\[aksk\]'"):
            await in_time(Gateway(loads(config, Path())).__aenter__())


async def test_a_start_that_is_cancelled_leaves_nothing_open() -> None:
    """Who gives up while it waits for the first snapshot has nothing to clean up."""
    with listening() as api:  # it takes connections and says nothing
        cloud = CLOUD.format(name="modelarts", auth=TOKEN).replace(
            "127.0.0.1:1", f"127.0.0.1:{api.getsockname()[1]}"
        )
        async with nothing_left():
            starting = asyncio.create_task(
                Gateway(loads(cloud + modelarts() + listener(), Path())).__aenter__()
            )
            called, _ = await in_time(asyncio.get_running_loop().sock_accept(api))
            starting.cancel()
            await in_time(asyncio.wait([starting]))
            assert starting.cancelled()
            called.close()
            del starting


# ---- bugs in what runs in the background ----


class BugError(Exception):
    """Nobody handles it."""


async def test_a_bug_in_discovery_during_the_start_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no one foresaw is raised by the start instead of waited out, and nothing is left open."""

    async def fetch(_: FileSource) -> Sequence[Member]:
        raise BugError

    monkeypatch.setattr(FileSource, "fetch", fetch)
    config = FILE.replace("100ms", "1h") + listener()
    async with nothing_left():
        with pytest.raises(BugError):
            await in_time(Gateway(loads(config, Path())).__aenter__())


async def test_a_bug_in_discovery_is_not_survived(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`failed` waits while all is well, although sources fail, and then raises what a watcher died of."""
    bug = asyncio.Event()

    async def fetch(_: FileSource) -> Sequence[Member]:
        if bug.is_set():
            raise BugError
        raise DiscoveryError("no answer today")

    monkeypatch.setattr(FileSource, "fetch", fetch)
    with capture_logs() as logs:
        async with nothing_left(), Gateway(loads(FILE + listener(), tmp_path)) as gateway:
            failed = asyncio.create_task(gateway.failed())
            await until(lambda: events(logs, "discovery_failed"))
            assert not failed.done()
            bug.set()
            with pytest.raises(BugError):
                await in_time(failed)


# ---- sources ----


def test_each_kind_of_discovery_has_its_source(tmp_path: Path) -> None:
    """The sources stand by their services' names, and only those asked for are made."""
    config = loads(
        CLOUD.format(name="modelarts", auth=TOKEN)
        + modelarts("api")
        + FILE.replace('"s"', '"file"')
        + """
        [[service]]
        name = "dns"
        discovery = { type = "dns", name = "a.test", port = 80 }
        """
        + relaying([("127.0.0.1", 9)]),
        tmp_path,
    )
    made = make_sources(config, config.service)
    kinds = {"api": ModelArtsSource, "file": FileSource, "dns": DnsSource, "s": StaticSource}
    assert {name: type(source) for name, source in made.items()} == kinds
    assert list(make_sources(config, config.service[:1])) == ["api"]


def test_services_of_one_user_share_its_budget() -> None:
    """A second service of the same cloud halves the share of the first, and another cloud's does not."""
    services = modelarts("a", refresh="10s") + modelarts("b", refresh="10s")
    other = modelarts("c", refresh="10s").replace('type = "modelarts"', 'type = "modelarts", cloud = "other"')
    clouds = "".join(CLOUD.format(name=name, auth=TOKEN) for name in ("modelarts", "other"))
    config = loads(clouds + services + other + listener('"a"'), Path())
    a, b, c = (made for made in make_sources(config, config.service).values())
    assert isinstance(a, ModelArtsSource)
    assert isinstance(b, ModelArtsSource)
    assert isinstance(c, ModelArtsSource)
    assert a._account is b._account
    assert a._account.budget is not c._account.budget


async def test_a_static_list_is_not_stored(tmp_path: Path) -> None:
    """A list that stands in the configuration has no older form to fall back to; a file's has."""
    (tmp_path / "list.json").write_text('["127.0.0.1:9"]')
    state = f'[gateway]\nstate_dir = "{tmp_path / "state"}"\n'
    config = state + FILE.replace('"s"', '"file"') + relaying([("127.0.0.1", 9)])
    stored = tmp_path / "state/snapshots"
    with capture_logs():
        async with Gateway(loads(config, tmp_path)):
            await until((stored / "file.json").exists)
    assert [file.name for file in stored.iterdir()] == ["file.json"]


# ---- policies ----

POLICIES = ["maglev", "ring", "least_request", "peak_ewma", "round_robin", "random"]


def balance(policy: str, **more: object) -> schema.Balance:
    return schema.Balance.model_validate({"policy": policy, **more})


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_an_order_of_all(policy: str) -> None:
    """Whatever the policy: each endpoint once, whoever is asked, and a word on how."""
    made = make_policy(balance(policy), EIGHT, Loads(lambda: 0.0))
    for position in POSITIONS[:16]:
        order = list(made.candidates(position))
        assert sorted(order) == sorted(EIGHT)
    assert made.explain(0).startswith(policy.replace("_", " ").split()[0])


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_can_have_nobody(policy: str) -> None:
    """A confirmed empty list builds, and gives no candidate."""
    made = make_policy(balance(policy), {}, Loads(lambda: 0.0))
    assert list(made.candidates(7)) == []
    assert made.explain(7)


@pytest.mark.parametrize("policy", ["maglev", "ring"])
def test_bounded_load_is_the_default_and_can_be_off(policy: str) -> None:
    """By default an endpoint far above its share is passed over; with bounded_load = 0 it is not."""
    loads_ = Loads(lambda: 0.0)
    off = make_policy(balance(policy, bounded_load=0), EIGHT, loads_)
    on = make_policy(balance(policy), EIGHT, loads_)
    first = next(off.candidates(7))
    assert next(on.candidates(7)) == first
    for _ in range(100):
        loads_.begin(first)
    assert next(off.candidates(7)) == first
    assert next(on.candidates(7)) != first
    assert "bounded load 1.25" in on.explain(7)


def test_the_table_has_the_size_that_was_asked_for() -> None:
    """`table_size` is Maglev's."""
    made = make_policy(balance("maglev", table_size=251), EIGHT, Loads(lambda: 0.0))
    assert "of 251" in made.explain(7)


# ---- keys ----

SEVEN = Someone(("10.0.0.7", 40000))
NOWHERE = Someone(None)  # of a Unix socket


def test_source_ip_is_the_address_alone() -> None:
    """A client's port does not matter, and the hash is the kernel's."""
    hash_ = make_hash("source_ip", "l", hashing.SEED)
    assert hash_(SEVEN) == hash_(Someone(("10.0.0.7", 50000)))
    assert hash_(Someone(("10.0.0.7", 1))) == hashing.jhash(
        ipaddress.ip_address("10.0.0.7").packed, hashing.SEED
    )
    assert hash_(Someone(("10.0.0.8", 1))) != hash_(Someone(("10.0.0.7", 1)))


def test_source_ip_port_is_both() -> None:
    """Two connections of one client are two keys."""
    hash_ = make_hash("source_ip_port", "l", hashing.SEED)
    assert hash_(SEVEN) == hashing.source_ip_port("10.0.0.7", 40000, hashing.SEED)
    assert hash_(SEVEN) != hash_(Someone(("10.0.0.7", 40001)))


def test_a_listener_is_one_key() -> None:
    """All clients of a listener go to one endpoint, and another listener's may go elsewhere."""
    hash_ = make_hash("listener", "l", hashing.SEED)
    assert hash_(SEVEN) == hash_(Someone(("10.0.0.8", 1))) == hash_(NOWHERE) == hashing.other(b"l")
    assert hash_(NOWHERE) != make_hash("listener", "m", hashing.SEED)(NOWHERE)


@pytest.mark.parametrize("key", ["source_ip", "source_ip_port"])
def test_a_client_without_an_address_is_spread(key: str) -> None:
    """Clients of a Unix socket have nothing to keep them with one endpoint."""
    hash_ = make_hash(key, "l", hashing.SEED)
    positions = {hash_(NOWHERE) for _ in range(100)}
    assert len(positions) > 90
    assert all(0 <= position < 1 << 32 for position in positions)


@pytest.mark.parametrize("key", ["source_ip", "source_ip_port", "listener"])
def test_another_seed_is_another_choice(key: str) -> None:
    """The position by which a split chooses says nothing about the one that chooses the endpoint."""
    by_split, by_policy = (make_hash(key, "l", seed) for seed in (hashing.SPLIT_SEED, hashing.SEED))
    assert by_split(SEVEN) != by_policy(SEVEN)


async def test_tables_are_built_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop's thread does not build them."""
    builders: list[threading.Thread] = []

    def note(*args: object) -> object:
        builders.append(threading.current_thread())
        return make_policy(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("tcpgw.app.pools.make_policy", note)
    with capture_logs():
        async with Gateway(loads(relaying([("127.0.0.1", 9)]), Path())):
            pass
    assert len(builders) == 1
    assert builders[0] is not threading.main_thread()


async def test_a_reload_while_files_are_taken(tmp_path: Path) -> None:
    """A file that changes during a reload brings the configuration before it back in no part."""
    (tmp_path / "keys").write_text("# nobody")
    text = relaying([("127.0.0.1", 9)], listener='access = { api_keys = "keys" }')
    one, two = loads(text, tmp_path), loads(text + listener(name="m"), tmp_path)
    async with nothing_left(), Gateway(one) as gateway:
        contents = {"listener[0].access.api_keys": b"# changed"}
        async with gateway.relays._one:  # as another change has it
            reload = asyncio.create_task(gateway.reload(two))
            await until(lambda: gateway.relays._one._waiters)
            taking = asyncio.create_task(gateway._take(contents))
            await asyncio.sleep(0)
        await in_time(reload)
        await in_time(taking)
        assert gateway.listeners.keys() == {"l", "m"}
        assert gateway.relays.contents == {"listener[0].access.api_keys": b"# nobody"}
