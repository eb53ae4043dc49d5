"""What certificates, keys and lists are taken, which is shown to whom, and what is said of the others."""

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tcpgw.access.tls import client_context, names, refusal, server_context
from tcpgw.errors import TlsError
from tests.support.certificates import HOUR, Authority, Issued, now

AUTHORITY = Authority()
FIRST = AUTHORITY.issue("a.example", "*.wild.example")
SECOND = AUTHORITY.issue("b.example", "x.wild.example", "a.example")
PLAIN = b"hello"
HALF = b"-----BEGIN X509 CRL-----\nxx\n-----END X509 CRL-----\n"


def shown(context: ssl.SSLContext) -> set[str]:
    """The names in the certificate that a context shows."""
    client = client_context(ca=AUTHORITY.pem)
    client.check_hostname = False
    pipes = [ssl.MemoryBIO() for _ in range(2)]
    server_end = context.wrap_bio(pipes[0], pipes[1], server_side=True)
    client_end = client.wrap_bio(pipes[1], pipes[0])
    for end in (client_end, server_end, client_end):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return set(names(client_end.getpeercert() or {}))


# ---- which certificate ----


@pytest.mark.parametrize(
    ("asked", "which"),
    [
        ("a.example", FIRST),
        ("b.example", SECOND),
        ("x.wild.example", SECOND),
        ("y.wild.example", FIRST),
        ("wild.example", FIRST),
        ("z.y.wild.example", FIRST),
        ("b.example.org", FIRST),
        ("", FIRST),
    ],
)
def test_the_certificate_is_chosen_by_its_names(asked: str, which: Issued) -> None:
    """An exact name wins over a wildcard, of one name the first; who is unknown gets the first of all."""
    tls = server_context([FIRST, SECOND])
    expected = (
        {"a.example", "*.wild.example"} if which is FIRST else {"b.example", "x.wild.example", "a.example"}
    )
    assert shown(tls.choose(asked)) == expected


def test_a_wildcard_stands_for_one_label() -> None:
    """Neither for none nor for two."""
    tls = server_context([SECOND, FIRST])
    first, second = tls.choose(""), tls.choose("y.wild.example")
    assert first is not second
    assert tls.choose("z.y.wild.example") is tls.choose("wild.example") is first


def test_a_certificate_without_alternative_names_is_chosen_by_its_subject() -> None:
    """As certificates were made for long."""
    old = AUTHORITY.issue(cn="Old.example")
    tls = server_context([FIRST, old])
    assert tls.choose("old.example") is not tls.choose("")


def test_the_key_may_stand_in_the_chain() -> None:
    """One file with both is enough."""
    tls = server_context([(FIRST.key + FIRST.chain, None)])
    assert "a.example" in shown(tls.choose(""))


def test_nothing_old_is_spoken() -> None:
    """At least TLS 1.2 with ephemeral keys and authenticated encryption; 1.3 alone where that is wanted."""
    for context in (server_context([FIRST]).choose(""), client_context()):
        ciphers = [one["name"] for one in context.get_ciphers()]
        assert len(ciphers) > 4
        assert all(
            name.startswith(("TLS_", "ECDHE-")) and ("GCM" in name or "CHACHA" in name) for name in ciphers
        )
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        assert ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION in context.options
    newest = server_context([FIRST], min_version="1.3").choose("")
    assert newest.minimum_version == ssl.TLSVersion.TLSv1_3


# ---- times ----


def test_when_something_expires() -> None:
    """The first certificate of all chains and the first list count, even if that has been."""
    soon, past = now() + HOUR, now() - HOUR
    one, other = AUTHORITY.issue("a", expires=soon), AUTHORITY.issue("b", expires=past)
    assert server_context([one]).expires_at == soon.timestamp()
    assert server_context([one, other]).expires_at == past.timestamp()
    assert server_context([one]).crl_expires_at is None
    lists = AUTHORITY.crl(until=past) + AUTHORITY.crl(until=soon)
    tls = server_context([one], client_ca=AUTHORITY.pem, client_crl=lists)
    assert tls.crl_expires_at == past.timestamp()


# ---- what is wrong ----


