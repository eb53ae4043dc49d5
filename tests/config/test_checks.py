"""The checks that need more than one value."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tcpgw.config import checks
from tcpgw.config.schema import Config


def table(services: dict[str, str], routes: list[Any]) -> dict[str, Any]:
    """Build a configuration of services (name to balance.key), and a listener for each route."""
    return {
        "service": [
            {
                "name": name,
                "discovery": {"type": "static", "endpoints": ["10.0.0.1:80"]},
                "balance": {"policy": "random", "key": key},
            }
            for name, key in services.items()
        ],
        "listener": [
            {"name": f"l{i}", "bind": f"127.0.0.1:{i + 1}", "route": route} for i, route in enumerate(routes)
        ],
    }


def faults(config: dict[str, Any]) -> list[tuple[Any, ...]]:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate(config)
    return [error["loc"] for error in caught.value.errors()]


def test_a_configuration_made_in_python_is_checked_too() -> None:
    """No `Config` exists whose routes lead nowhere, wherever it came from."""
    assert faults(table({"a": "source_ip"}, ["a", "b"])) == [("listener", 1, "route", 0, "service")]


def test_a_split_needs_one_key() -> None:
    """Services of one route must hash alike, services of different routes need not."""
    services = {"a": "source_ip", "b": "source_ip_port", "c": "source_ip"}
    Config.model_validate(table(services, ["a", "b", [{"service": "a"}, {"service": "c"}]]))
    assert faults(table(services, [[{"service": "a"}, {"service": "b"}]])) == [("listener", 0, "route")]


def test_every_contradiction_is_reported_at_once() -> None:
    """An operator sees all of a file's contradictions in one run."""
    config = table({"a": "source_ip"}, ["b", "c"])
    config["service"].append(config["service"][0])
    config["service"].append(
        config["service"][0] | {"name": "m", "discovery": {"type": "modelarts", "service_id": "1"}}
    )
    config["listener"][1] |= {"name": "l0", "bind": "127.0.0.1:1"}
    assert faults(config) == [
        ("service", 1, "name"),
        ("listener", 1, "name"),
        ("listener", 1, "bind"),
        ("service", 2, "discovery", "cloud"),
        ("listener", 0, "route", 0, "service"),
        ("listener", 1, "route", 0, "service"),
    ]


