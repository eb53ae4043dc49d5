"""Random and damaged tokens, claims and sets of keys: only Denied and KeySetError escape."""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.access.denial import Denied
from tcpgw.access.grant import Grant
from tcpgw.access.jwt import JwtTerms, KeySet, KeySetError, Verifier
from tests.support.tokens import AUDIENCE, NOW, SECRET, claims, jwks, public_ec, public_rsa, segment, signed

TERMS = JwtTerms(("HS256", "RS256", "ES256"), AUDIENCE, secret=SECRET)
VERIFIER = Verifier(TERMS, KeySet.parse(jwks()))
GOOD = {signed(claims(), algorithm) for algorithm in ("HS256", "RS256", "ES256")}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["listeners", "services", "methods", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)
CLAIMS = st.dictionaries(
    st.sampled_from(["sub", "aud", "exp", "nbf", "iat", "iss", "tcpgw", "x"]), VALUES, max_size=4
)
HEADERS = st.dictionaries(
    st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk"]),
    VALUES | st.sampled_from(["none", "HS256", "RS256", "ES256", "r1", "e1"]),
    max_size=4,
)


def outcome(token: bytes | str) -> Grant | None:
    """The one exception that may escape becomes None; any other fails the test."""
    try:
        return VERIFIER.verify(token, NOW)
    except Denied as denied:
        text = str(denied)
    assert text.isprintable()
    return None


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(sorted(GOOD))))
    for _ in range(draw(st.integers(0, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data)


@settings(max_examples=500)
@given(damaged() | st.binary(max_size=60) | st.text(max_size=60))
def test_only_a_good_token_is_good(token: bytes | str) -> None:
    """However a token is damaged, it gives nothing."""
    assert (outcome(token) is not None) == (token in GOOD)


@settings(max_examples=300)
@given(HEADERS, CLAIMS, st.binary(max_size=70))
def test_unsigned_tokens_are_refused(header: dict[str, Any], said: dict[str, Any], signature: bytes) -> None:
    """Whatever header and claims say, without a signature they give nothing."""
    token = b".".join(map(segment, (header, claims() | said, signature)))
    assert outcome(token) is None


@settings(max_examples=500)
@given(CLAIMS)
def test_signed_claims_give_a_subject_or_nothing(said: dict[str, Any]) -> None:
    """Whatever a trusted issuer signs gives a grant that can be used, or a denial."""
    grant = outcome(signed(claims() | said, "HS256"))
    if grant is not None:
        assert grant.subject == (claims() | said)["sub"]
        assert grant.subject.isprintable()
        assert grant.expires is not None
        assert grant.expires > NOW
        for names in (grant.listeners, grant.services, grant.methods):
            assert names is None or isinstance(names.match("x"), bool)


MEMBERS = st.dictionaries(
    st.sampled_from(["kty", "kid", "use", "alg", "key_ops", "n", "e", "crv", "x", "y", "d", "k"]),
    VALUES | st.sampled_from(["RSA", "EC", "oct", "P-256", "sig", "RS256", "AQAB", "_" * 342, "A" * 43]),
    max_size=4,
)
KEYS = st.builds(
    lambda key, members: key | members, st.sampled_from([public_rsa(), public_ec(), {}]), MEMBERS
)
SETS = st.lists(KEYS | VALUES, max_size=4).map(lambda keys: json.dumps({"keys": keys}))


@settings(max_examples=500)
@given(SETS | VALUES.map(json.dumps) | st.text(max_size=60) | st.binary(max_size=60))
def test_any_set_is_read_or_refused(text: str | bytes) -> None:
    """Any set gives keys, of the two kinds and with a reason for each ignored one, or a KeySetError."""
    told: tuple[str, ...]
    try:
        keys = KeySet.parse(text)
    except KeySetError as error:
        told = (str(error),)
    else:
        told = keys.ignored
        assert keys.keys
        assert {algorithm for algorithm, _ in keys.keys} <= {"RS256", "ES256"}
    assert all(reason.isprintable() for reason in told)
