"""Authorities, certificates and lists of the revoked, made on the spot."""

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tcpgw.access.tls import ServerTls, client_context, server_context

HOUR = timedelta(hours=1)


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class Issued(NamedTuple):
    """A chain and its key, in PEM."""

    chain: bytes
    key: bytes

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificates(self.chain)[0]

    def encrypted(self) -> bytes:
        key = load_pem_private_key(self.key, None)
        assert key is not None
        form = (Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
        return key.private_bytes(*form)


class Authority:
    """A certificate authority that also revokes."""

    def __init__(self) -> None:
        self.ca = trustme.CA(key_type=trustme.KeyType.ECDSA)

    @property
    def pem(self) -> bytes:
        return self.ca.cert_pem.bytes()

    def issue(self, *names: str, cn: str | None = None, expires: datetime | None = None) -> Issued:
        begins = None if expires is None else expires - 24 * HOUR
        kind = trustme.KeyType.ECDSA
        made = self.ca.issue_cert(*names, common_name=cn, not_before=begins, not_after=expires, key_type=kind)
        return Issued(b"".join(part.bytes() for part in made.cert_chain_pems), made.private_key_pem.bytes())

    def crl(self, revoked: Sequence[Issued] = (), until: datetime | None = None) -> bytes:
        """A list that has to be renewed at `until`."""
        until = until or now() + HOUR
        issuer = x509.load_pem_x509_certificate(self.pem).subject
        builder = x509.CertificateRevocationListBuilder(issuer, until - 24 * HOUR, until)
        for one in revoked:
            serial = one.leaf.serial_number
            entry = x509.RevokedCertificateBuilder(serial, now() - HOUR).build()
            builder = builder.add_revoked_certificate(entry)
        key = load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)  # type: ignore[arg-type]


AUTHORITY = Authority()
SERVER = AUTHORITY.issue("localhost", "127.0.0.1")


def server_side(*more: Issued, **settings: object) -> ServerTls:
    """A listener's contexts, with a certificate for localhost."""
    return server_context([SERVER, *more], **settings)  # type: ignore[arg-type]


def client_side(own: Issued | None = None, version: str = "1.3", alpn: Sequence[str] = ()) -> ssl.SSLContext:
    """A client's context for such a listener, of one version of TLS, perhaps with its own certificate."""
    certificate, key = own or (None, None)
    context = client_context(ca=AUTHORITY.pem, certificate=certificate, key=key, alpn=alpn)
    context.maximum_version = ssl.TLSVersion.TLSv1_3 if version == "1.3" else ssl.TLSVersion.TLSv1_2
    return context
