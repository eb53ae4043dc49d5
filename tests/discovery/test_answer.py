import json
from ipaddress import ip_network
from typing import Any

import pytest

from tcpgw.config.schema import PRIVATE_NETWORKS
from tcpgw.discovery import answer as module
from tcpgw.discovery.answer import Answer, parse, read
from tcpgw.endpoints import Endpoint, Member
from tcpgw.errors import AnswerError

FIRST = {"ip": "10.0.0.1", "port": 8080}
SECOND = {"ip": "10.0.0.2", "port": 8081}
BOTH = ["10.0.0.1:8080", "10.0.0.2:8081"]


def endpoints(document: Any, expression: str | None = None) -> list[str]:
    return [str(member.endpoint) for member in parse(document, PRIVATE_NETWORKS, expression).members]


def refusal(document: Any, expression: str | None = None) -> str:
    with pytest.raises(AnswerError) as caught:
        parse(document, PRIVATE_NETWORKS, expression)
    return str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        [FIRST, SECOND],
        {"host_endpoints": [FIRST, SECOND]},
        {"service_id": "x", "count": 2, "endpoints": [FIRST, SECOND]},
        {"result": {"data": {"items": [FIRST, SECOND]}}},
        {"nodes": [{"id": 1, "host_endpoints": [FIRST]}, {"id": 2, "host_endpoints": [SECOND]}]},
        [[FIRST], [SECOND]],
        BOTH,
        {"endpoints": BOTH},
        {"endpoints": [f"http://{address}" for address in BOTH]},
        {"instances": {"pod-a": FIRST, "pod-b": SECOND}},
        {"endpoints": [{"info": FIRST}, {"info": SECOND}]},
    ],
)
def test_list_is_found_wherever_it_stands(document: Any) -> None:
    """Objects or texts, at the top or deep inside, in one list or in siblings: the same endpoints."""
    assert sorted(endpoints(document)) == BOTH


@pytest.mark.parametrize(
    "entry",
    [
        {"ip": "10.0.0.1", "port": 8080},
        {"IP": "10.0.0.1", "Port": "8080"},
        {"host": "10.0.0.1", "port": 8080.0},
        {"hostIp": "10.0.0.1", "hostPort": 8080},
        {"host_ip": "10.0.0.1", "node_port": 8080},
        {"address": "10.0.0.1", "port": 8080, "protocol": "TCP"},
        {"address": "10.0.0.1:8080", "schema": "http"},
        {"address": "10.0.0.1:8080", "port": 8080},
        {"url": "http://10.0.0.1:8080/predict?x=1"},
        {"url": "tcp://10.0.0.1", "port": 8080},
        {"host": "instance-1.internal", "ip": "10.0.0.1", "port": 8080},
        {"ip": "", "host": None, "address": "10.0.0.1:8080"},
        {"endpoint": "10.0.0.1:8080"},
        {"ip": "::ffff:10.0.0.1", "port": 8080},
        " 10.0.0.1:8080 ",
        "http://user:pass@10.0.0.1:8080",
    ],
)
def test_every_way_to_write_an_endpoint_is_read(entry: Any) -> None:
    """Address and port are found under any of their names, joined, or in a URL."""
    assert endpoints([entry]) == ["10.0.0.1:8080"]


@pytest.mark.parametrize(
    ("entry", "endpoint"),
    [
        ({"ip": "fd00::1", "port": 80}, "[fd00::1]:80"),
        ({"ip": "[fd00::1]", "port": 80}, "[fd00::1]:80"),
        ({"address": "[fd00:0::1]:80"}, "[fd00::1]:80"),
        ({"url": "http://[fd00::1]:80/"}, "[fd00::1]:80"),
        ({"url": "http://10.0.0.1/"}, "10.0.0.1:80"),
        ({"url": "https://10.0.0.1"}, "10.0.0.1:443"),
    ],
)
def test_ipv6_and_default_ports_of_urls(entry: Any, endpoint: str) -> None:
    """IPv6 is read in every form, and a URL without port has that of its scheme."""
    assert endpoints([entry]) == [endpoint]


def test_weights_are_taken() -> None:
    """A weight is a whole number, as number or text; without one it is 1."""
    weighted = [FIRST | {"weight": 5}, SECOND | {"weight": "0"}, {"ip": "10.0.0.3", "port": 1}]
    assert parse(weighted, PRIVATE_NETWORKS) == Answer(
        (
            Member(Endpoint("10.0.0.1", 8080), 5),
            Member(Endpoint("10.0.0.2", 8081), 0),
            Member(Endpoint("10.0.0.3", 1), 1),
        )
    )


