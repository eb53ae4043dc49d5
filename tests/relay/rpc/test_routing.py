"""Which rule, service and position a request has: said by its method, by a field, or by its client."""

import tracemalloc
from collections.abc import Mapping
from typing import Any, cast

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.balancing import hashing
from tcpgw.relay.rpc.routing import Key, Routing, Rule, Rules
from tcpgw.relay.rpc.service import RpcService
from tcpgw.relay.session import Someone
from tcpgw.wire.field import Field
from tcpgw.wire.msgpack_rpc import MsgpackRpc

CODEC = MsgpackRpc(framed=True)
HOST = "10.0.0.7"
CLIENT = Someone((HOST, 40000))
# To routing, services are names.
A, B, C = cast("tuple[RpcService, RpcService, RpcService]", ("a", "b", "c"))


def rule(name: str = "", **settings: Any) -> Rule:
    return Rule(name, timeout=60.0, **settings)


def rules_of(*patterns: str, default: Rule | None = None) -> Rules:
    return Rules(default or rule(), {pattern: rule(pattern) for pattern in patterns})


# ---- rules ----


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("predict", "predict"),
        ("predict2", "predict*"),
        ("predict.batch", "predict.*"),
        ("predict.batch.one", "predict.batch.*"),
        ("predic", "p*"),
        ("other", "*"),
        ("", "*"),
    ],
)
def test_the_exact_name_counts_before_the_longest_prefix(method: str, name: str) -> None:
    """Of all patterns that fit, the exact name wins, then the longest prefix, whatever their order."""
    patterns = ["*", "p*", "predict.*", "predict", "predict.batch.*", "predict*"]
    for order in (patterns, patterns[::-1]):
        assert rules_of(*order).of(method.encode()).name == name


def test_what_no_pattern_fits_has_the_default() -> None:
    """Without a pattern that fits, the listener's own rule holds; all rules can be asked for their counts."""
    rules = rules_of("predict", "admin.*", default=rule("default"))
    for method in (b"predict2", b"admin", b"", b"\xff\xfe"):
        assert rules.of(method) is rules.default
    assert [one.name for one in rules.all] == ["default", "predict", "admin.*"]


names = st.text("ab.*", max_size=4)


@given(st.sets(names, max_size=6), st.lists(st.text("ab.", max_size=5), max_size=12))
def test_a_method_has_the_same_rule_each_time(patterns: set[str], methods: list[str]) -> None:
    """Asked again, in any order, a method has the rule that the patterns say."""
    rules = rules_of(*patterns)
    for method in [*methods, *reversed(methods)]:
        prefixes = [p for p in patterns if p.endswith("*") and method.startswith(p[:-1])]
        exact = method if method in patterns and not method.endswith("*") else None
        expected = exact if exact is not None else max(prefixes, key=len, default="")
        assert rules.of(method.encode()).name == expected


def test_names_that_clients_make_up_take_bounded_memory() -> None:
    """However many methods are asked for, a thousand names are remembered, and every one has its rule."""
    rules = rules_of("predict", "admin.*")
    for number in range(2000):
        rules.of(b"made up %d" % number)
    tracemalloc.start()
    try:
        for number in range(20_000):
            assert rules.of(b"admin.%d" % number).name == "admin.*"
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 10_000
    assert rules.of(b"predict").name == "predict"


# ---- keys ----


def of_client(seed: int) -> Any:
    return lambda client: hashing.source_ip(client.address[0], seed)


def key(seed: int = hashing.SEED, **how: Any) -> Key:
    return Key(of_client(seed), lambda data: hashing.other(data, seed), **how)


def routing_of(
    keys: Mapping[RpcService, Key], *, split: Key | None = None, rules: Rules | None = None
) -> Routing:
    services = list(keys)
    return Routing(
        rules or rules_of(),
        lambda position: services[hashing.bucket(position, len(services))],
        split or key(hashing.SPLIT_SEED),
        keys,
    )


def found(
    routing: Routing, params: Any = (), *, method: bytes = b"predict", of: Rule | None = None
) -> tuple[RpcService, int]:
    """Where a request of the client goes; `params` is packed, unless it is bytes already."""
    name: bytes = msgpack.packb(method.decode())
    head = name + (params if isinstance(params, bytes) else msgpack.packb(params))
    home = routing.home(CLIENT)
    return routing.find(CODEC, method, head, of or routing.rules.of(method), home, CLIENT)


def test_a_key_of_the_client_s_stays() -> None:
    """Without anything of a request's own, all requests of a client go to its home."""
    routing = routing_of({A: key()})
    home = routing.home(CLIENT)
    assert home == (A, hashing.source_ip(HOST))
    assert found(routing, [{"session": "x"}]) == found(routing, method=b"other") == home


SESSIONS = [
    [{"session": "s-1", "user": 2}],
    [{b"session": b"s-1"}, None],
    [{"other": ["session"], "session": "s-1"}, bytes(1000)],
]


def test_equal_fields_go_the_same_way() -> None:
    """A field's value is the key, whatever stands around it and however it is encoded."""
    routing = routing_of({A: key(field=Field((0, "session")))})
    assert {found(routing, params) for params in SESSIONS} == {(A, hashing.other(b"s-1"))}
    assert found(routing, [{"session": "s-2"}]) == (A, hashing.other(b"s-2"))
    number = routing_of({A: key(field=Field((1,)))})
    assert found(number, [0, 7]) == found(number, [0, "7"]) == (A, hashing.other(b"7"))


