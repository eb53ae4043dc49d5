"""Mutual TLS: who a certificate says that its client is, and what that lets it use."""

import json
import ssl
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from tcpgw.access.keys import new_key
from tests.support.certificates import AUTHORITY, Authority, Issued, client_side, now
from tests.support.secure import MUTUAL, SecureBed, Secured, bed, server_tls, versions
from tests.support.streams import in_time

ALICE = AUTHORITY.issue("alice.example.com", cn="alice")
BOB = AUTHORITY.issue("bob@example.com", cn="bob")
STRANGER = Authority().issue("alice.example.com", cn="alice")
EXPIRED = AUTHORITY.issue("alice.example.com", expires=now() - timedelta(hours=1))
REVOKED = AUTHORITY.issue("mallory.example.com")

REQUIRED = server_tls("server", more=MUTUAL)
OPTIONAL = server_tls("server", more=f'{MUTUAL}, client_certificate = "optional"')


def subjects(*patterns: str, **services: Sequence[str]) -> str:
    """Rules for who may use all, and for who may use some."""
    rules = [f'"{pattern}" = {{}}' for pattern in patterns]
    rules += [f'"{name}" = {{ services = {json.dumps(allowed)} }}' for name, allowed in services.items()]
    return "\n".join(["[listener.access.subjects]", *rules, ""])


async def served(b: SecureBed, own: Issued | None, number: int = 0) -> Secured:
    client = await b.client(client_side(own))
    await client.send(b"hello")
    instance = await b.accept(number)
    assert await instance.read(5) == b"hello"
    return client


@pytest.mark.parametrize(
    ("own", "pattern", "subject"),
    [
        (ALICE, "alice.example.com", "alice.example.com"),
        (ALICE, "alice", "alice"),
        (ALICE, "*", "alice.example.com"),
        (ALICE, "alice.*", "alice.example.com"),
        (BOB, "bob@example.com", "bob@example.com"),
    ],
)
async def test_the_first_name_with_a_rule(tmp_path: Path, own: Issued, pattern: str, subject: str) -> None:
    """It is the subject, and stands on the closing line."""
    async with bed(tmp_path, listener=f"{REQUIRED}{subjects(pattern)}") as b:
        client = await served(b, own)
        client.peer.reset()
        assert (await b.line())["subject"] == subject


async def test_without_rules_any_certificate_will_do(tmp_path: Path) -> None:
    """Who has one of the authority's may use all, under its first name."""
    async with bed(tmp_path, listener=REQUIRED) as b:
        (await served(b, ALICE)).peer.reset()
        assert (await b.line())["subject"] == "alice.example.com"


@pytest.mark.parametrize("version", versions)
async def test_a_certificate_and_no_rule(tmp_path: Path, version: str) -> None:
    """The client is denied within TLS, and no instance hears of it."""
    async with bed(tmp_path, listener=f"{REQUIRED}{subjects('alice')}") as b:
        client = await b.client(client_side(BOB, version=version))
        await client.send(b"hello")
        assert await client.read_to_end() == b"TCPGW DENIED\n"
        line = await b.denied()
        assert (line["reason"], line["client"]) == ("denied_credentials", client.peer.address)
        assert b.pool.loads.total == 0


@pytest.mark.parametrize("version", versions)
@pytest.mark.parametrize(
    ("own", "alert", "error"),
    [
        (STRANGER, "UNKNOWN_CA", "unable to get local issuer certificate"),
        (EXPIRED, "CERTIFICATE_EXPIRED", "certificate has expired"),
        (REVOKED, "CERTIFICATE_REVOKED", "certificate revoked"),
        (None, "CERTIFICATE_REQUIRED", "no certificate was shown"),
    ],
    ids=["unknown", "expired", "revoked", "none"],
)
async def test_certificates_that_are_refused(
    tmp_path: Path, own: Issued | None, alert: str, error: str, version: str
) -> None:
    """The client reads the alert, whatever it has sent meanwhile; the operator reads why."""
    if own is None and version == "1.2":
        alert = "HANDSHAKE_FAILURE"  # of old there is no better one
    (tmp_path / "clients.crl").write_bytes(AUTHORITY.crl([REVOKED]))
    listener = server_tls("server", more=f'{MUTUAL}, client_crl = "clients.crl"')
    async with bed(tmp_path, listener=listener) as b:
        client = b.secured(client_side(own, version=version))
        assert alert in await _refused(client)
        line = await b.denied()
        assert (line["reason"], error in line["error"]) == ("tls_error", True)
        await served(b, ALICE)


