"""Tokens that are good, and all the ways in which they are not."""

import hmac
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

from tcpgw.access import jwt
from tcpgw.access.denial import Denied, Reason, UnknownKey
from tcpgw.access.grant import Grant, Names
from tcpgw.access.jwt import MAX_KEYS, MAX_SET, MAX_TOKEN, Algorithm, JwtTerms, KeySet, KeySetError, Verifier
from tests.support.tokens import (
    AUDIENCE,
    NOW,
    SECRET,
    claims,
    ec_key,
    jwks,
    public_ec,
    public_rsa,
    rsa_key,
    segment,
    signed,
)

ALICE = Grant("alice", expires=NOW + 3630)
PEM = rsa_key().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def terms(*algorithms: Algorithm, **changed: Any) -> JwtTerms:
    secret = SECRET if "HS256" in algorithms else None
    return JwtTerms(algorithms or ("RS256", "ES256"), AUDIENCE, **{"secret": secret, **changed})


def verifier(*keys: Any, **changed: Any) -> Verifier:
    return Verifier(terms(**changed), KeySet.parse(jwks(*keys)))


def refused(token: str | bytes, now: float = NOW, by: Verifier | None = None) -> Reason:
    with pytest.raises(Denied) as caught:
        (by or verifier()).verify(token, now)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 300
    return caught.value.reason


def key_set_error(text: str | bytes) -> str:
    with pytest.raises(KeySetError) as caught:
        KeySet.parse(text)
    assert caught.value.blame == "operator"
    return str(caught.value)


# ---- good tokens ----


@pytest.mark.parametrize("algorithm", ["RS256", "ES256", "HS256"])
def test_a_good_token(algorithm: Algorithm) -> None:
    """A token of each algorithm gives its subject, until it expires and the leeway is over."""
    by = Verifier(terms(algorithm), KeySet.parse(jwks()))
    token = signed(claims(), algorithm)
    assert by.verify(token, NOW) == ALICE
    assert by.verify(token.decode(), NOW) == ALICE


def test_a_secret_needs_no_set() -> None:
    """With HS256 alone there is nothing to fetch, and a token's kid does not count."""
    assert Verifier(terms("HS256")).verify(signed(claims(), "HS256", kid="any"), NOW) == ALICE


def test_what_it_says_it_may_use() -> None:
    """The claim's lists are the grant's patterns; an empty list is nothing, a missing one all."""
    said = {"listeners": ["a", "b*"], "methods": []}
    expected = Grant("alice", Names.of(["a", "b*"]), None, Names.of([]), NOW + 3630)
    assert verifier().verify(signed(claims(tcpgw=said)), NOW) == expected
    assert verifier().verify(signed(claims(tcpgw={})), NOW) == ALICE


def test_claims_have_the_names_of_the_terms() -> None:
    """The subject and what it may use stand where the terms say."""
    by = verifier(subject="email", permissions="https://x/may", issuer="https://idp", leeway=0.0)
    said = {"email": "a@x", "https://x/may": {"services": ["s"]}, "iss": "https://idp", "sub": None}
    expected = Grant("a@x", services=Names.of(["s"]), expires=NOW + 3600)
    assert by.verify(signed(claims(**said)), NOW) == expected


def test_one_audience_of_several() -> None:
    """A token for several audiences is for this one too."""
    assert verifier().verify(signed(claims(aud=["x", AUDIENCE])), NOW) == ALICE


def test_a_token_may_be_used_again() -> None:
    """A token is a bearer's: a replay is as good as the first use, also with a jti, until it expires."""
    by, token = verifier(), signed(claims(jti="1"))
    assert by.verify(token, NOW) == by.verify(token, NOW + 3629) == ALICE
    assert refused(token, NOW + 3630, by) == Reason.EXPIRED


def test_no_kid_means_the_only_key() -> None:
    """A token that names no key is good by the only key of its algorithm, and of two by neither."""
    assert verifier().verify(signed(claims(), kid=None), NOW) == ALICE
    two = verifier(public_rsa(), public_rsa("r2"))
    with pytest.raises(UnknownKey, match="no RS256 key of the set has the JWT's kid None"):
        two.verify(signed(claims(), kid=None), NOW)


# ---- time ----