@pytest.mark.parametrize(
    "params",
    [
        [],
        [{}],
        [{"session": None}],
        [{"session": [1]}],
        ["session"],
        {},
        None,
        b"",
        b"\xc1",
        b"\x91\x81\xa7s",
    ],
)
def test_without_its_field_a_request_has_its_client_s_key(params: Any) -> None:
    """Absent, of a type that is none to hash, cut off or malformed: the client's address is the key."""
    routing = routing_of({A: key(field=Field((0, "session")))})
    assert found(routing, params) == routing.home(CLIENT)


def test_the_method_may_be_the_key() -> None:
    """Requests of one method go the same way, whoever sends them."""
    routing = routing_of({A: key(by_method=True)})
    assert found(routing, method=b"predict") == (A, hashing.other(b"predict"))
    assert found(routing, method=b"train") == (A, hashing.other(b"train"))


# ---- services ----


def test_a_rule_s_service_comes_before_the_split() -> None:
    """A method with a service of its own goes there, by that service's key."""
    rules = Rules(rule(), {"train": rule("train", service=C), "infer": rule("infer", service=B)})
    keys = {A: key(), B: key(99), C: key(field=Field((0,)))}
    for split in (None, key(hashing.SPLIT_SEED, by_method=True)):
        routing = routing_of(keys, split=split, rules=rules)
        assert found(routing, ["x"], method=b"train") == (C, hashing.other(b"x"))
        assert found(routing, [], method=b"train") == (C, hashing.source_ip(HOST))
        assert found(routing, ["x"], method=b"infer") == (B, hashing.source_ip(HOST, 99))


def test_a_rule_s_service_that_is_home_keeps_the_client_s_position() -> None:
    """Where the client's requests go anyway, its own position holds, which was made once."""
    routing = routing_of({A: key()}, rules=Rules(rule(), {"infer": rule("infer", service=A)}))
    home = (A, 12345)
    assert routing.find(CODEC, b"infer", b"", routing.rules.of(b"infer"), home, CLIENT) == home


def test_the_split_goes_by_the_client() -> None:
    """A client whose requests have no key of their own has one service for all of them."""
    routing = routing_of({A: key(), B: key()})
    homes = {routing.home(Someone((f"10.0.0.{host}", 1)))[0] for host in range(1, 40)}
    assert homes == {A, B}
    assert found(routing, method=b"one")[0] == found(routing, method=b"two")[0] == routing.home(CLIENT)[0]


def test_the_split_goes_by_the_request_s_own_key() -> None:
    """With a field as key, equal values have one service and one position there, and all services some."""
    field: dict[str, Any] = {"field": Field((0,))}
    routing = routing_of({A: key(**field), B: key(**field)}, split=key(hashing.SPLIT_SEED, **field))
    ways = {session: found(routing, [session]) for session in map(str, range(40))}
    assert {service for service, _ in ways.values()} == {A, B}
    for session, (service, position) in ways.items():
        split = hashing.bucket(hashing.other(session.encode(), hashing.SPLIT_SEED), 2)
        assert (service, position) == ((A, B)[split], hashing.other(session.encode()))
        assert found(routing, [session, "more"]) == ways[session]
    assert found(routing, []) == routing.home(CLIENT)


# ---- what needs no look ----


def test_requests_that_need_no_look_are_plain() -> None:
    """Only where neither rule, key, split nor deadline asks for anything of a request, runs may pass."""
    default = rule()
    assert routing_of({A: key()}, rules=Rules(default, {})).plain is default
    assert routing_of({A: key()}, rules=rules_of("predict")).plain is None
    assert routing_of({A: key(), B: key(by_method=True)}).plain is None
    assert routing_of({A: key()}, split=key(field=Field((0,)))).plain is None
    deadline = Field((1,))
    routing = Routing(rules_of(), lambda _: A, key(), {A: key()}, deadline=deadline)
    assert routing.plain is None
    assert routing.looks
    assert not routing.by_name
    assert routing.deadline is deadline


def encoded(method: str) -> bytes:
    packed: bytes = msgpack.packb(method)
    return packed


def test_names_alone_decide_where_nothing_else_is_looked_at() -> None:
    """Requests of rules that only time and rank them pass in runs of one name; the others are looked at."""
    special = {
        "idempotent": rule("idempotent", idempotent=True),
        "limited": rule("limited", limit=5),
        "admin.*": rule("admin.*", denied=True),
        "elsewhere": rule("elsewhere", service=B),
    }
    timed = {"timed": rule("timed", priority=2)}
    routing = routing_of({A: key(), B: key()}, rules=Rules(rule("default"), special | timed))
    assert routing.by_name
    assert not routing.looks
    for _ in range(2):  # the second time it is remembered
        for method in ("idempotent", "limited", "admin.stop", "elsewhere"):
            assert routing.ordinary(CODEC, encoded(method)) is None
        assert routing.ordinary(CODEC, encoded("timed")) is timed["timed"]
        assert routing.ordinary(CODEC, encoded("any")) is routing.rules.default
        assert routing.ordinary(CODEC, b"") is None


def test_names_are_remembered_up_to_a_limit() -> None:
    """Clients choose them, so however many come, all are answered and few are kept."""
    routing = routing_of({A: key()}, rules=rules_of("one"))
    for place in range(3000):
        assert routing.ordinary(CODEC, encoded(f"name {place}")) is routing.rules.default
    assert len(routing._by_name) == 1024
