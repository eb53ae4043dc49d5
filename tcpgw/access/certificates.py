"""What certificates and lists of revoked ones say, out of PEM bytes.

Importing this takes 40 ms and 9 MiB for `cryptography`, which a process without TLS is spared: import it
where there is something to read.
"""

import re
from contextlib import suppress
from datetime import datetime

from cryptography import x509
from cryptography.x509.oid import NameOID

from tcpgw.errors import TlsError


def load(pem: bytes, where: str) -> list[x509.Certificate]:
    """Raises TlsError."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as exc:
        raise TlsError(where, f"no certificates in PEM form ({_detail(exc)})") from exc


def end(certificate: x509.Certificate) -> float:
    """When it expires, as Unix time."""
    return certificate.not_valid_after_utc.timestamp()


def crl_end(pem: bytes) -> float | None:
    """When the first of these lists is out of date, None where none says so. Raises TlsError."""
    lists = re.findall(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", pem, re.DOTALL)
    if not lists:
        raise TlsError("client_crl", "no CRL in PEM form")
    try:
        ends = [x509.load_pem_x509_crl(one).next_update_utc for one in lists]
    except ValueError as exc:
        raise TlsError("client_crl", f"a CRL that cannot be read ({_detail(exc)})") from exc
    return min(map(datetime.timestamp, filter(None, ends)), default=None)


def host_names(certificate: x509.Certificate) -> list[str]:
    """DNS names, in lower case; the subject's CN where there are none, as old certificates have it."""
    found: list[str] = []
    with suppress(x509.ExtensionNotFound, ValueError):
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        found = alternative.value.get_values_for_type(x509.DNSName)
    if not found:
        found = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    return [name.lower() for name in found]


def _detail(exc: ValueError) -> str:
    """What `cryptography` says, without its advice for developers."""
    return str(exc).rpartition("for more details. ")[2]
