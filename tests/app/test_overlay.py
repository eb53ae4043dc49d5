"""What an operator may say of endpoints, and what it makes of a snapshot."""

from dataclasses import replace
from typing import Any

import pytest

from tcpgw.app.control import RefusedError
from tcpgw.app.overlay import Known, Override, decide, overlay
from tcpgw.endpoints import Endpoint, Member, Snapshot
from tcpgw.health.verdict import State

A, B, C = (Endpoint(f"10.0.0.{number}", 80) for number in (1, 2, 3))
GIVEN = Snapshot("s", 4, (Member(A, 2), Member(B, 1)), 12.5)
DRAINED, HEAVY = Override(drained=True), Override(weight=9)


def drain(override: Override) -> Override:
    return override._replace(drained=True)


def undrain(override: Override) -> Override:
    return override._replace(drained=False)


def known(given: dict[Endpoint, int], said: Any = (), states: Any = ()) -> Known:
    return Known(given, dict(said), dict(states))


def test_nothing_said_is_discovery_s_own_snapshot() -> None:
    """The same object, so that nobody is told anything anew."""
    assert overlay(GIVEN, {}, 0) is GIVEN


def test_what_was_said_takes_the_place_of_weights() -> None:
    """Others keep theirs; one that discovery leaves out is not brought back; the version goes on."""
    found = overlay(GIVEN, {A: HEAVY, B: DRAINED, C: HEAVY}, 3)
    assert found == replace(GIVEN, version=7, members=(Member(A, 9), Member(B, 0)))


def test_versions_do_not_fall_when_all_is_taken_back() -> None:
    """Two snapshots of one version with other members would be taken for the same."""
    assert overlay(GIVEN, {}, 2) == replace(GIVEN, version=6)


@pytest.mark.parametrize(
    ("override", "kind", "weight"),
    [
        (Override(), None, 5),
        (DRAINED, "drained", 0),
        (HEAVY, "weight", 9),
        (Override(drained=True, weight=9), "drained", 0),
    ],
)
def test_kinds(override: Override, kind: str | None, weight: int) -> None:
    """Drained comes before any weight, which is there again afterwards."""
    assert (override.kind, override.of(5)) == (kind, weight)
    assert undrain(drain(override)) == undrain(override)


def test_all_services_that_have_it_are_meant_unless_one_is_named() -> None:
    """Also one in which it is absent at the moment, where something was said of it."""
    services = {
        "a": known({A: 1, B: 1}),
        "b": known({B: 1, C: 1}),
        "c": known({B: 1}, {A: HEAVY}),
    }
    assert decide(services, A, None, drain) == {"a": DRAINED, "c": Override(drained=True, weight=9)}
    assert decide(services, B, "b", drain) == {"b": DRAINED}
    assert decide(services, A, "c", undrain) == {"c": HEAVY}


@pytest.mark.parametrize(
    ("endpoint", "service", "why"),
    [
        (C, None, "no service has an endpoint 10.0.0.3:80: `tcpgw status` lists what there is"),
        (C, "a", "service a does not have an endpoint 10.0.0.3:80"),
        (A, "x", "no service is called 'x': there are a, b"),
    ],
)
def test_what_nobody_has_is_refused(endpoint: Endpoint, service: str | None, why: str) -> None:
    """With what there is, or where to look for it."""
    services = {"a": known({A: 1, B: 1}), "b": known({B: 1})}
    with pytest.raises(RefusedError, match=why.replace("`", ".")):
        decide(services, endpoint, service, drain)


@pytest.mark.parametrize(
    "of_others",
    [
        known({A: 1}),
        known({A: 1, B: 1}, {B: DRAINED}),
        known({A: 1, B: 0}),
        known({A: 1, B: 1}, states={B: State.UNHEALTHY}),
        known({A: 1, B: 1}, states={B: State.EJECTED}),
    ],
)
def test_the_last_usable_one_is_not_drained_by_mistake(of_others: Known) -> None:
    """Whatever keeps the others out. Who insists has it."""
    with pytest.raises(
        RefusedError,
        match=r"10\.0\.0\.1:80 is the last usable endpoint of service s.*`tcpgw drain --force` drains",
    ):
        decide({"s": of_others}, A, None, drain)
    assert decide({"s": of_others}, A, None, drain, force=True) == {"s": DRAINED}


def test_one_that_is_sick_is_not_called_usable() -> None:
    """Nor is it drained by mistake where all are: in a panic it is one of those that are tried."""
    sick = known({A: 1, B: 1}, states={A: State.EJECTED, B: State.UNHEALTHY})
    with pytest.raises(RefusedError) as refused:
        decide({"s": sick}, A, None, drain)
    assert "10.0.0.1:80 is ejected, and no other endpoint of service s is usable" in str(refused.value)
    assert "(others: 10.0.0.2:80 unhealthy)" in str(refused.value)
    assert "the last usable" not in str(refused.value)
    assert decide({"s": sick}, A, None, drain, force=True) == {"s": DRAINED}


def test_others_are_named_with_what_keeps_them_out() -> None:
    """Five of them: so many that one sees what is going on."""
    others = [Endpoint("10.0.1.1", port) for port in range(1, 8)]
    given = known(
        {A: 1, **dict.fromkeys(others, 1)}, {others[0]: DRAINED}, dict.fromkeys(others, State.EJECTED)
    )
    with pytest.raises(RefusedError) as refused:
        decide({"s": given}, A, None, drain)
    assert "(others: 10.0.1.1:1 weight 0, 10.0.1.1:2 ejected, " in str(refused.value)
    assert "10.0.1.1:5 ejected, …)" in str(refused.value)


def test_one_refusal_refuses_all() -> None:
    """Not half of what was asked for is done."""
    with pytest.raises(RefusedError, match="service b"):
        decide({"a": known({A: 1, B: 1}), "b": known({A: 1})}, A, None, drain)


def test_what_gets_nothing_already_may_be_drained() -> None:
    """Nobody loses anything by it, so it needs no force: neither when it is said twice."""
    assert decide({"s": known({A: 0})}, A, None, drain) == {"s": DRAINED}
    assert decide({"s": known({A: 1}, {A: DRAINED})}, A, None, drain) == {"s": DRAINED}


@pytest.mark.parametrize("state", [State.UNKNOWN, State.HEALTHY, State.TRIAL])
def test_others_need_not_be_proved(state: State) -> None:
    """Only those known to be sick do not count."""
    assert decide({"s": known({A: 1, B: 1}, states={B: state})}, A, None, drain)
