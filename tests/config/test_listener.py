"""What a configuration may say of a listener, and what it means where it says nothing."""

from typing import Any

import pytest
from pydantic import ValidationError

from tcpgw.config.access import Access, Limits
from tcpgw.config.codec import Codec
from tcpgw.config.listener import Listener, Method, Route
from tcpgw.config.tls import ServerTls
from tcpgw.config.values import Bind

LEAST = {"name": "l", "bind": "0.0.0.0:0", "route": "s"}
RPC = LEAST | {"mode": "rpc"}
OF_RPC = {
    "codec": "msgpack-rpc",
    "max_frame": "16MiB",
    "frame_timeout": "30s",
    "request_timeout": "60s",
    "deadline": "params[0]",
    "max_inflight": 256,
    "methods": {"predict": "deny"},
}
OF_REQUESTS = ("request_timeout", "deadline", "max_inflight", "methods")


def refusal(table: dict[str, Any]) -> list[tuple[tuple[Any, ...], str]]:
    with pytest.raises(ValidationError) as caught:
        Listener.model_validate(table)
    return [(error["loc"], error["msg"]) for error in caught.value.errors()]


def test_defaults_are_those_that_operators_expect() -> None:
    """What is left out has the values of the design's table."""
    listener = Listener.model_validate(LEAST)
    assert (listener.mode, listener.plane, listener.max_connections) == ("tcp", "auto", 10_000)
    assert (listener.idle_timeout, listener.fin_timeout, listener.keepalive) == (3600, 30, 60)
    assert (listener.accept_proxy, listener.proxy_timeout, listener.max_age) == ((), 5, None)
    assert listener.route == (Route(service="s", weight=1),)
    assert listener.bind == Bind("0.0.0.0", 0)
    assert (listener.sni, listener.tls, listener.access, listener.limits) == ({}, None, Access(), Limits())


def test_defaults_of_rpc() -> None:
    """An rpc listener speaks the project's own form, with the limits of the design's table."""
    listener = Listener.model_validate(RPC)
    assert (listener.plane, listener.codec) == ("auto", Codec(name="msgpack-rpc"))
    assert (listener.max_frame, listener.frame_timeout, listener.request_timeout) == (16 << 20, 30, 60)
    assert (listener.deadline, listener.max_inflight, listener.methods) == (None, 256, {})
    assert Method() == Method(
        service=None, timeout=None, idempotent=False, hedge=None, priority="normal", max_inflight=None
    )


@pytest.mark.parametrize("key", OF_RPC)
@pytest.mark.parametrize("value", ["as it may be", "wrong"])
def test_keys_of_rpc_stand_on_no_tcp_listener(key: str, value: str) -> None:
    """Such a key would do nothing, so it is refused by name, whatever stands there."""
    for mode in ({}, {"mode": "tcp"}):
        ((loc, message),) = refusal(LEAST | mode | {key: OF_RPC[key] if value != "wrong" else 0})
        assert loc == (key,)
        assert 'take it out, or write mode = "rpc"' in message


@pytest.mark.parametrize("codec", ["kafka", {"name": "fifo", "frame": "u32be"}])
def test_keys_of_requests_need_a_codec_that_knows_them(codec: Any) -> None:
    """Where connections are forwarded, each key about requests is refused by name."""
    frames = {"codec": codec, "max_frame": "1MiB", "frame_timeout": 5}
    listener = Listener.model_validate(RPC | frames)
    assert not listener.by_request
    found = refusal(RPC | frames | {key: OF_RPC[key] for key in OF_REQUESTS})
    assert [loc for loc, _ in found] == [(key,) for key in OF_REQUESTS]
    assert all("forwards whole connections and sees no requests" in message for _, message in found)


@pytest.mark.parametrize("codec", ["msgpack-rpc", "msgpack-rpc-stream", "thrift-framed"])
def test_correlating_codecs_balance_requests(codec: str) -> None:
    """With these all keys may stand."""
    listener = Listener.model_validate(RPC | OF_RPC | {"codec": codec})
    assert listener.by_request
    assert listener.deadline == (0,)
    assert not Listener.model_validate(LEAST).by_request


def test_a_wrong_codec_is_one_fault() -> None:
    """What hangs on the codec is not blamed as well."""
    assert [loc for loc, _ in refusal(RPC | OF_RPC | {"codec": "http"})] == [("codec",)]
    assert [loc for loc, _ in refusal(LEAST | OF_RPC | {"mode": "http"})] == [("mode",)]


