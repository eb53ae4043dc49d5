"""What a listener makes of tokens and certificates."""

import subprocess
import sys
from collections.abc import Mapping

import pytest

from tcpgw.access.credentials import Credentials
from tcpgw.access.denial import Denied, Reason, UnknownKey
from tcpgw.access.grant import Grant, Names, Permissions, Subjects
from tcpgw.access.jwt import JwtTerms, KeySet, Verifier
from tcpgw.access.keys import Keys, new_key, parse
from tests.support.tokens import AUDIENCE, NOW, claims, jwks, public_rsa, rsa_key, signed

KEY = new_key("carol", expires=NOW + 10, services=["resnet*"])
LIMITED = new_key("dave", listeners=["predict"])
KEYS = Keys(parse(f"{KEY.line}\n{LIMITED.line}"))
JWT = Verifier(JwtTerms(("RS256",), AUDIENCE), KeySet.parse(jwks(public_rsa())))
RESNET = Permissions(services=Names.of(["resnet-a"]))
ELSEWHERE = Permissions(listeners=Names.of(["admin"]))


def made(
    rules: Mapping[str, Permissions] | None = None,
    *,
    keys: Keys | None = KEYS,
    jwt: Verifier | None = JWT,
    listener: str = "predict",
) -> Credentials:
    return Credentials(keys, jwt, None if rules is None else Subjects(rules), listener)


def refused(credentials: Credentials, token: bytes | str, now: float = NOW) -> Reason:
    with pytest.raises(Denied) as caught:
        credentials.verify(token.encode() if isinstance(token, str) else token, now)
    assert str(caught.value).isprintable()
    return caught.value.reason


def test_both_kinds_are_told_apart() -> None:
    """A token with two dots is a JWT, one of the other form an API key; each gives what it says itself."""
    assert made().verify(KEY.key.encode(), NOW) == Grant(
        "carol", services=Names.of(["resnet*"]), expires=NOW + 10
    )
    assert made().verify(signed(claims()), NOW) == Grant("alice", expires=NOW + 3630)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (b"", Reason.MALFORMED),
        (b"password", Reason.MALFORMED),
        (b"\xff\0", Reason.MALFORMED),
        (b"a.b.c", Reason.MALFORMED),
        (b"a.b.c.d.e", Reason.MALFORMED),
        (b"." * 100_000, Reason.MALFORMED),
        (KEY.key[:-1], Reason.MALFORMED),
        (KEY.key + "A", Reason.MALFORMED),
        (new_key("carol").key, Reason.UNKNOWN),
        (signed(claims(), key=rsa_key("stranger")), Reason.SIGNATURE),
        (signed(claims(exp=1)), Reason.EXPIRED),
        (signed(claims(nbf=NOW + 100)), Reason.NOT_YET),
        (signed(claims(aud="x")), Reason.CLAIMS),
        (signed(claims(), "ES256"), Reason.ALGORITHM),
        (signed(claims(tcpgw={"listeners": ["other"]})), Reason.LISTENER),
    ],
)
def test_reasons(token: bytes | str, reason: Reason) -> None:
    """Each denial has its reason, for who counts them."""
    assert refused(made(), token) == reason


def test_an_expired_api_key() -> None:
    """A key that has ended is told from one that never was."""
    assert refused(made(), KEY.key, NOW + 10) == Reason.EXPIRED


def test_an_unknown_signing_key_is_told() -> None:
    """Who holds the set can see that a newer one might help."""
    with pytest.raises(UnknownKey):
        made().verify(signed(claims(), kid="r2"), NOW)


def test_what_the_listener_does_not_take() -> None:
    """A kind that is not configured is refused, however good."""
    assert refused(made(jwt=None), signed(claims())) == Reason.UNKNOWN
    assert refused(made(keys=None), KEY.key) == Reason.UNKNOWN
    assert refused(made(keys=None), "password") == Reason.MALFORMED


def test_subjects_of_jwts() -> None:
    """With subjects a JWT needs a rule, and gives what both allow."""
    token = signed(claims(tcpgw={"services": ["resnet*"], "methods": ["predict"]}))
    expected = Grant("alice", None, Names.of(["resnet-a"]), Names.of(["predict"]), NOW + 3630)
    assert made({"al*": RESNET}).verify(token, NOW) == expected
    assert refused(made({"bob": RESNET}), token) == Reason.SUBJECT
    assert refused(made({}), token) == Reason.SUBJECT
    assert refused(made({"alice": ELSEWHERE}), token) == Reason.LISTENER


