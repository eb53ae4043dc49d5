"""What a configuration may say of health, and what it means where it says nothing."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tcpgw.config.health import (
    Active,
    Health,
    HttpCheck,
    Part,
    Passive,
    Payload,
    RpcCheck,
    SendExpectCheck,
    Status,
    StatusRange,
    TcpCheck,
    TlsCheck,
)

ACTIVE: TypeAdapter[Any] = TypeAdapter(Active)
PAYLOAD: TypeAdapter[bytes] = TypeAdapter(Payload)
STATUS: TypeAdapter[StatusRange] = TypeAdapter(Status)
PART: TypeAdapter[Any] = TypeAdapter(Part)
LEAST = {"tcp": {}, "tls": {}, "http": {}, "rpc": {}, "send_expect": {"expect": "x"}}
KINDS = {"tcp": TcpCheck, "tls": TlsCheck, "http": HttpCheck, "rpc": RpcCheck, "send_expect": SendExpectCheck}


def refusal(kind: Any, table: dict[str, Any]) -> list[tuple[Any, ...]]:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python(table)
    return [error["loc"] for error in caught.value.errors()]


def test_defaults_are_those_that_operators_expect() -> None:
    """What is left out has the values of the design's table."""
    health = Health()
    assert health == Health(panic=0.5, active=TcpCheck(type="tcp"), passive=Passive())
    assert health.passive == Passive(
        failures=5,
        on=("connect", "reset", "protocol", "timeout"),
        failure_rate=0,
        window=10,
        min_volume=20,
        ejection=30,
        max_ejection=300,
        max_ejected=0.5,
        trial_share=0.1,
        trial_successes=3,
        first_byte_timeout=None,
    )


@pytest.mark.parametrize("kind", LEAST)
def test_every_kind_of_check_has_the_same_rhythm(kind: str) -> None:
    """HAProxy's, with half a second while something changes."""
    check = ACTIVE.validate_python({"type": kind} | LEAST[kind])
    assert type(check) is KINDS[kind]
    assert (check.interval, check.fast_interval, check.timeout) == (2, 0.5, 1)
    assert (check.rise, check.fall, check.jitter, check.port) == (2, 3, 0.1, 0)


def test_what_checks_ask_for_by_default() -> None:
    """A status below 400, any answer at all; certificates are verified."""
    http, rpc, tls = (ACTIVE.validate_python({"type": kind}) for kind in ("http", "rpc", "tls"))
    assert (http.path, http.status, http.host) == ("/healthz", (StatusRange(200, 399),), None)
    assert (rpc.method, rpc.params, rpc.expect) == ("tcpgw.ping", (), None)
    assert (tls.server_name, tls.ca, tls.verify) == (None, None, True)


def test_both_can_be_switched_off() -> None:
    """With the one word, and with no other."""
    health = Health.model_validate({"active": "off", "passive": "off", "panic": 0})
    assert (health.active, health.passive, health.panic) == ("off", "off", 0)
    assert refusal(Health, {"active": "on"}) == [("active", "word")]
    assert refusal(Health, {"passive": False}) == [("passive", "table")]


@pytest.mark.parametrize("key", ["fast_interval", "timeout"])
def test_a_check_ends_before_the_next_begins(key: str) -> None:
    """Neither lasts longer than the interval, be it said or not; a faulty interval is the one fault."""
    check = {"type": "tcp", "interval": 5, "fast_interval": 5, "timeout": 5}
    assert ACTIVE.validate_python(check).timeout == 5
    assert refusal(Active, check | {key: 5.1}) == [("tcp", key)]
    assert refusal(Active, check | {"interval": "x"}) == [("tcp", "interval")]
    assert refusal(Active, {"type": "tcp", "interval": 0.4}) == [("tcp", "fast_interval"), ("tcp", "timeout")]


def test_the_longest_ejection_is_no_shorter_than_the_first() -> None:
    """Be it said or not; a faulty ejection is the one fault."""
    assert Passive(ejection=300).max_ejection == 300
    assert Passive(ejection=1, max_ejection=1).max_ejection == 1
    assert refusal(Passive, {"ejection": 301}) == [("max_ejection",)]
    assert refusal(Passive, {"ejection": "x", "max_ejection": 1}) == [("ejection",)]


@pytest.mark.parametrize(
    ("key", "least", "most"),
    [("failure_rate", 0, 1), ("max_ejected", 0, 1), ("trial_share", 0.001, 1)],
)
def test_shares_are_of_one(key: str, least: float, most: float) -> None:
    """From nothing, where that means something, to all."""
    for share in (least, most):
        assert getattr(Passive.model_validate({key: share}), key) == share
    for share in (-0.001, 1.001, float("nan")):
        assert refusal(Passive, {key: share}) == [(key,)]
    assert refusal(Passive, {"trial_share": 0}) == [("trial_share",)]