@pytest.mark.parametrize("weight", [-1, 1.5, "many", None, True, float("nan"), 10**9])
def test_unreadable_weight_does_not_lose_the_instance(weight: Any) -> None:
    """An instance whose weight makes no sense is served with weight 1, and that is said."""
    answer = parse([FIRST | {"weight": weight}], PRIVATE_NETWORKS)
    assert answer.members == (Member(Endpoint("10.0.0.1", 8080), 1),)
    assert "its weight is not a whole number" in answer.complaints[0]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"ip": "10.0.0.9"}, "has no port"),
        ({"ip": "10.0.0.9", "port": 0}, "its port is not a number from 1 to 65535"),
        ({"ip": "10.0.0.9", "port": 65536}, "its port is not a number from 1 to 65535"),
        ({"ip": "10.0.0.9", "port": "http"}, "its port is not a number from 1 to 65535"),
        ({"ip": "10.0.0.9", "port": True}, "its port is not a number from 1 to 65535"),
        ({"ip": "10.0.0.9:80", "port": 81}, "its address and its port contradict each other"),
        ({"ip": "10.0.0.900", "port": 80}, "its address cannot be read"),
        ({"host": "a.example.com", "port": 80}, "its address cannot be read"),
        ({"url": "http://a.example.com:80"}, "its address is no IP address"),
        ({"url": "http://[::1"}, "its address cannot be read"),
        ({"url": "http://10.0.0.9:99999"}, "its address cannot be read"),
        ({"url": "tcp://10.0.0.9"}, "has no port"),
        ({"name": "x"}, "has no address"),
        ({"ip": 167772161, "port": 80}, "has no address"),
        ("10.0.0.9", "has no port"),
        ("nonsense", "its address cannot be read"),
        (7, "is no instance"),
    ],
)
def test_unreadable_entry_is_reported_and_left_out(entry: Any, reason: str) -> None:
    """One bad entry costs no good one, and the complaint says which it is, why, and what it looks like."""
    answer = parse({"endpoints": [FIRST, entry]}, PRIVATE_NETWORKS)
    assert answer.members == (Member(Endpoint("10.0.0.1", 8080)),)
    assert len(answer.complaints) == 1
    assert answer.complaints[0].startswith(f"entry 1 of endpoints[*]: {reason}")


def test_complaints_leave_secrets_out() -> None:
    """What is quoted is quoted without fields that hold secrets, and shortened."""
    entry = {"ip": "x", "port": 1, "authToken": "hush1", "env": [{"password": "hush2"}], "note": "n" * 999}
    (complaint,) = parse([FIRST, entry], PRIVATE_NETWORKS).complaints
    assert "hush" not in complaint
    assert '"authToken": "***"' in complaint
    assert len(complaint) < 300


def test_many_complaints_become_few() -> None:
    """A thousand bad entries give a handful of complaints that add up."""
    answer = parse([FIRST] + [{"name": n} for n in range(1000)], PRIVATE_NETWORKS)
    assert len(answer.complaints) == 6
    assert answer.complaints[-1] == "995 more entries of [*] could not be read"


def test_best_name_wins_over_more_entries() -> None:
    """Of several lists that named as asked for is taken, and the other is pointed out."""
    nodes = [{"ip": f"10.9.0.{n}", "port": 10250} for n in range(1, 9)]
    answer = parse({"nodes": nodes, "host_endpoints": [FIRST], "endpoints": [SECOND]}, PRIVATE_NETWORKS)
    assert [str(m.endpoint) for m in answer.members] == ["10.0.0.1:8080"]
    assert "passed over for host_endpoints[*] (1)" in answer.complaints[0]
    assert "service[..].discovery.jmespath" in answer.complaints[0]


def test_more_entries_win_among_equal_names() -> None:
    """Without a telling name the list with most endpoints is taken, and of equals the first."""
    assert endpoints({"a": [FIRST], "b": [FIRST, SECOND]}) == BOTH
    assert endpoints({"a": [FIRST], "b": [SECOND]}) == BOTH[:1]


def test_same_endpoints_twice_are_no_matter() -> None:
    """A second list with nothing new in it is not worth a complaint."""
    assert parse({"endpoints": [FIRST], "copy": [FIRST]}, PRIVATE_NETWORKS).complaints == ()


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"endpoints": []},
        {"host_endpoints": None},
        {"data": []},
        {"count": 0, "data": {"items": []}},
        {"endpoints": [{"name": "x", "host_endpoints": []}]},
        {"host_endpoints": [], "nodes": [FIRST]},
        {"tags": ["a"], "endpoints": []},
    ],
)
def test_empty_list_is_an_empty_answer(document: Any) -> None:
    """A service without instances is read as one, and not as an error."""
    assert parse(document, PRIVATE_NETWORKS).members == ()


@pytest.mark.parametrize(
    "document",
    [
        {},
        None,
        7,
        "text",
        {"status": "ok"},
        {"endpoints": [{"name": "x"}]},
        {"tags": ["a"], "data": []},
        ["a", "b"],
    ],
)
def test_document_without_instances_is_an_error(document: Any) -> None:
    """What is no list of instances is refused, quoted, and the way out is named."""
    message = refusal(document)
    assert "no list of instances" in message
    assert "service[..].discovery.jmespath" in message