def rpc(methods: dict[str, Any], service: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Build a configuration of service `a`, and an rpc listener that leads to it."""
    config = table({"a": "source_ip"}, ["a"])
    config["service"][0] |= service or {}
    config["listener"][0] |= {"mode": "rpc", "methods": methods} | more
    return config


def test_a_rule_leads_to_a_service() -> None:
    """Where a method goes to a service of its own, there must be one."""
    Config.model_validate(rpc({"m": {"service": "a"}, "n": "deny"}))
    assert faults(rpc({"m": {"service": "b"}})) == [("listener", 0, "methods", "m", "service")]


def test_a_hedge_comes_before_the_time_out() -> None:
    """A delay as long as the time-out in force, the rule's or else the listener's, would never hedge."""
    place = ("listener", 0, "methods", "m", "hedge")
    idempotent = {"idempotent": True}
    Config.model_validate(
        rpc({"m": idempotent | {"hedge": 1.9, "timeout": 2}, "n": idempotent | {"hedge": 59}})
    )
    Config.model_validate(rpc({"m": idempotent | {"hedge": "p95", "timeout": "1ms"}}))
    assert faults(rpc({"m": idempotent | {"hedge": 2, "timeout": 2}})) == [place]
    assert faults(rpc({"m": idempotent | {"hedge": 60}})) == [place]
    assert faults(rpc({"m": idempotent | {"hedge": 6}}, request_timeout=5)) == [place]


@pytest.mark.parametrize("key", ["method", "params[0].session"])
def test_a_key_of_requests_needs_requests(key: str) -> None:
    """A service that is balanced by request is reached by listeners that see requests, and by no others."""
    config = table({"a": key}, ["a", "a"])
    config["listener"][0] |= {"mode": "rpc"}
    config["listener"][1] |= {"mode": "rpc", "codec": "thrift-framed"}
    Config.model_validate(config)
    config["listener"][1] |= {"codec": "kafka"}
    with pytest.raises(ValidationError, match="listener 'l1' forwards whole connections to 'a'"):
        Config.model_validate(config)
    assert faults(config) == [("service", 0, "balance", "key")]
    assert faults(table({"a": key}, ["a"])) == [("service", 0, "balance", "key")]


def test_a_key_of_requests_is_no_matter_where_nobody_leads() -> None:
    """A service that is not in use yet may be balanced by request, and rules may lead to it."""
    config = table({"a": "source_ip", "b": "method"}, ["a", "a"])
    Config.model_validate(config)
    config["listener"][0] |= {"mode": "rpc", "methods": {"m": {"service": "b"}}}
    Config.model_validate(config)


def test_shared_connections_name_no_client() -> None:
    """A PROXY header names one client, so it goes with connections of one client alone."""
    send = {"send_proxy": "v2"}
    Config.model_validate(table({"a": "source_ip"}, ["a"]) | {"service": rpc({}, send)["service"]})
    config = rpc({}, send)
    assert faults(config) == [("service", 0, "send_proxy")]
    del config["listener"][0]["methods"]
    config["listener"][0]["codec"] = "u32be"
    Config.model_validate(config)


@given(memory=st.integers(16 << 20, 4 << 30), longer=st.integers(0, 1))
def test_a_frame_fits_into_memory_twice(memory: int, longer: int) -> None:
    """A request and its answer can be held at once, of the greatest length too."""
    size = min(memory // 2 + longer, 1 << 30)
    config = rpc({}, max_frame=size) | {"gateway": {"rpc_memory": memory}}
    if size <= memory // 2:
        Config.model_validate(config)
    else:
        assert faults(config) == [("listener", 0, "max_frame")]


# ---- who may use a listener ----

KEYS = {"api_keys": "keys"}
JWT = {"jwt": {"algorithms": ["ES256"], "jwks": "jwks.json", "audience": "a"}}
SERVER = {"certificates": [{"chain": "a.pem"}]}
MUTUAL = SERVER | {"client_ca": "ca.pem"}
QUOTA = {"connections": 1}


def guarded(**keys: Any) -> dict[str, Any]:
    """Build a configuration of service `a`, and a listener with these keys."""
    config = table({"a": "source_ip"}, ["a"])
    config["listener"][0] |= keys
    return config


def found(**keys: Any) -> list[str]:
    """Tell where listener 0 is faulty, as far as these keys go; nowhere where it is not."""
    try:
        Config.model_validate(guarded(**keys))
    except ValidationError as error:
        places = [error["loc"] for error in error.errors()]
        assert all(place[:2] == ("listener", 0) for place in places)
        return [".".join(map(str, place[2:])) for place in places]
    return []


def test_names_need_tls() -> None:
    """Whether it ends here or is passed through; without it no client says a name."""
    sni = {"a.example.com": "a"}
    assert found(sni=sni, tls=SERVER) == found(sni=sni, tls="passthrough") == []
    assert found(sni=sni) == ["sni"]


def test_routes_by_name_are_routes() -> None:
    """Each leads to services that there are, once, which hash alike and suit the listener."""
    services = {"a": "source_ip", "b": "listener", "m": "method"}
    config = table(services, ["a"])
    listener = config["listener"][0] | {"tls": "passthrough"}
    config["listener"] = [listener | {"sni": {"x": "b", "y": [{"service": "a"}]}}]
    Config.model_validate(config)
    for route, place in [
        ("c", ("listener", 0, "sni", "x", 0, "service")),
        ([{"service": "a"}, {"service": "a"}], ("listener", 0, "sni", "x", 1, "service")),
        ([{"service": "a"}, {"service": "b"}], ("listener", 0, "sni", "x")),
        ("m", ("service", 2, "balance", "key")),
    ]:
        config["listener"] = [listener | {"sni": {"x": route}}]
        assert faults(config) == [place]


def test_tls_that_is_passed_through_hides_all_else() -> None:
    """Frames cannot be seen, and a credential only comes before the connection, in a PROXY header."""
    assert found(tls="passthrough", mode="rpc") == ["tls"]
    assert found(tls="passthrough", access=KEYS | JWT) == ["access.api_keys", "access.jwt"]
    assert found(tls="passthrough", access=KEYS | JWT, accept_proxy=["10.0.0.0/8"]) == []
    assert found(tls="passthrough", access={"allow": ["10.0.0.0/8"]}) == []
    assert found(tls=SERVER, access=KEYS | JWT, mode="rpc") == found(access=KEYS | JWT) == []


def test_a_socket_s_clients_have_no_address() -> None:
    """What goes by addresses is refused there, one by one, and the rest is not."""
    access = {"allow": ["10.0.0.0/8"], "deny": ["10.0.0.1"]} | KEYS
    limits = {"per_source": QUOTA, "per_subject": QUOTA}
    assert found(bind="unix:/x", access=access, limits=limits) == [
        "access.allow",
        "access.deny",
        "limits.per_source",
    ]
    assert found(bind="unix:/x", access=KEYS, limits={"per_subject": QUOTA}) == []
    assert found(access=access, limits=limits) == []


@pytest.mark.parametrize(
    ("keys", "known"),
    [
        ({}, False),
        ({"tls": SERVER}, False),
        ({"tls": MUTUAL}, True),
        ({"access": KEYS}, True),
        ({"access": JWT}, True),
    ],
)
def test_only_who_is_known_has_a_name(keys: dict[str, Any], known: bool) -> None:
    """Subjects, and limits for each of them, need a credential that names one."""
    access = keys.get("access", {}) | {"subjects": {"a": {}}}
    assert found(**keys | {"access": access}) == ([] if known else ["access.subjects"])
    assert found(**keys, limits={"per_subject": QUOTA}) == ([] if known else ["limits.per_subject"])


def test_methods_are_allowed_where_they_are_seen() -> None:
    """On a listener that forwards connections such a permission could never be given."""
    access = KEYS | {"subjects": {"a": {"methods": ["x"]}, "b": {"services": ["a"]}, "c": {"methods": []}}}
    assert found(access=access, mode="rpc") == []
    places = ["access.subjects.a.methods", "access.subjects.c.methods"]
    assert found(access=access) == found(access=access, mode="rpc", codec="kafka") == places


def test_a_table_of_access_has_a_rule() -> None:
    """Who wrote one wants to keep somebody out; without a rule it would keep out nobody."""
    nothing: list[dict[str, Any]] = [{}, {"timeout": 1}, {"subjects": {}}]
    for access in nothing:
        assert found(access=access) == ["access"]
        assert found(access=access, tls=MUTUAL) == []
    for rule in ({"allow": ["::/0"]}, {"deny": ["::/0"]}, KEYS, JWT):
        assert found(access=rule) == []


def test_mutual_tls_is_enough() -> None:
    """Without names any certificate of those authorities may use everything."""
    assert found(tls=MUTUAL) == []


# ---- clouds ----


def clouds(*auths: dict[str, Any]) -> dict[str, Any]:
    common = {"endpoint": "https://m.test", "project_id": "p"}
    tables = {f"c{index}": common | {"auth": auth} for index, auth in enumerate(auths)}
    return table({"a": "source_ip"}, ["a"]) | {"cloud": tables}


PASSWORD = {"type": "password", "iam": "https://i.test", "domain": "d", "user": "u", "password": "p"}
KEY = {"type": "aksk", "access_key": "HUSH", "secret_key": "s"}


@pytest.mark.parametrize(("auth", "key"), [(PASSWORD, "user"), (KEY, "access_key")])
def test_an_iam_user_has_one_table(auth: dict[str, Any], key: str) -> None:
    """Two tables for one user would let twice the cloud's limit through; the message shows no key."""
    config = clouds(auth, PASSWORD | {"user": "other"}, KEY | {"access_key": "OTHER"}, auth)
    assert faults(config) == [("cloud", "c3", "auth", key)]
    with pytest.raises(ValidationError, match=r"\[cloud\.c0\] is the same IAM user") as caught:
        Config.model_validate(config)
    assert "HUSH" not in str(caught.value)


def test_iam_users_are_told_apart() -> None:
    """The same name in another account, or at another IAM, is another user."""
    others = [PASSWORD | {"domain": "e"}, PASSWORD | {"iam": "https://j.test"}, KEY]
    assert len(Config.model_validate(clouds(PASSWORD, *others)).cloud) == 4


@given(st.integers(2, 20_000))
def test_primes_pass_and_others_name_the_next(number: int) -> None:
    """A number passes exactly if nothing divides it; else the message names a prime that passes."""
    divides = any(number % divisor == 0 for divisor in range(2, number))
    try:
        assert checks.prime(number) == number
        assert not divides
    except ValueError as error:
        assert divides
        following = int(str(error).rpartition(" ")[2])
        assert checks.prime(following) == following > number


@pytest.mark.parametrize(
    "name", ["redis", "redis.internal", "_redis._tcp.internal.", "a-1.example.com", "xn--bcher-kva.de"]
)
def test_names_of_the_dns_pass(name: str) -> None:
    """Host names and SRV names are taken as they stand."""
    assert checks.dns_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "a..b", "a b", "a:53", "10.0.0.1", "::1", "x" * 64, "x." * 128, "a\n"]
)
def test_what_the_dns_cannot_hold_is_refused(name: str) -> None:
    """Addresses, empty and too long labels, ports and spaces are refused when the file is read."""
    with pytest.raises(ValueError, match=r"is no name in the DNS|is an address"):
        checks.dns_name(name)
