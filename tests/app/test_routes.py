"""Where clients may go: by the host that they asked TLS for, and by their credentials."""

from pathlib import Path

import pytest

from tcpgw.access.grant import Grant, Names
from tcpgw.app.routes import Routes
from tcpgw.config.load import loads
from tcpgw.relay.denials import DeniedError
from tcpgw.relay.reasons import Reason
from tcpgw.relay.session import Someone

SERVICES = "".join(
    f'[[service]]\nname = "{name}"\ndiscovery = {{ type = "static", endpoints = ["10.0.0.{number}:1"] }}\n'
    for number, name in enumerate(["main", "canary", "exact", "wild", "train"], 1)
)
NOBODY = Someone(None)


def routes(listener: str, *, mode: str = "tcp") -> Routes:
    text = f"""{SERVICES}
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        mode = "{mode}"
        route = [ {{ service = "main", weight = 9 }}, {{ service = "canary", weight = 1 }} ]
        {listener}
    """
    return Routes(loads(text, Path()).listener[0])


HOSTS = """
tls = "passthrough"
sni = { "a.example.com" = "exact", "*.example.com" = "wild", "*.b.example.com" = "train" }
"""


def host(name: str) -> Someone:
    return Someone(None, server_name=name)


def granted(services: list[str] | None = None, methods: list[str] | None = None) -> Someone:
    grant = Grant(
        "alice",
        services=None if services is None else Names.of(services),
        methods=None if methods is None else Names.of(methods),
    )
    return Someone(None, grant)


@pytest.mark.parametrize(
    ("name", "services"),
    [
        ("a.example.com", {"exact"}),
        ("c.example.com", {"wild"}),
        ("x.b.example.com", {"train"}),
        ("y.x.b.example.com", {"train"}),
        ("example.com", {"main", "canary"}),
        ("a.example.org", {"main", "canary"}),
        ("", {"main", "canary"}),
    ],
)
def test_the_host_chooses_the_route(name: str, services: set[str]) -> None:
    """An exact name, else the longest ending, else the listener's own route."""
    found = routes(HOSTS)
    assert found.differ
    assert found.weights(found.way(host(name))).keys() == services


def test_where_all_go_the_same_way() -> None:
    """Without hosts and credentials nothing is to be asked of a client."""
    found = routes("")
    assert not found.differ
    assert found.way(NOBODY) is None
    assert found.weights() == {"main": 9, "canary": 1}


KEYS = 'access = { api_keys = "/etc/tcpgw/keys" }'


def test_a_credential_narrows_a_split() -> None:
    """A client goes to those services of a split that it may use, with their shares."""
    found = routes(KEYS)
    assert found.differ
    assert found.way(granted()) is None
    assert found.weights(found.way(granted(["ma*"]))) == {"main": 9}
    assert found.weights(found.way(granted(["main", "canary"]))) == {"main": 9, "canary": 1}


def test_a_credential_for_other_services() -> None:
    """Who may use nothing here is told so before anything else."""
    found = routes(KEYS)
    found.judge(granted(["canary"]))
    with pytest.raises(DeniedError) as denied:
        found.judge(granted(["train"]))
    assert denied.value.reason is Reason.DENIED_SERVICE


def test_a_rule_leads_to_a_service_too() -> None:
    """Who may use only what a method's rule leads to comes in."""
    rule = '\n[listener.methods]\n"train*" = { service = "train" }\n'
    found = routes(KEYS + rule, mode="rpc")
    assert found.reached == {"main", "canary", "train"}
    found.judge(granted(["train"]))
    assert found.weights(found.way(granted(["train"]))) == {}


def test_who_may_call_the_same_goes_the_same_way() -> None:
    """Ways are equal by what credentials allow, not by whose they are."""
    found = routes(KEYS, mode="rpc")
    one, two = found.way(granted(["main"], ["predict"])), found.way(granted(["main"], ["predict"]))
    assert one == two is not None
    assert one != found.way(granted(["main"], ["train"]))