# ---- statuses ----


@given(st.integers(100, 599), st.integers(0, 499))
def test_statuses_are_one_or_a_range(first: int, more: int) -> None:
    """Both ends count; shown it is what is read again as the same."""
    last = min(first + more, 599)
    statuses = STATUS.validate_python(f"{first}-{last}")
    assert [code for code in range(90, 610) if code in statuses] == list(range(first, last + 1))
    assert STATUS.validate_json(STATUS.dump_json(statuses)) == statuses
    assert STATUS.validate_python(first) == STATUS.validate_python(str(first)) == StatusRange(first, first)
    assert STATUS.validate_python(statuses) is statuses
    assert str(StatusRange(first, first)) == str(first)


@pytest.mark.parametrize(
    "status", ["2xx", "399-200", "200-", "-200", "", 99, 600, "600", True, None, 2.0, 10**9]
)
def test_other_statuses_are_refused(status: Any) -> None:
    """What no answer has is refused."""
    with pytest.raises(ValidationError, match=r"200-399"):
        STATUS.validate_python(status)


@pytest.mark.parametrize(
    "table", [{"path": "healthz"}, {"path": "/a b"}, {"path": "/\r\nX: y"}, {"host": "a\r\nb"}, {"host": ""}]
)
def test_no_request_is_smuggled_into_another(table: dict[str, str]) -> None:
    """Neither path nor host can hold what ends a line of the request."""
    assert refusal(Active, {"type": "http"} | table) == [("http", *table)]


# ---- bytes ----


@pytest.mark.parametrize(
    ("written", "data"),
    [
        ("PING\r\n", b"PING\r\n"),
        ("é", b"\xc3\xa9"),
        ("hex:00ff", b"\0\xff"),
        ("hex:00 FF", b"\0\xff"),
        ("hex:", b""),
        (b"as it is", b"as it is"),
    ],
)
def test_bytes_are_written_as_text_or_as_digits(written: str | bytes, data: bytes) -> None:
    """A text stands for itself in UTF-8."""
    assert PAYLOAD.validate_python(written) == data


@given(st.binary(max_size=4096))
def test_bytes_round_trip(data: bytes) -> None:
    """Any bytes are shown in a form that is read again as the same."""
    assert PAYLOAD.validate_json(PAYLOAD.dump_json(data)) == data


@pytest.mark.parametrize("written", ["hex:0", "hex:0g", "x" * 4097, "é" * 2049, 7, None, []])
def test_other_bytes_are_refused(written: Any) -> None:
    """Half a byte, and more than a question has."""
    with pytest.raises(ValidationError):
        PAYLOAD.validate_python(written)


def test_something_must_be_expected() -> None:
    """A check that any answer passes is another kind; to send nothing is to listen."""
    assert ACTIVE.validate_python({"type": "send_expect", "expect": "220 "}).send == b""
    for table in ({}, {"expect": ""}, {"expect": "hex:"}):
        assert refusal(Active, {"type": "send_expect"} | table) == [("send_expect", "expect")]


# ---- parts of requests ----

parts = st.recursive(
    st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(parts)
def test_parts_of_requests_stay_as_they_are(part: Any) -> None:
    """Whatever a request can hold is taken, and arrives as it was."""
    assert PART.validate_python(part) == part
    assert PART.validate_python(PART.dump_python(part, mode="json")) == part


def nested(deep: int) -> list[Any]:
    return [nested(deep - 1)] if deep > 1 else []


@pytest.mark.parametrize(
    "part", [float("nan"), float("inf"), 1 << 64, -(1 << 63) - 1, None, {1: 2}, nested(17), {"a": [b""]}]
)
def test_other_parts_are_refused(part: Any) -> None:
    """What requests cannot hold, or cannot be compared by, or would fill a stack."""
    with pytest.raises(ValidationError):
        PART.validate_python(part)


def test_parts_may_be_as_deep_as_requests_are() -> None:
    """Up to a depth that no reader fails at."""
    assert PART.validate_python(nested(16)) == nested(16)


@given(st.none() | st.integers() | st.floats() | st.text() | st.lists(st.text()) | st.binary())
def test_no_value_breaks_a_reader(value: Any) -> None:
    """Whatever stands there is read or refused with a validation error, never with another exception."""
    for kind in (ACTIVE, PAYLOAD, STATUS, PART, TypeAdapter(Health)):
        with suppress(ValidationError):
            kind.validate_python(value)
