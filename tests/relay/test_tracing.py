"""Who is traced, what is told of them, and how much at most: with a clock that the test moves."""

import json
from ipaddress import ip_network

import pytest

from tcpgw.endpoints import Endpoint
from tcpgw.relay.reasons import Reason
from tcpgw.relay.tracing import BURST, MOST_EVENTS, PER_SECOND, Trace, Tracer, key_told

CLIENT = ("10.0.0.7", 51234)
START = 1_700_000_000.0  # Unix time at the clock's 100 s


class Bed:
    def __init__(self) -> None:
        self.now = 100.0
        self.tracer = Tracer(lambda: self.now, lambda: START + self.now - 100.0)

    def begin(self, name: str = "t", network: str = "10.0.0.0/8", seconds: float = 60.0) -> None:
        self.tracer.begin(name, ip_network(network), seconds)

    def follow(self, address: tuple[str, int] = CLIENT, opened: float | None = None) -> Trace | None:
        return self.tracer.follow("l", 17, address, self.now if opened is None else opened)

    def told(self, name: str = "t") -> list[str]:
        return [event["event"] for event in self.tracer.take().get(name, [])]


# ---- what is told ----


def test_each_event_says_whose_and_when() -> None:
    """The accept may be told late, as behind a proxy, and has its own time all the same."""
    bed = Bed()
    bed.begin()
    bed.now += 0.5
    trace = bed.follow(opened=100.0)
    assert trace is not None
    bed.now += 0.25
    trace.add("connected", endpoint=Endpoint("10.0.1.11", 8080), seconds=0.25)
    who = {"listener": "l", "conn": 17, "client": "10.0.0.7:51234"}
    assert bed.tracer.take() == {
        "t": [
            {"at": START, "event": "accepted", "after": 0.0, **who},
            {
                "at": START + 0.75,
                "event": "connected",
                "after": 0.75,
                **who,
                "endpoint": "10.0.1.11:8080",
                "seconds": 0.25,
            },
        ]
    }
    assert bed.tracer.take() == {}


def test_values_are_plain_and_short() -> None:
    """Whatever a client says of itself, the event can be sent, and is not long."""
    bed = Bed()
    bed.begin()
    trace = bed.follow()
    assert trace is not None
    trace.add(
        "x",
        reason=Reason.CLIENT_FIN,
        half="\ud800",
        long="n" * 100_000,
        names=("a",) * 1000,
        split={"v1": 90},
        none=None,
    )
    event = bed.tracer.take()["t"][1]
    assert event["reason"] == "client_fin"
    assert type(event["reason"]) is str
    assert event["half"] == "?"
    assert event["split"] == {"v1": 90}
    assert event["none"] is None
    assert len(json.dumps(event)) < 1000


def test_what_is_left_out_of_a_value_is_counted() -> None:
    """At the end of a list and of a table; nothing is, where all of it stands there."""
    bed = Bed()
    bed.begin()
    trace = bed.follow()
    assert trace is not None
    names = [f"n{number}" for number in range(16)]
    split = dict.fromkeys(names, 1)
    trace.add("x", names=names, split=split)
    trace.add("y", names=[*names, "a", "b"], split=dict.fromkeys([*names, "a"], 1))
    _, x, y = bed.tracer.take()["t"]
    assert (x["names"], x["split"]) == (names, split)
    assert y["names"] == [*names, "… 2 more"]
    assert y["split"] == {**split, "…": "1 more"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("source_ip", "10.0.0.7"),
        ("source_ip_port", "10.0.0.7:51234"),
        ("subject", None),
        ("hash_key", None),
        ("params[0].session", None),
    ],
)
def test_a_key_that_is_not_the_address_is_its_position(key: str, value: str | None) -> None:
    """It may be somebody's secret, and the position is what the choice goes by."""
    told = key_told(key, 0x9A, CLIENT)
    assert told == {"key": key, "position": "0x0000009a", **({"value": value} if value else {})}
    assert "value" not in key_told(key, 0x9A, None)


# ---- who is traced ----


@pytest.mark.parametrize(
    ("network", "host", "matches"),
    [
        ("10.0.0.7/32", "10.0.0.7", True),
        ("10.0.0.7/32", "10.0.0.8", False),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("0.0.0.0/0", "192.0.2.1", True),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("2001:db8::/32", "2001:db8::1", True),
        ("::/0", "10.0.0.7", False),
    ],
)
def test_clients_of_the_network_are_traced(network: str, host: str, matches: bool) -> None:
    """And nobody else."""
    bed = Bed()
    bed.begin(network=network)
    assert (bed.follow((host, 1)) is not None) == matches