def small_key() -> Issued:
    """One that OpenSSL finds too weak to be taken."""
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        NoEncryption,
        PrivateFormat,
    )
    from cryptography.x509 import CertificateBuilder, Name  # noqa: PLC0415

    key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    name = Name.from_rfc4514_string("CN=small")
    builder = CertificateBuilder(name, name, key.public_key(), 1, now() - HOUR, now() + HOUR)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return Issued(certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            lambda: server_context([FIRST, (PLAIN, FIRST.key)]),
            "certificates[1].chain: no certificates in PEM form",
        ),
        (lambda: server_context([(b"", FIRST.key)]), "certificates[0].chain: no certificates in PEM form"),
        (lambda: server_context([(FIRST.chain, PLAIN)]), "certificates[0].key: no private key in PEM form"),
        (
            lambda: server_context([(FIRST.chain, None)]),
            "key in PEM form behind the chain, and none was given",
        ),
        (
            lambda: server_context([(FIRST.chain, SECOND.key)]),
            "key is not that of the chain's first certificate",
        ),
        (
            lambda: server_context([(FIRST.chain, FIRST.encrypted())]),
            "certificates[0].key: the key is encrypted",
        ),
        (
            lambda: server_context([(FIRST.chain + FIRST.encrypted(), None)]),
            "certificates[0].key: the key is enc",
        ),
        (
            lambda: server_context([small_key()]),
            "certificates[0]: OpenSSL does not take it (EE_KEY_TOO_SMALL)",
        ),
        (lambda: server_context([FIRST], client_ca=PLAIN), "client_ca: no certificates in PEM form"),
        (
            lambda: server_context([FIRST], client_ca=FIRST.key, client_crl=PLAIN),
            "client_crl: no CRL in PEM form",
        ),
        (
            lambda: server_context([FIRST], client_crl=HALF),
            "client_crl: a CRL that cannot be read (",
        ),
        (lambda: client_context(ca=PLAIN), "ca: no certificates in PEM form"),
        (
            lambda: server_context([FIRST], client_crl=AUTHORITY.crl() + HALF[:27]),
            "client_crl: OpenSSL does not take it (",
        ),
        (lambda: client_context(certificate=FIRST.chain, key=SECOND.key), "key: the key is not that of"),
        (lambda: client_context(certificate=small_key().chain, key=small_key().key), "EE_KEY_TOO_SMALL"),
    ],
)
def test_errors_name_the_input(build: Callable[[], object], expected: str) -> None:
    """Which of the inputs is wrong, and how; never with the advice for developers that libraries give."""
    with pytest.raises(TlsError) as caught:
        build()
    assert expected in str(caught.value)
    assert "https" not in str(caught.value)
    assert caught.value.blame == "operator"
    assert str(caught.value) == f"{caught.value.where}: {caught.value.why}"


def test_refusals_say_what_the_operator_has_to_do() -> None:
    """A stale or a missing list is not the client's fault."""
    exc = ssl.SSLCertVerificationError()
    exc.verify_message = "CRL has expired"
    for code, expected in ((12, "renew it"), (3, "add it"), (20, "expired")):
        exc.verify_code = code
        assert refusal(exc).endswith(expected)


# ---- names ----


def test_names_in_their_order() -> None:
    """URIs, DNS names, emails, then the subject's common name; each once, and nothing else."""
    certificate = {
        "subject": ((("organizationName", "Org"),), (("commonName", "bob"),)),
        "subjectAltName": (
            ("DNS", "b.example"),
            ("email", "bob@example"),
            ("IP Address", "10.0.0.1"),
            ("URI", "spiffe://x/bob"),
            ("DNS", "bob"),
        ),
    }
    assert names(certificate) == ("spiffe://x/bob", "b.example", "bob", "bob@example")
    assert names({"subject": certificate["subject"]}) == ("bob",)
    assert names({}) == ()


def test_files_are_not_left_open() -> None:
    """What OpenSSL has read is closed, also where it does not take it."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    server_context([FIRST], client_ca=AUTHORITY.pem, client_crl=AUTHORITY.crl())
    with pytest.raises(TlsError):
        server_context([(FIRST.chain, SECOND.key)])
    assert len(list(Path("/proc/self/fd").iterdir())) == before