def test_subjects_of_api_keys() -> None:
    """An API key's line is a rule of its own, which a rule of its subject narrows."""
    itself = Grant("carol", services=Names.of(["resnet*"]), expires=NOW + 10)
    narrower = Grant("carol", services=Names.of(["resnet-a"]), expires=NOW + 10)
    token = KEY.key.encode()
    assert made({"bob": RESNET}).verify(token, NOW) == itself
    assert made({"carol": RESNET}).verify(token, NOW) == narrower
    assert refused(made({"carol": ELSEWHERE}), token) == Reason.LISTENER


def test_an_api_key_for_one_listener() -> None:
    """A key that is limited to a listener is none at another."""
    assert made().verify(LIMITED.key.encode(), NOW).subject == "dave"
    assert refused(made(listener="other"), LIMITED.key) == Reason.LISTENER


def test_a_token_may_be_used_again() -> None:
    """A replay is as good as the first use, until the token expires: both kinds are a bearer's."""
    credentials, token = made(), signed(claims())
    assert credentials.verify(token, NOW) == credentials.verify(token, NOW + 5)
    assert credentials.verify(KEY.key.encode(), NOW) == credentials.verify(KEY.key.encode(), NOW + 5)
    assert refused(credentials, token, NOW + 4000) == Reason.EXPIRED


@pytest.mark.parametrize(
    ("names", "subject"),
    [
        (["spiffe://x/y", "host.example.com", "bob"], "spiffe://x/y"),
        (["other.example.com", "bob"], "bob"),
        (["bad\nname", "", "bob"], "bob"),
        (["mallory"], None),
        ([], None),
    ],
)
def test_a_certificate_is_its_first_name_with_a_rule(names: list[str], subject: str | None) -> None:
    """The first name that subjects have a rule for counts; without one the certificate is no credential."""
    rules = {"spiffe://x/*": RESNET, "host.example.com": Permissions(), "bob": RESNET}
    grant = made(rules).certificate(names)
    assert grant == (Grant(subject, services=RESNET.services) if subject else None)


def test_a_certificate_without_subjects() -> None:
    """Without subjects a certificate's first name is the subject, and gives all."""
    assert made().certificate(["bob", "x"]) == Grant("bob")
    assert made().certificate(["a\nb"]) is None


def test_a_certificate_for_another_listener() -> None:
    """The first name with a rule counts even where a later one would give more."""
    with pytest.raises(Denied) as caught:
        made({"bob": ELSEWHERE, "x": Permissions()}).certificate(["bob", "x"])
    assert caught.value.reason == Reason.LISTENER


def test_api_keys_need_no_openssl() -> None:
    """A worker that meets no JWTs does not load what verifies them."""
    code = "import sys, tcpgw.access.credentials; print('jwt' in sys.modules, 'cryptography' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout.split() == ["False", "False"]


# ---- after a change ----


def test_what_a_key_file_still_says() -> None:
    """A key upholds what it gave while its line says the same, and is there."""
    made, other = new_key("alice", services=["main"]), new_key("bob")

    def of(*lines: str) -> Credentials:
        return Credentials(Keys(parse("\n".join(lines))), None, None, "l")

    grant = of(made.line).verify(made.key.encode(), NOW)
    assert of(other.line, made.line).upholds(grant, NOW)
    assert not of(other.line).upholds(grant, NOW)
    assert not of(made.line.replace("main", "other")).upholds(grant, NOW)
    assert not of(f"{made.line} expires=2020-01-01").upholds(grant, NOW)
    assert not Credentials(None, None, None, "l").upholds(grant, NOW)


def test_what_subjects_still_say() -> None:
    """What narrowed a grant may change as well: the grant is what its credential said, narrowed anew."""
    made = new_key("alice")
    keys = Keys(parse(made.line))

    def of(*services: str) -> Credentials:
        rule = Permissions(services=Names.of(services))
        return Credentials(keys, None, Subjects({"alice": rule, "host": rule}), "l")

    for grant in (of("main").verify(made.key.encode(), NOW), of("main").certificate(["host"])):
        assert grant is not None
        assert of("main").upholds(grant, NOW)
        assert not of("main", "other").upholds(grant, NOW)
    certified = of("main").certificate(["host"])
    assert certified is not None
    assert not Credentials(keys, None, Subjects({}), "l").upholds(certified, NOW)