def test_each_trace_gets_its_own_clients() -> None:
    """One that two trace is told to both; a trace that ends takes nothing from the other."""
    bed = Bed()
    bed.begin("wide", "10.0.0.0/8")
    bed.begin("narrow", "10.0.0.7/32")
    both, one = bed.follow(), bed.follow(("10.0.0.8", 1))
    assert both is not None
    assert one is not None
    told = bed.tracer.take()
    assert [event["client"] for event in told["wide"]] == ["10.0.0.7:51234", "10.0.0.8:1"]
    assert [event["client"] for event in told["narrow"]] == ["10.0.0.7:51234"]
    both.add("x")
    assert [event["event"] for event in bed.tracer.end("narrow")] == ["x"]
    both.add("y")
    assert bed.tracer.active
    assert bed.told("wide") == ["x", "y"]
    assert bed.tracer.end("narrow") == []


def test_a_trace_is_begun_once() -> None:
    """A worker that is told twice tells no event twice, and keeps the end that it was told first."""
    bed = Bed()
    bed.begin(seconds=10.0)
    bed.begin(seconds=500.0)
    bed.follow()
    assert bed.told() == ["accepted"]
    bed.now += 10.0
    bed.tracer.take()
    assert not bed.tracer.active


def test_it_ends_when_its_time_is_over() -> None:
    """What it has by then is told, and what its connections do later is not kept."""
    bed = Bed()
    bed.begin(seconds=10.0)
    trace = bed.follow()
    assert trace is not None
    bed.now += 9.9
    assert bed.told() == ["accepted"]
    trace.add("x")
    bed.now += 0.1
    assert bed.told() == ["x"]
    assert not bed.tracer.active
    trace.add("y")
    assert bed.tracer.take() == {}
    assert bed.follow() is None


# ---- how much ----


def test_a_flood_is_some_connections_and_a_number() -> None:
    """The others are not traced at all; a while later there is room again."""
    bed = Bed()
    bed.begin()
    followed = sum(bed.follow() is not None for _ in range(5000))
    assert followed == BURST
    (*events, dropped) = bed.tracer.take()["t"]
    assert len(events) == BURST
    lost = {"connections": 5000 - BURST, "requests": 0, "events": 0}
    assert dropped == {"at": START, "event": "dropped", **lost}
    bed.now += 0.5
    assert sum(bed.follow() is not None for _ in range(5000)) == PER_SECOND / 2
    assert bed.tracer.take()["t"][-1]["connections"] == 5000 - PER_SECOND / 2


def test_of_many_requests_some_are_told_and_a_number() -> None:
    """By themselves: they take nothing from connections. Each event of one has its number."""
    bed = Bed()
    bed.begin()
    trace = bed.follow()
    assert trace is not None
    granted = sum(trace.may_tell_request() for _ in range(5000))
    assert granted == BURST
    trace.missed_requests(5000 - granted)
    trace.of_request(7).add("sent", tries=1)
    assert bed.follow() is not None
    (_, sent, _, dropped) = bed.tracer.take()["t"]
    assert (sent["event"], sent["request"], sent["tries"]) == ("sent", 7, 1)
    assert (dropped["connections"], dropped["requests"]) == (0, 5000 - BURST)
    bed.now += 0.5
    assert sum(trace.may_tell_request() for _ in range(5000)) == PER_SECOND / 2


def test_who_does_not_match_uses_nothing_up() -> None:
    """A flood of others costs those who are traced none of their room."""
    bed = Bed()
    bed.begin(network="10.0.0.7/32")
    assert not any(bed.follow(("10.0.0.8", 1)) for _ in range(5000))
    assert bed.follow() is not None
    assert bed.told() == ["accepted"]


def test_events_that_nobody_takes_are_counted() -> None:
    """They wait as far as there is room, and what is beyond is told as a number, once."""
    bed = Bed()
    bed.begin()
    trace = bed.follow()
    assert trace is not None
    for number in range(MOST_EVENTS + 5):
        trace.add("x", number=number)
    (*events, dropped) = bed.tracer.take()["t"]
    assert len(events) == MOST_EVENTS
    assert (dropped["event"], dropped["events"], dropped["connections"]) == ("dropped", 6, 0)
    trace.add("x")
    assert bed.told() == ["x"]