async def _refused(client: Secured) -> str:
    """The alert that a client reads that goes on sending as soon as it may."""
    try:
        await client.shake()
        await client.send(bytes(100_000))
        await client.read_some()
    except ssl.SSLError as exc:
        return str(exc.reason)
    finally:
        client.peer.close()
    return ""


async def test_one_that_shows_none_where_it_is_optional(tmp_path: Path) -> None:
    """An API key stands for it; without either it is denied, and with a certificate it needs no key."""
    key = new_key("carol")
    (tmp_path / "keys").write_text(f"{key.line}\n")
    rules = f'{OPTIONAL}[listener.access]\napi_keys = "keys"\n{subjects("alice")}'
    async with bed(tmp_path, listener=rules) as b:
        client = await b.client()
        await client.send(f"TCPGW AUTH {key.key}\nhello".encode())
        instance = await b.accept()
        assert await instance.read(5) == b"hello"
        client.peer.reset()
        assert (await b.line())["subject"] == "carol"

        client = await b.client()
        await client.send(b"TCPGW AUTH nonsense\n")
        assert await client.read_to_end() == b"TCPGW DENIED\n"

        (await served(b, ALICE)).peer.reset()
        await in_time(b.closed(2))
        assert b.lines[1]["subject"] == "alice"

        client = await b.client(client_side(BOB))  # a certificate without a rule does no harm
        await client.send(f"TCPGW AUTH {key.key}\n".encode())
        await b.accept()


async def test_optional_and_no_other_credential(tmp_path: Path) -> None:
    """Nothing else can be shown, so who shows no certificate is denied; the log says what is missing."""
    async with bed(tmp_path, listener=f"{OPTIONAL}{subjects('alice')}") as b:
        client = await b.client()
        assert await client.read_to_end() == b"TCPGW DENIED\n"
        assert (await b.denied())["error"] == "no certificate was shown, and nothing else is taken"
        await served(b, ALICE)


async def test_services_by_the_name_of_the_certificate(tmp_path: Path) -> None:
    """Of a split each gets what it may use; who may use none of it is denied."""
    rules = subjects(alice=["s"], bob=["o*"], **{"mallory.example.com": ["z"]})
    split = '[ { service = "s", weight = 1 }, { service = "other", weight = 1 } ]'
    async with bed(tmp_path, listener=REQUIRED + rules, route=split, others=["other"]) as b:
        for _ in range(4):
            await served(b, ALICE)
            await served(b, BOB, 1)
        client = await b.client(client_side(REVOKED))  # nobody has said so here
        assert await client.read_to_end() == b"TCPGW DENIED\n"
        assert (await b.denied())["reason"] == "denied_service"


async def test_a_list_of_the_revoked_that_is_out_of_date(tmp_path: Path) -> None:
    """Every client is refused, and the log says whose fault that is."""
    (tmp_path / "clients.crl").write_bytes(AUTHORITY.crl(until=now() - timedelta(hours=1)))
    listener = server_tls("server", more=f'{MUTUAL}, client_crl = "clients.crl"')
    async with bed(tmp_path, listener=listener) as b:
        assert "CERTIFICATE_EXPIRED" in await b.secured(client_side(ALICE)).alert()
        assert "client_crl is out of date" in (await b.denied())["error"]


async def test_a_name_of_a_certificate_that_the_log_would_not_bear(tmp_path: Path) -> None:
    """A client names itself in its certificate, so one with control characters is nobody's subject."""
    odd = AUTHORITY.issue("x.example.com", cn="x\nreason=ok")
    async with bed(tmp_path, listener=REQUIRED) as b:
        (await served(b, odd)).peer.reset()
        assert (await b.line())["subject"] == "x.example.com"


async def test_subjects_have_limits_of_their_own(tmp_path: Path) -> None:
    """One more connection than a subject may have is turned away; other subjects go on."""
    limits = "[listener.limits.per_subject]\nconnections = 1\n"
    async with bed(tmp_path, listener=f"{REQUIRED}{subjects('alice', 'bob')}{limits}") as b:
        first = await served(b, ALICE)
        second = await b.client(client_side(ALICE))
        assert await second.read_to_end() == b"TCPGW DENIED\n"
        assert (await b.denied())["reason"] == "limit_subject"
        await served(b, BOB)
        first.peer.reset()
        await b.line()
        await served(b, ALICE)