@pytest.mark.parametrize(
    ("changed", "now", "reason"),
    [
        ({}, NOW + 3629.9, None),
        ({}, NOW + 3630, Reason.EXPIRED),
        ({"exp": NOW - 30}, NOW, Reason.EXPIRED),
        ({"exp": int(NOW)}, NOW, None),
        ({"nbf": NOW + 30}, NOW, None),
        ({"nbf": NOW + 30.1}, NOW, Reason.NOT_YET),
        ({"iat": NOW + 31, "nbf": None}, NOW, Reason.NOT_YET),
        ({"iat": None, "nbf": None}, NOW, None),
        ({"exp": None}, NOW, Reason.CLAIMS),
        ({"exp": str(NOW)}, NOW, Reason.CLAIMS),
        ({"exp": True}, NOW, Reason.CLAIMS),
        ({"exp": -1}, NOW, Reason.CLAIMS),
        ({"exp": 1e300}, NOW, Reason.CLAIMS),
        ({"exp": 10**30}, NOW, Reason.CLAIMS),
        ({"nbf": "0"}, NOW, Reason.CLAIMS),
        ({"iat": [0]}, NOW, Reason.CLAIMS),
    ],
)
def test_time(changed: dict[str, Any], now: float, reason: Reason | None) -> None:
    """A token must end, is good between its times with the leeway on both sides, and all are numbers."""
    token = signed(claims(**changed))
    if reason is None:
        assert verifier().verify(token, now).subject == "alice"
    else:
        assert refused(token, now) == reason


# ---- claims ----


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": None},
        {"aud": "another"},
        {"aud": ["another", 7]},
        {"aud": []},
        {"aud": {"tcpgw": 1}},
        {"aud": "tcpgw2"},
        {"iss": None},
        {"iss": "https://idp/"},
        {"iss": ["https://idp"]},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "a\nb"},
        {"sub": "x" * 256},
        {"tcpgw": []},
        {"tcpgw": "services"},
        {"tcpgw": {"service": ["typing error"]}},
        {"tcpgw": {"services": None}},
        {"tcpgw": {"services": "resnet"}},
        {"tcpgw": {"services": {"resnet": 1}}},
        {"tcpgw": {"services": ["a", 1]}},
        {"tcpgw": {"services": [["a"]]}},
    ],
)
def test_claims_of_a_wrong_shape(changed: dict[str, Any]) -> None:
    """A token for or of somebody else, of nobody, or with rights that are not understood is denied."""
    by = verifier(issuer="https://idp")
    assert by.verify(signed(claims(iss="https://idp")), NOW) == ALICE
    assert refused(signed(claims(**{"iss": "https://idp", **changed})), by=by) == Reason.CLAIMS


def test_null_is_not_missing() -> None:
    """A claim that is null is not a claim that is missing."""
    for name in ("tcpgw", "nbf", "exp", "sub", "aud"):
        body = segment({**claims(), name: None})
        assert refused(_by_secret({"alg": "HS256"}, body), by=Verifier(terms("HS256"))) == Reason.CLAIMS


@pytest.mark.parametrize("body", [b"[]", b"", b"{", b"\xff", b'{"exp": NaN}', b"[" * 6000])
def test_claims_that_are_no_object(body: bytes) -> None:
    """What is signed must be a JSON object."""
    token = _by_secret({"alg": "HS256"}, segment(body))
    expected = Reason.MALFORMED if len(token) > MAX_TOKEN else Reason.CLAIMS
    assert refused(token, by=Verifier(terms("HS256"))) == expected


# ---- form ----


def _by_secret(header: Any, body: bytes | None = None, secret: bytes = SECRET) -> bytes:
    data = segment(header) + b"." + (segment(claims()) if body is None else body)
    return data + b"." + segment(hmac.digest(secret, data, "sha256"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda _: b"..",
        lambda _: b"a.b",
        lambda token: token.rpartition(b".")[0],
        lambda token: token + b".x",
        lambda token: token + b"=",
        lambda token: token + b"\n",
        lambda token: b" " + token,
        lambda token: token.replace(b".", b"..", 1),
        lambda token: token.replace(b".", b".+", 1),
        lambda token: b"\xff" + token,
        lambda token: segment([]) + token[token.index(b".") :],
        lambda token: segment(b"{") + token[token.index(b".") :],
        lambda token: segment(b"[" * 2000) + token[token.index(b".") :],
        lambda token: token[:-1] + bytes([token[-1] + 1]),  # the same signature, written in another way
    ],
)
def test_malformed(spoil: Callable[[bytes], bytes]) -> None:
    """What is not three parts in base64url with a header in front is refused before any key is looked at."""
    assert refused(spoil(signed(claims()))) == Reason.MALFORMED


