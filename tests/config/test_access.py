"""What a configuration may say of who uses a listener, and what it means where it says nothing."""

from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from tcpgw.config.access import Access, Jwt, Limits, Permissions, Quota, SourceQuota

SECRET = "hush-" * 7
JWKS = "https://idp.example.com/jwks"


def refusal(kind: Any, table: dict[str, Any]) -> list[tuple[tuple[Any, ...], str]]:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(table)
    return [(error["loc"], error["msg"]) for error in caught.value.errors()]


def test_defaults_are_those_that_operators_expect() -> None:
    """Without any table everybody may use everything, and half-open connections are bounded."""
    access = Access()
    assert (access.allow, access.deny, access.api_keys, access.jwt, access.subjects) == (
        (),
        (),
        None,
        None,
        {},
    )
    assert (access.timeout, access.by_token) == (5, False)
    assert Limits() == Limits(handshakes=1024, first_byte_timeout=None, per_source=None, per_subject=None)
    assert Permissions() == Permissions(services=None, methods=None)


def test_defaults_of_tokens() -> None:
    """Any issuer whose keys they are; clocks may differ by half a minute."""
    jwt = Jwt.model_validate({"algorithms": ["ES256"], "jwks": "jwks.json", "audience": "a"})
    assert (jwt.secret, jwt.jwks, jwt.issuer, jwt.audience) == (None, Path("jwks.json"), None, "a")
    assert (jwt.leeway, jwt.subject, jwt.permissions) == (30, "sub", "tcpgw")


@pytest.mark.parametrize(
    ("algorithms", "given", "faulty"),
    [
        (["HS256"], {"secret": SECRET}, []),
        (["RS256"], {"jwks": JWKS}, []),
        (["ES256", "RS256"], {"jwks": JWKS}, []),
        (["HS256", "RS256"], {"secret": SECRET, "jwks": JWKS}, []),
        (["HS256"], {}, ["secret"]),
        (["RS256"], {}, ["jwks"]),
        (["HS256", "ES256"], {}, ["secret", "jwks"]),
        (["HS256"], {"jwks": JWKS}, ["secret", "jwks"]),
        (["ES256"], {"secret": SECRET}, ["secret", "jwks"]),
        (["HS256"], {"secret": SECRET, "jwks": JWKS}, ["jwks"]),
        (["ES256"], {"secret": SECRET, "jwks": JWKS}, ["secret"]),
        (["HS512"], {}, ["algorithms"]),
        ([], {"secret": SECRET, "jwks": JWKS}, ["algorithms"]),
        (["HS256", "HS256"], {}, ["algorithms"]),
    ],
)
def test_each_algorithm_has_its_keys(algorithms: list[str], given: dict[str, str], faulty: list[str]) -> None:
    """A key is there for each algorithm, and none beside it, which would do nothing."""
    table = {"algorithms": algorithms, "audience": "a"} | given
    if not faulty:
        Jwt.model_validate(table)
    else:
        assert list(dict.fromkeys(loc[0] for loc, _ in refusal(Jwt, table))) == faulty


@pytest.mark.parametrize(("secret", "long_enough"), [("x" * 31, False), ("x" * 32, True), ("é" * 16, True)])
def test_a_secret_is_as_long_as_its_hash(secret: str, long_enough: bool) -> None:
    """32 bytes, not characters; a shorter one could be guessed. No message shows it."""
    table = {"algorithms": ["HS256"], "audience": "a", "secret": secret}
    if long_enough:
        assert Jwt.model_validate(table).secret == SecretStr(secret)
    else:
        ((loc, message),) = refusal(Jwt, table)
        assert loc == ("secret",)
        assert "at least 32 bytes" in message
        assert secret not in message


def test_tokens_are_for_an_audience() -> None:
    """A token for another of the issuer's services must not open this one, so it has to be said."""
    assert [loc for loc, _ in refusal(Jwt, {"algorithms": ["ES256"], "jwks": JWKS})] == [("audience",)]


def test_a_network_is_allowed_or_denied() -> None:
    """Networks within one another may be, since the longer prefix counts; the same one may not."""
    access = Access.model_validate({"allow": ["10.0.0.0/8", "10.9.8.7"], "deny": ["10.9.0.0/16"]})
    assert access.deny == (ip_network("10.9.0.0/16"),)
    ((loc, message),) = refusal(Access, {"allow": ["10.0.0.0/8"], "deny": ["10.0.0.0/8"]})
    assert loc == ("deny",)
    assert "10.0.0.0/8 stands in allow too" in message
    assert [loc for loc, _ in refusal(Access, {"allow": ["10"], "deny": ["10.0.0.0/8"]})] == [("allow", 0)]


def test_subjects_have_patterns() -> None:
    """Nothing said is everything, an empty list nothing; order is kept."""
    subjects = {"alice": {"services": ["a*"], "methods": []}, "spiffe://x/*": {}}
    access = Access.model_validate({"api_keys": "keys", "subjects": subjects})
    assert access.subjects == {
        "alice": Permissions(services=("a*",), methods=()),
        "spiffe://x/*": Permissions(),
    }
    assert access.by_token


@pytest.mark.parametrize("key", ["connections", "new_per_second", "bytes_in", "bytes_out"])
def test_one_limit_is_enough_for_a_quota(key: str) -> None:
    """Each stands alone."""
    for kind in (Quota, SourceQuota):
        quota = kind.model_validate({key: 1})
        assert quota.model_dump(exclude_unset=True) == {key: 1}
    assert SourceQuota(connections=1).ipv6_prefix == 64


@pytest.mark.parametrize("table", [{}, {"ipv6_prefix": 48}])
def test_a_quota_limits_something(table: dict[str, Any]) -> None:
    """A table that looks like a limit and is none is refused."""
    ((loc, message),) = refusal(SourceQuota, table)
    assert loc == ()
    assert "limits nothing" in message


def test_a_burst_goes_beyond_a_rate() -> None:
    """Without a rate it would mean nothing; where the rate is faulty it is not blamed as well."""
    assert Quota(new_per_second=0.5, burst=10).burst == 10
    assert [loc for loc, _ in refusal(Quota, {"connections": 1, "burst": 1})] == [("burst",)]
    assert [loc for loc, _ in refusal(Quota, {"new_per_second": 0, "burst": 1})] == [("new_per_second",)]


@pytest.mark.parametrize(
    "table",
    [
        {"connections": 0},
        {"new_per_second": 0},
        {"new_per_second": float("inf")},
        {"new_per_second": float("nan")},
        {"new_per_second": 1, "burst": 0},
        {"bytes_in": 0},
        {"bytes_out": "0B"},
        {"bytes_out": "999999999999GiB"},
        {"connections": 1 << 70},
    ],
)
def test_limits_are_positive_and_can_travel(table: dict[str, Any]) -> None:
    """Nobody could connect with a limit of 0, and workers get numbers of 64 bits."""
    assert len(refusal(Quota, table)) == 1