@pytest.mark.parametrize(
    ("mode", "plane", "fits"),
    [
        ("tcp", "auto", True),
        ("tcp", "stream", True),
        ("tcp", "rpc", False),
        ("rpc", "auto", True),
        ("rpc", "rpc", True),
        ("rpc", "stream", False),
    ],
)
def test_a_plane_serves_one_mode(mode: str, plane: str, fits: bool) -> None:
    """A plane that was asked for by name is that plane, or a fault."""
    table = LEAST | {"mode": mode, "plane": plane}
    if fits:
        assert Listener.model_validate(table).plane == plane
    else:
        ((loc, message),) = refusal(table)
        assert loc == ("plane",)
        assert message.endswith('write "auto" or take it out')


def test_rules_are_read() -> None:
    """A method's rule is a table or the one word."""
    rule = {"service": "v2", "timeout": "2s", "idempotent": True, "hedge": "p95", "priority": "high"}
    methods = {"predict": rule, "embed.*": {"idempotent": True, "hedge": "20ms"}, "admin.*": "deny", "*": {}}
    listener = Listener.model_validate(RPC | {"methods": methods})
    assert listener.methods == {
        "predict": Method(service="v2", timeout=2, idempotent=True, hedge="p95", priority="high"),
        "embed.*": Method(idempotent=True, hedge=0.02),
        "admin.*": "deny",
        "*": Method(),
    }
    assert list(listener.methods) == list(methods)


@pytest.mark.parametrize("pattern", ["", "**", "*.predict", "a*b", "a**"])
def test_a_pattern_has_its_star_at_the_end(pattern: str) -> None:
    """A rule that would match in another way than its writer thinks is refused."""
    ((loc, message),) = refusal(RPC | {"methods": {pattern: "deny"}})
    assert loc == ("methods", pattern, "[key]")
    assert "write a name, or its beginning and then one *" in message


@pytest.mark.parametrize("hedge", ["p95", "20ms"])
def test_only_what_may_run_twice_is_hedged(hedge: str) -> None:
    """A hedged request reaches two instances, so its method must be declared idempotent."""
    for declared in ({}, {"idempotent": False}):
        ((loc, message),) = refusal(RPC | {"methods": {"a": declared | {"hedge": hedge}}})
        assert loc[-1] == "hedge"
        assert "needs idempotent = true" in message


def test_other_names_have_other_routes() -> None:
    """A name's route is written like the listener's own."""
    sni = {"a.example.com": "a", "*.example.com": [{"service": "b", "weight": 2}, {"service": "c"}]}
    listener = Listener.model_validate(LEAST | {"sni": sni})
    assert listener.sni == {
        "a.example.com": (Route(service="a"),),
        "*.example.com": (Route(service="b", weight=2), Route(service="c")),
    }


@pytest.mark.parametrize("route", [[], [{"service": "a", "weight": 0}]])
def test_every_route_has_a_share(route: list[Any]) -> None:
    """A route that would serve nothing is refused, whether it is the listener's or a name's."""
    assert [loc for loc, _ in refusal(LEAST | {"route": route})] == [("route",)]
    assert [loc for loc, _ in refusal(LEAST | {"sni": {"a": route}})] == [("sni", "a")]


SERVER = {"certificates": [{"chain": "a.pem"}]}
KEYS = {"api_keys": "keys"}
JWT = {"jwt": {"algorithms": ["ES256"], "jwks": "jwks.json", "audience": "a"}}


@pytest.mark.parametrize(
    ("table", "ends", "by_credential"),
    [
        ({}, False, False),
        ({"tls": "passthrough"}, False, False),
        ({"tls": SERVER}, True, False),
        ({"tls": SERVER | {"client_ca": "ca.pem"}}, True, True),
        ({"access": KEYS}, False, True),
        ({"access": JWT, "tls": SERVER}, True, True),
        ({"access": {"allow": ["10.0.0.0/8"]}}, False, False),
    ],
)
def test_a_listener_says_what_it_asks_of_clients(
    table: dict[str, Any], ends: bool, by_credential: bool
) -> None:
    """Whether TLS ends here, and whether clients can be told from one another by more than addresses."""
    listener = Listener.model_validate(LEAST | table)
    assert (listener.ends_tls, listener.by_credential) == (ends, by_credential)
    assert isinstance(listener.tls, ServerTls) == ends