def test_text_that_is_no_ascii() -> None:
    """Text comes out as bytes would."""
    assert refused("é.\ud800.x") == Reason.MALFORMED


@pytest.mark.parametrize("cut", [1, 10, 100, 300])
def test_truncated(cut: int) -> None:
    """A token that lost its end is not good by what is left."""
    assert refused(signed(claims())[:-cut]) in {Reason.MALFORMED, Reason.SIGNATURE}


def test_oversized() -> None:
    """A token of 8 KiB is read, a longer one is not, however good."""

    def of(size: int) -> bytes:
        return signed(claims(filler="x" * size), "ES256")

    fitting = max(
        (of(size) for size in range(5800, 5950)), key=lambda token: (len(token) <= MAX_TOKEN, len(token))
    )
    assert MAX_TOKEN - 4 < len(fitting) <= MAX_TOKEN
    assert verifier().verify(fitting, NOW) == ALICE
    assert refused(of(6000)) == Reason.MALFORMED


@pytest.mark.parametrize(
    "header",
    [
        {"crit": ["b64"], "b64": True},
        {"crit": ["exp"]},
        {"crit": []},
        {"b64": False},
        {"kid": 7},
        {"kid": ["r1"]},
    ],
)
def test_header_that_is_not_understood(header: dict[str, Any]) -> None:
    """An extension is refused rather than passed over, and a key's name must be text."""
    token = _by_secret({"alg": "HS256", **header})
    assert refused(token, by=Verifier(terms("HS256"))) == Reason.MALFORMED


# ---- attacks on the signature ----


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "nOnE", "", None, 7, [], {}, "RS512", "PS256", "rs256"]
)
@pytest.mark.parametrize("signature", [b"", b"AAAA"])
def test_no_algorithm_of_the_clients_choice(algorithm: Any, signature: bytes) -> None:
    """An unsigned token, or one of an algorithm that the terms lack, is refused."""
    token = segment({"alg": algorithm, "kid": "r1"}) + b"." + segment(claims()) + b"." + signature
    assert refused(token) == Reason.ALGORITHM


@pytest.mark.parametrize(
    "secret",
    [PEM, PEM.strip(), jwks().encode(), json.dumps(public_rsa()).encode(), public_rsa()["n"].encode()],
)
@pytest.mark.parametrize("header", [{"alg": "HS256", "kid": "r1"}, {"alg": "HS256"}])
def test_a_public_key_is_no_secret(secret: bytes, header: dict[str, str]) -> None:
    """A token signed with the public key as a secret is refused, also where HS256 is taken too."""
    token = _by_secret(header, secret=secret)
    assert refused(token) == Reason.ALGORITHM
    both = Verifier(terms("HS256", "RS256"), KeySet.parse(jwks()))
    assert refused(token, by=both) == Reason.SIGNATURE


def test_an_algorithm_of_another_key() -> None:
    """A key verifies its own algorithm alone, whatever the header says."""
    for header in ({"alg": "ES256", "kid": "r1"}, {"alg": "RS256", "kid": "e1"}):
        token = segment(header) + b"." + segment(claims()) + b"." + segment(b"\0" * 64)
        assert refused(token) == Reason.UNKNOWN


def test_an_algorithm_that_only_the_set_has() -> None:
    """A key in the set does not make its algorithm acceptable."""
    by = Verifier(terms("RS256"), KeySet.parse(jwks()))
    assert refused(signed(claims(), "ES256"), by=by) == Reason.ALGORITHM


