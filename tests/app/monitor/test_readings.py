"""What alerts go by."""

from typing import Any

import pytest

from tcpgw.alerts.rules import Readings
from tcpgw.app.monitor.readings import Reader
from tcpgw.app.monitor.view import Recent
from tests.support.pictures import ASKED, NOW, config, picture, snapshot
from tests.support.totals import listener, tally

S = (("service", "s"),)


def read(before: dict[str, Any], after: dict[str, Any], **known: Any) -> Readings:
    """After two looks, ten seconds apart."""
    recent, reader = Recent(), Reader(min_volume=20)
    recent.look(picture(totals=before, **known), {}, 100.0)
    last = picture(totals=after, **known)
    recent.look(last, {}, 110.0)
    return reader.read(last, recent, 110.0)


def ended(**reasons: int) -> dict[str, Any]:
    return {"listeners": {"l": listener(s=tally(sum(reasons.values()), **reasons))}}


def test_endpoints_that_may_be_used() -> None:
    """Those with a weight that are not known to be sick."""
    states = {
        "10.0.0.1:1": "healthy",
        "10.0.0.2:1": "ejected",
        "10.0.0.3:1": "trial",
        "10.0.0.4:1": "unhealthy",
    }
    found = read({}, {}, snapshots={"s": snapshot(1, 1, 1, 1, 0)}, health={"s": {"states": states}})
    assert found["usable_endpoints"] == {S: 2.0}
    assert found["usable_share"] == {S: 0.5}
    assert read({}, {}, snapshots={"s": snapshot(0)})["usable_endpoints"] == {S: 0.0}


def test_a_service_that_never_had_a_snapshot_has_no_endpoint() -> None:
    """Once its first one is not waited for any more: until then nothing is said of it."""
    for state in ("ready", "degraded", "draining"):
        found = read({}, {}, state=state)
        assert found["usable_endpoints"] == {S: 0.0}
        assert "usable_share" not in found
    assert "usable_endpoints" not in read({}, {}, state="starting")
    assert read({}, {}, state="starting", snapshots={"s": snapshot(1)})["usable_endpoints"] == {S: 1.0}


def test_the_share_that_failed_takes_a_volume() -> None:
    """With fewer invocations in the last minute than that nothing is said."""
    assert read(ended(), ended(client_fin=15, connect_failed=5))["error_ratio"] == {S: 0.25}
    assert "error_ratio" not in read(ended(), ended(connect_failed=19))


def test_denials_and_panic_and_overload() -> None:
    """By listener, by service, and for all."""
    found = read(
        ended(),
        {**ended(denied_cidr=30), "overload": {"active": 1}},
        health={"s": {"panic": True, "states": {}}},
    )
    assert found["denials_rate"] == {(("listener", "l"),): 3.0}
    assert found["panic"] == {S: 1.0}
    assert found["overloaded"] == {(): 1.0}


def test_a_percentile_takes_some() -> None:
    """Of a hundred connects or requests at least."""
    before = {"services": {"s": {"connect": {"buckets": {"40": 5}}}}}
    after = {"services": {"s": {"connect": {"buckets": {"40": 5 + 100}}}}}
    assert read(before, after)["p99_latency"][S] == pytest.approx(136e-6)
    after["services"]["s"]["connect"]["buckets"]["40"] -= 1
    assert "p99_latency" not in read(before, after)


def test_how_long_discovery_has_not_answered() -> None:
    """Since its last answer, or the age of the stored snapshot; nothing of what is never asked again."""
    asked = config(ASKED)
    known: dict[str, Any] = {"config": asked, "snapshots": {"s": snapshot(1, taken_at=NOW - 500)}}
    assert read({}, {}, **known)["discovery_age"] == {S: 500.0}
    answered = {"s": {"calls": 2, "errors": 0, "last_error": "", "answered_at": NOW - 20}}
    assert read({}, {}, **known, discovery=answered)["discovery_age"] == {S: 20.0}
    assert "discovery_age" not in read({}, {}, snapshots=known["snapshots"])
    assert read({}, {}, clouds={"c": {"left": 4, "budget": 20}})["budget_left_ratio"] == {
        (("cloud", "c"),): 0.2
    }


def test_certificates_and_lists() -> None:
    """Seconds that are left, by listener and kind."""
    found = read({}, {}, certificates={"l": {"certificate": NOW + 60, "crl": NOW - 1}})
    assert found["certificate_left"] == {
        (("kind", "certificate"), ("listener", "l")): 60.0,
        (("kind", "crl"), ("listener", "l")): -1.0,
    }


def test_deaths_are_those_of_the_last_ten_minutes() -> None:
    """None of before the first look."""
    recent, reader = Recent(), Reader(20)

    def deaths(count: int, now: float) -> float:
        return reader.read(picture(deaths=count), recent, now)["worker_deaths"][()]

    assert deaths(3, 100.0) == 0
    assert deaths(4, 200.0) == 1
    assert deaths(6, 500.0) == 3
    assert deaths(6, 799.0) == 3
    assert deaths(6, 801.0) == 2
    assert deaths(6, 1101.0) == 0
