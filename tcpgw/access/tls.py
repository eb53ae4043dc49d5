"""TLS settings out of PEM bytes: whose certificate is shown, whose is believed, and what is spoken.

Workers are handed what the files contain, as they may not be able to read them; OpenSSL wants files, so each
content becomes one in memory for as long as it reads it.

Revocation, as OpenSSL 3 does it: with a CRL, every client's certificate is looked up in the one of its
issuer. Where there is none, or it is past its nextUpdate, the client is refused
(X509_V_ERR_UNABLE_TO_GET_CRL, _CRL_HAS_EXPIRED; alerts unknown_ca, certificate_expired). So one CRL that
nobody renewed locks out every client. That is kept, as a list of the revoked that is let go stale protects
nobody; `crl_expires_at` says when it will come to that, `refusal` that it has. A session ticket is taken
without another look at the certificate; tickets are worthless once a new CRL is loaded, since it comes with
new keys for them.
"""

import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NoReturn

from tcpgw.errors import TlsError

MinVersion = Literal["1.2", "1.3"]

# Of TLS 1.2: ephemeral keys and authenticated encryption. Those of 1.3 are all of that kind.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
# X509_V_ERR_…, openssl/x509_vfy.h.
_NO_CRL, _CRL_EXPIRED = 3, 12


class ServerTls:
    """A listener's side of TLS: a context for each certificate, chosen by the name that the client asks for.

    `expires_at` is when the first of its certificates expires, `crl_expires_at` when the CRL must have been
    renewed (None: there is none, or it does not say); Unix times, which may have passed.
    """

    def __init__(
        self,
        contexts: Mapping[str, ssl.SSLContext],
        default: ssl.SSLContext,
        expires: float,
        crl: float | None,
    ) -> None:
        self.expires_at = expires
        self.crl_expires_at = crl
        self._contexts = contexts
        self._default = default

    def choose(self, server_name: str) -> ssl.SSLContext:
        """The context whose certificate has that lower-case name, else a wildcard of it, else the first."""
        exact = self._contexts.get(server_name)
        if exact is not None:
            return exact
        # A wildcard stands for one label (RFC 6125 6.4.3).
        return self._contexts.get("*." + server_name.partition(".")[2], self._default)


def server_context(
    certificates: Sequence[tuple[bytes, bytes | None]],
    *,
    client_ca: bytes | None = None,
    client_crl: bytes | None = None,
    client_required: bool = True,
    alpn: Sequence[str] = (),
    min_version: MinVersion = "1.2",
) -> ServerTls:
    """Make a listener's contexts, of at least one (chain, key); a key of None stands in the chain.

    Of several certificates with one name the first counts. `client_ca` makes it mutual TLS: clients need a
    certificate of one of these, or may have one where it is not `client_required`. A client that offers none
    of `alpn` gets no protocol. Expired certificates are taken. Raises TlsError.
    """
    from tcpgw.access import certificates as read  # noqa: PLC0415 - see there what it takes

    crl_expires_at = None if client_crl is None else read.crl_end(client_crl)
    contexts: dict[str, ssl.SSLContext] = {}
    made: list[ssl.SSLContext] = []
    expires = []
    for index, (chain, key) in enumerate(certificates):
        where = f"certificates[{index}]"
        leaf, *_ = parsed = read.load(chain, f"{where}.chain")
        expires.append(min(map(read.end, parsed)))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _set_up(context, alpn, min_version)
        _load_chain(context, chain, key, where)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED if client_required else ssl.CERT_OPTIONAL
            _load_authorities(context, client_ca, "client_ca")
        if client_crl is not None:
            context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
            _load_trust(context, client_crl, "client_crl")
        made.append(context)
        for name in read.host_names(leaf):
            contexts.setdefault(name, context)
    return ServerTls(contexts, made[0], min(expires), crl_expires_at)


def client_context(
    *,
    ca: bytes | None = None,
    verify: bool = True,
    certificate: bytes | None = None,
    key: bytes | None = None,
    alpn: Sequence[str] = (),
) -> ssl.SSLContext:
    """Make the context for TLS to instances, which are believed if one of `ca` vouches for their name.

    `ca` None: those that the system trusts. Not `verify`: whoever answers is believed. `certificate` is our
    own chain, for instances that want one; its `key` may stand in it. Raises TlsError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _set_up(context, alpn, "1.2")
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca is None:
        context.load_default_certs()
    else:
        _load_authorities(context, ca, "ca")
    if certificate is not None:
        _load_chain(context, certificate, key, "")
    return context


def refusal(exc: ssl.SSLCertVerificationError) -> str:
    """Say why a client's certificate was not believed, and what to do where it is not the client's fault."""
    text = exc.verify_message
    if exc.verify_code == _CRL_EXPIRED:
        text += ": client_crl is out of date, so every client is refused; renew it"
    elif exc.verify_code == _NO_CRL:
        text += ": client_crl has none of this certificate's issuer; add it"
    return text


def names(peercert: Mapping[str, Any]) -> tuple[str, ...]:
    """Whom a certificate is for, as `getpeercert` tells: SAN URIs, DNS names, emails, the subject's CN."""
    alternative = peercert.get("subjectAltName", ())
    found = [name for wanted in ("URI", "DNS", "email") for kind, name in alternative if kind == wanted]
    subject = peercert.get("subject", ())
    found += [value for part in subject for kind, value in part if kind == "commonName"]
    return tuple(dict.fromkeys(found))


# ---- loading ----


def _set_up(context: ssl.SSLContext, alpn: Sequence[str], min_version: MinVersion) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if min_version == "1.3" else ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if alpn:
        context.set_alpn_protocols(list(alpn))


def _load_authorities(context: ssl.SSLContext, pem: bytes, where: str) -> None:
    from tcpgw.access import certificates as read  # noqa: PLC0415 - see there what it takes

    read.load(pem, where)
    # An authority may be trusted without the root that vouches for it.
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    _load_trust(context, pem, where)


def _load_trust(context: ssl.SSLContext, pem: bytes, where: str) -> None:
    with _file(pem) as path:
        try:
            context.load_verify_locations(path)
        except ssl.SSLError as exc:
            raise TlsError(where, f"OpenSSL does not take it ({exc.reason or exc})") from exc


def _load_chain(context: ssl.SSLContext, chain: bytes, key: bytes | None, where: str) -> None:
    """`where` is of the table that has both."""
    place = f"{where}.key".lstrip(".")

    def encrypted() -> NoReturn:  # OpenSSL would ask on the terminal
        raise TlsError(place, "the key is encrypted; store it without a pass phrase, readable by tcpgw alone")

    with ExitStack() as stack:
        chain_file = stack.enter_context(_file(chain))
        key_file = None if key is None else stack.enter_context(_file(key))
        try:
            context.load_cert_chain(chain_file, key_file, encrypted)
        except ssl.SSLError as exc:
            if exc.reason == "KEY_VALUES_MISMATCH":
                raise TlsError(place, "the key is not that of the chain's first certificate") from exc
            if exc.reason:  # such as EE_KEY_TOO_SMALL
                raise TlsError(where or "certificate", f"OpenSSL does not take it ({exc.reason})") from exc
            inside = "" if key is not None else " behind the chain, and none was given"
            raise TlsError(place, f"no private key in PEM form{inside}") from exc


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """A file of that content which only this process can open, for as long as the block runs."""
    descriptor = os.memfd_create("tcpgw-pem", os.MFD_CLOEXEC)
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