def test_another_signer() -> None:
    """A token by a stranger's key, under a known kid, is refused."""
    assert refused(signed(claims(), kid="r1", key=rsa_key("stranger"))) == Reason.SIGNATURE
    assert refused(signed(claims(), "ES256", kid="e1", key=ec_key("stranger"))) == Reason.SIGNATURE


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
def test_a_key_in_the_header_is_not_read(name: str) -> None:
    """A token cannot bring the key that verifies it."""
    values: dict[str, Any] = {"jwk": public_rsa("stranger"), "x5c": ["AAAA"]}
    brought = {name: values.get(name, "https://stranger.example/jwks")}
    token = signed(claims(), kid="r1", key=rsa_key("stranger"), **brought)
    assert refused(token) == Reason.SIGNATURE


@pytest.mark.parametrize("signature", [b"", b"\0" * 64, b"\xff" * 64, b"\0" * 63, b"\0" * 256])
@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_an_empty_signature(signature: bytes, algorithm: str) -> None:
    """No signature, or one of zeros (the "psychic" one of ECDSA), is none."""
    data = signed(claims(), algorithm).rpartition(b".")[0]
    assert refused(data + b"." + segment(signature)) == Reason.SIGNATURE


def test_claims_of_another_token() -> None:
    """What was signed cannot be exchanged."""
    header, _, signature = signed(claims()).split(b".")
    forged = b".".join([header, segment(claims(sub="root")), signature])
    assert refused(forged) == Reason.SIGNATURE


def test_the_signature_comes_first() -> None:
    """What a forged token says does not matter, so its denial tells nothing of the claims."""
    forged = signed(claims(exp=0, aud="x"), kid="r1", key=rsa_key("stranger"))
    assert refused(forged) == Reason.SIGNATURE


# ---- rotation ----


def test_rotation() -> None:
    """A new key is unknown until the set has it; then old and new are good, and at last the new one alone."""
    old, new = signed(claims()), signed(claims(), kid="r2")
    with pytest.raises(UnknownKey, match="no RS256 key of the set has the JWT's kid 'r2'"):
        verifier(public_rsa()).verify(new, NOW)
    both = verifier(public_rsa(), public_rsa("r2"))
    assert both.verify(old, NOW) == both.verify(new, NOW) == ALICE
    assert refused(old, by=verifier(public_rsa("r2"))) == Reason.UNKNOWN


# ---- what is remembered ----


def test_good_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that was good is not verified again until it expires; a bad one is, each time."""
    by, token = verifier(), signed(claims())
    bad = signed(claims(), kid="r1", key=rsa_key("stranger"))
    by.verify(token, NOW)
    calls: list[bytes] = []
    anew = Verifier._claims

    def counted(self: Verifier, data: bytes) -> dict[str, Any]:
        calls.append(data)
        return anew(self, data)

    monkeypatch.setattr(Verifier, "_claims", counted)
    assert by.verify(token, NOW + 1) == ALICE
    assert calls == []
    assert refused(token, NOW + 3630, by) == Reason.EXPIRED
    assert refused(bad, by=by) == refused(bad, by=by) == Reason.SIGNATURE
    assert calls == [token, bad, bad]
    assert by._remembered == {}


def test_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens come, a bounded number is remembered."""
    monkeypatch.setattr(jwt, "_REMEMBERED", 3)
    by = Verifier(terms("HS256"))
    for number in range(10):
        by.verify(signed(claims(sub=f"s{number}"), "HS256"), NOW)
    assert [grant.subject for grant in by._remembered.values()] == ["s7", "s8", "s9"]


# ---- terms ----


@pytest.mark.parametrize(
    ("algorithms", "secret", "told"),
    [
        (("HS256",), None, "HS256 needs a secret"),
        (("RS256",), SECRET, "a secret needs HS256"),
        (("HS256",), SECRET[:-1], "must have 32 bytes or more"),
        (("HS256", "RS256"), PEM, "must not be a public key"),
        (("HS256",), json.dumps(public_rsa()).encode(), "must not be a public key"),
    ],
)
def test_terms_that_are_not_safe(algorithms: tuple[Algorithm, ...], secret: bytes | None, told: str) -> None:
    """A secret must be one, and long enough."""
    with pytest.raises(ValueError, match=told):
        JwtTerms(algorithms, AUDIENCE, secret=secret)


def test_terms_do_not_print_their_secret() -> None:
    """The secret does not stand in the terms' text."""
    assert "0123456789" not in repr(terms("HS256"))