@pytest.mark.parametrize("document", [FIRST, {"endpoint": FIRST}, {"result": {"instance": FIRST}}])
def test_one_instance_needs_no_list(document: Any) -> None:
    """A single object with address and port is a service with one instance."""
    assert endpoints(document) == BOTH[:1]


@pytest.mark.parametrize("depth", [40, 20_000])
def test_depth_is_bounded(depth: int) -> None:
    """A document nested deeper than any answer is given up, not followed until the stack ends."""
    document: Any = {"endpoints": [FIRST]}
    for _ in range(depth):
        document = [document]
    assert "no list of instances" in refusal(document)


def test_nearest_miss_is_quoted() -> None:
    """Where entries look like instances but cannot be read, the first of them and its fault are shown."""
    message = refusal({"tags": ["a", "b", "c"], "x": [{"ip": "10.0.0.1"}]})
    assert 'entry 0 of x[*]: has no port: {"ip": "10.0.0.1"}' in message


def test_error_in_a_success_is_an_error() -> None:
    """An error body that comes with status 200 is not taken for a service without instances."""
    message = refusal({"error_code": "ModelArts.1", "error_msg": "stopped", "endpoints": []})
    assert "the answer is an error" in message
    assert "stopped" in message


def test_addresses_outside_the_networks_are_refused() -> None:
    """A public address is left out and reported, while private ones are served."""
    answer = parse({"endpoints": [FIRST, {"ip": "8.8.8.8", "port": 80}]}, PRIVATE_NETWORKS)
    assert [str(m.endpoint) for m in answer.members] == ["10.0.0.1:8080"]
    assert answer.complaints == ("1 of endpoints[*] lie outside service[..].discovery.networks: 8.8.8.8:80",)


@pytest.mark.parametrize("ip", ["8.8.8.8", "127.0.0.1", "0.0.0.0", "169.254.169.254", "::1", "fe80::1%eth0"])
def test_nothing_but_foreign_addresses_is_an_error(ip: str) -> None:
    """If every address is refused, the message names the setting, an example and what is allowed."""
    message = refusal({"endpoints": [{"ip": ip, "port": 80}]})
    assert "service[..].discovery.networks" in message
    assert str(Endpoint.of(ip, 80)) in message
    assert "10.0.0.0/8" in message


def test_networks_are_the_operators_choice() -> None:
    """An address in a configured network is served, whatever it is."""
    assert parse([{"ip": "127.0.0.1", "port": 80}], [ip_network("127.0.0.0/8")]).members


@pytest.mark.parametrize(
    ("document", "expression", "found"),
    [
        ({"a": {"b": [FIRST]}, "host_endpoints": [SECOND]}, "a.b", BOTH[:1]),
        ({"x": [{"addr": ["10.0.0.1", 8080]}]}, "x[].{ip: addr[0], port: addr[1]}", BOTH[:1]),
        ({"x": [{"at": BOTH[0]}, {"at": BOTH[1]}]}, "x[].at", BOTH),
        ({"x": BOTH[0]}, "x", BOTH[:1]),
        ({"x": []}, "x", []),
    ],
)
def test_jmespath_overrides_the_search(document: Any, expression: str, found: list[str]) -> None:
    """With an expression only what it selects is read."""
    assert endpoints(document, expression) == found


@pytest.mark.parametrize("expression", ["nowhere", "length(x)", "max_by(y, &a)", "x[", "sum(y)"])
def test_jmespath_that_fails_is_named(expression: str) -> None:
    """An expression that selects nothing, or cannot be applied, is an error that names the setting."""
    assert "service[..].discovery.jmespath" in refusal({"x": 7, "y": [{"a": 1}, {"a": "b"}]}, expression)


def test_body_is_decoded() -> None:
    """A JSON body is read as its document is."""
    assert read(json.dumps([FIRST]).encode(), PRIVATE_NETWORKS).members


@pytest.mark.parametrize("entry", [{"ip": "10.0.0.1"}, {"x": 1}])
def test_few_entries_are_quoted(monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any]) -> None:
    """However many small collections cannot be read, only what a message shows is put into words."""
    quoted = []

    def excerpt(value: Any) -> str:
        quoted.append(value)
        return "…"

    monkeypatch.setattr(module, "excerpt", excerpt)
    refusal({f"k{index}": [entry] for index in range(1000)})
    assert len(quoted) == 1


@pytest.mark.parametrize(
    "body", [b"", b"<html>Gateway Time-out", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' * 50_000]
)
def test_body_that_is_no_json_is_quoted(body: bytes) -> None:
    """Garbage is refused with its beginning, in one short printable line."""
    with pytest.raises(AnswerError, match="is not JSON") as caught:
        read(body, PRIVATE_NETWORKS)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300