# ---- sets of keys ----


def test_a_set_with_all_sorts_of_keys() -> None:
    """Keys for other uses are passed over with their reasons, and those that can be used are."""
    set_ = KeySet.parse(
        jwks(
            public_rsa(),
            public_ec(use="sig", alg="ES256", key_ops=["verify"]),
            public_rsa("r2", use="enc"),
            public_rsa("r3", key_ops=["encrypt"]),
            public_rsa("r4", key_ops="verify"),
            public_rsa("r5", alg="RS512"),
            public_ec("e2", crv="P-384"),
            {"kty": "oct", "k": "c2VjcmV0", "kid": "o"},
            {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
            {"kty": ["RSA"]},
            "text",
            public_rsa("r6", n=None),
            public_rsa("r7", e=65537),
            public_rsa("r8", n="+/+/"),
            public_rsa("r9", n="é"),
            public_rsa("r10", n="AQAB"),
            public_rsa("r11", n="_" * 2000),
            public_rsa("r12", n="_" * 342),
            public_ec("e3", x="AA"),
            public_ec("e4", x="A" * 43),
            public_rsa("r13", e="AA"),
            public_rsa(7),  # type: ignore[arg-type]
        )
    )
    assert set(set_.keys) == {("RS256", "r1"), ("ES256", "e1")}
    assert len(set_.ignored) == 20
    assert set_.ignored[0] == "key 2 (kid 'r2'): is not for verifying signatures (use, key_ops)"
    assert set_.ignored[3] == "key 5 (kid 'r5'): is not for RS256 but for alg 'RS512'"
    assert set_.ignored[8] == "key 10: is neither RSA, with n and e, nor EC on P-256, with x and y"
    assert set_.ignored[13] == "key 15 (kid 'r10'): has 17 bits, not 2048 to 8192"


def test_a_small_rsa_key_is_not_used() -> None:
    """What can be factored proves nothing."""
    small = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1()).public_key(), as_dict=True)
    assert "has 24 bits, not 2048" in key_set_error(jwks(public_rsa(n="____"), small))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not a set of keys"),
        ("[]", "not a set of keys"),
        (b"\xff", "not a set of keys"),
        ("\ud800", "not a set of keys"),
        ("[" * 5000, "not a set of keys"),
        ("<html>", "not a set of keys"),
        ("{}", 'it has no list "keys"'),
        ('{"keys": {}}', 'it has no list "keys"'),
        ('{"keys": []}', "it is empty"),
        (" " * (MAX_SET + 1), "at most 1 MiB"),
        (json.dumps({"keys": [{}] * (MAX_KEYS + 1)}), "has 1001 keys; at most 1000 are read"),
        (json.dumps({"keys": [{}] * MAX_KEYS}), "key 0: is neither RSA"),
        (jwks(public_rsa(), public_rsa()), "key 1 (kid 'r1'): another RS256 key has the same kid"),
        (jwks(public_rsa(None), public_rsa(None)), "another RS256 key has the same kid, or none too"),
    ],
)
def test_what_is_no_set(text: str | bytes, told: str) -> None:
    """What is no set, too large, ambiguous or of no use is refused with what is wrong, in one short line."""
    error = key_set_error(text)
    assert told in error
    assert error.isprintable()
    assert len(error) < 3000


def test_one_kid_for_two_algorithms() -> None:
    """A kid may stand for an RSA and an EC key, which RFC 7517 allows."""
    both = KeySet.parse(jwks(public_rsa(), public_ec("r1")))
    assert set(both.keys) == {("RS256", "r1"), ("ES256", "r1")}


@pytest.mark.parametrize("members", [{"d": "c2VjcmV0"}, {"p": "c2VjcmV0"}, {"oth": []}])
@pytest.mark.parametrize("key", [public_rsa, public_ec])
def test_a_private_key_is_refused(key: Callable[..., dict[str, Any]], members: dict[str, Any]) -> None:
    """A set that tells how to sign proves nothing; the error names the key and prints nothing of it."""
    error = key_set_error(jwks(public_rsa("r2"), key("r1", **members)))
    assert error.startswith("key 1 (kid 'r1') is a private key")
    assert "c2VjcmV0" not in error
