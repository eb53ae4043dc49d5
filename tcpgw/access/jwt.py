"""JSON Web Tokens (RFC 7519) and the sets of keys that verify them (RFC 7517): pure, time is an argument.

What an attacker may try, and what stands against it (RFC 8725):

- another algorithm than the key's ("none", HS256 with the public key as secret): a key is looked up by the
  algorithm and the key id together, and only algorithms of the terms are looked up at all.
- a key of his own in the header (`jwk`, `jku`, `x5c`, `x5u`): those are not read.
- an extension that changes what the token means (`crit`, `b64`): refused, none is known here.
- a token for somebody else: the audience must be named, and the issuer where the terms have one.
- a replay: a JWT is a bearer's, so whoever has it may use it, as often as wanted, until it expires. `jti` is
  not kept: clients show one token on many connections.

Importing this takes 19 ms and 9.5 MB of memory, for OpenSSL once more: import it where a listener takes JWTs.
"""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import orjson
from jwt import PyJWK, PyJWTError

from tcpgw.access.denial import Denied, Reason, UnknownKey, shown
from tcpgw.access.grant import MAX_SUBJECT, Grant, Kind, Names, is_subject
from tcpgw.errors import TcpgwError

Algorithm = Literal["HS256", "RS256", "ES256"]

MAX_TOKEN = 8192  # bytes, as for the preamble that may carry it
MAX_SET = 2**20  # bytes; a key takes 400, with its certificates 3,000
MAX_KEYS = 1000
# RFC 7518, section 3.2: a key of the same size as the hash output or larger. So says PyJWT.
MIN_SECRET = 32
# Verified tokens that are remembered: 1.6 MB where each limits services and methods, nothing at first.
_REMEMBERED = 1024
# Bits. RFC 7518, section 3.3, wants the first; a larger key than the other costs more than a connection.
_RSA_BITS = (2048, 8192)
# 9999-12-31T23:59:59Z: a later time, or none that is finite, would break whoever waits for it.
_LAST = 253402300799.0
_SETS = ("listeners", "services", "methods")
# Members that make a key a private one: RFC 7518, sections 6.2.2 and 6.3.2.
_PRIVATE = ("d", "p", "q", "dp", "dq", "qi", "oth")
_IGNORED = 20  # reasons that a set keeps, for one line of the log


class KeySetError(TcpgwError):
    """A set of keys cannot be read or had. The one in force stays; the text says what to do."""

    blame = "operator"
    retry_safe = True


@dataclass(frozen=True, slots=True)
class JwtTerms:
    """What a JWT must be. `leeway` is in seconds, `secret` is for HS256 alone.

    `subject` and `permissions` name claims. The second may hold an object with the lists `listeners`,
    `services` and `methods` of patterns; a list that is left out, as the whole claim, allows all.

    Raises ValueError where `secret` is missing, not wanted, too short, or a public key: everybody knows that.
    """

    algorithms: tuple[Algorithm, ...]
    audience: str
    issuer: str | None = None
    leeway: float = 30.0
    subject: str = "sub"
    permissions: str = "tcpgw"
    secret: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if ("HS256" in self.algorithms) != (self.secret is not None):
            raise ValueError("HS256 needs a secret, and a secret needs HS256")
        if self.secret is not None:
            if len(self.secret) < MIN_SECRET:
                raise ValueError(f"a secret of HS256 must have {MIN_SECRET} bytes or more")
            try:
                key = _oct(self.secret)
                key.Algorithm.prepare_key(self.secret)  # refuses public keys in all their forms
            except PyJWTError:
                raise ValueError("a secret of HS256 must not be a public key or a certificate") from None


@dataclass(frozen=True, slots=True)
class KeySet:
    """Public keys by algorithm and key id. `ignored` says, for the log, which keys cannot be used and why."""

    keys: Mapping[tuple[str, str | None], PyJWK] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str | bytes) -> "KeySet":
        """Read a JWKS. Raises KeySetError.

        Keys that cannot verify an RS256 or ES256 signature are ignored, as RFC 7517, section 5, wants it, but
        one must be left. A set with a private key is refused: whoever reads it can sign tokens, so what it
        verifies proves nothing, and silence would keep that so. Two keys with one id are refused too.
        """
        found: dict[tuple[str, str | None], PyJWK] = {}
        ignored = []
        for number, entry in enumerate(_entries(text)):
            name = f"key {number}"
            if isinstance(entry, dict):
                name = f"{name} (kid {shown(entry['kid'])})" if "kid" in entry else name
                _refuse_private(name, entry)
            try:
                algorithm, kid, key = _public(entry)
            except ValueError as error:
                ignored.append(f"{name}: {error}")
                continue
            if (algorithm, kid) in found:
                raise KeySetError(
                    f"{name}: another {algorithm} key has the same kid, or none too; give each its own"
                )
            found[algorithm, kid] = key
        if not found:
            why = "; ".join(ignored[:_IGNORED]) or "it is empty"
            raise KeySetError(f"no key of the set can verify RS256 or ES256: {why}")
        return cls(found, tuple(ignored[:_IGNORED]))

    def find(self, algorithm: str, kid: str | None) -> PyJWK | None:
        """Find the key for a token; for one that names none, the only key of its algorithm."""
        if kid is not None:
            return self.keys.get((algorithm, kid))
        fitting = [key for (its, _), key in self.keys.items() if its == algorithm]
        return fitting[0] if len(fitting) == 1 else None


class Verifier:
    """Verifies tokens under fixed terms and a fixed set of keys; new ones want a new verifier.

    The last tokens that were good are remembered by their hash, until they expire. That spares a client that
    connects anew for each request 29 µs with RS256 and 60 µs with ES256, where the whole connection takes
    some 160 µs of CPU; to look one up takes 1 µs. Tokens that are refused never get in.
    """

    def __init__(self, terms: JwtTerms, keys: KeySet | None = None) -> None:
        self._terms = terms
        self._keys = keys or KeySet()
        self._secret = None if terms.secret is None else _oct(terms.secret)
        self._remembered: dict[bytes, Grant] = {}

    def verify(self, token: str | bytes, now: float) -> Grant:
        """Give what a token grants at the Unix time `now`; it ends with the token, leeway included.

        Raises Denied; UnknownKey, which is one, where the set lacks the key that the token names.
        """
        data = token if isinstance(token, bytes) else token.encode("utf-8", "replace")
        if len(data) > MAX_TOKEN:
            raise Denied(Reason.MALFORMED, f"a JWT of {len(data)} bytes is longer than {MAX_TOKEN}")
        digest = hashlib.sha256(data).digest()
        known = self._remembered.get(digest)
        if known is not None:
            if not known.expired(now):
                return known
            del self._remembered[digest]
        grant = self._grant(self._claims(data), now)
        if len(self._remembered) >= _REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        self._remembered[digest] = grant
        return grant

    def _claims(self, token: bytes) -> dict[str, Any]:
        """Verify the signature, and only then read what it signs."""
        try:
            signed, _, signature_segment = token.rpartition(b".")
            header_segment, claims_segment = signed.split(b".")
            header = _object(_decoded(header_segment))
            signature = _decoded(signature_segment)
            claims = _decoded(claims_segment)
        except ValueError:
            raise Denied(
                Reason.MALFORMED, "not a JWT: three parts in base64url, the first a JSON object"
            ) from None
        key = self._key(header)
        if not key.Algorithm.verify(signed, key.key, signature):
            raise Denied(Reason.SIGNATURE, f"the JWT's signature is not by key {shown(header.get('kid'))}")
        try:
            return _object(claims)
        except ValueError:
            raise Denied(Reason.CLAIMS, "the JWT's claims are no JSON object") from None

    def _key(self, header: dict[str, Any]) -> PyJWK:
        algorithm, kid = header.get("alg"), header.get("kid")
        if "crit" in header or "b64" in header:
            raise Denied(Reason.MALFORMED, "the JWT has an extension (crit, b64); none is known here")
        if algorithm not in self._terms.algorithms:
            taken = ", ".join(self._terms.algorithms)
            raise Denied(
                Reason.ALGORITHM, f"the JWT's algorithm is {shown(algorithm)}; the listener takes {taken}"
            )
        if kid is not None and not isinstance(kid, str):
            raise Denied(Reason.MALFORMED, "the JWT's kid is no text")
        key = self._secret if algorithm == "HS256" else self._keys.find(algorithm, kid)
        if key is None:
            raise UnknownKey(f"no {algorithm} key of the set has the JWT's kid {shown(kid)}")
        return key

    def _grant(self, claims: dict[str, Any], now: float) -> Grant:
        terms = self._terms
        expires = _time(claims, "exp")
        if expires is None:
            raise _claim("exp", "is missing: a token that never ends is not taken")
        if now >= expires + terms.leeway:
            raise Denied(Reason.EXPIRED, f"the JWT expired {now - expires:.0f} s ago")
        for name in ("nbf", "iat"):
            begins = _time(claims, name)
            if begins is not None and now < begins - terms.leeway:
                text = f"the JWT's {name} is {begins - now:.0f} s ahead; are both clocks right?"
                raise Denied(Reason.NOT_YET, text)
        audience = claims.get("aud")
        if terms.audience not in (audience if isinstance(audience, list) else [audience]):
            raise _claim("aud", f"is {shown(audience)}, not {terms.audience!r}")
        if terms.issuer is not None and claims.get("iss") != terms.issuer:
            raise _claim("iss", f"is {shown(claims.get('iss'))}, not {terms.issuer!r}")
        subject = claims.get(terms.subject)
        if not isinstance(subject, str) or not is_subject(subject):
            raise _claim(terms.subject, f"must be 1 to {MAX_SUBJECT} printable characters: it is the subject")
        sets = self._permissions(claims)
        return Grant(
            subject,
            sets.get("listeners"),
            sets.get("services"),
            sets.get("methods"),
            expires + terms.leeway,
            Kind.JWT,
        )

    def _permissions(self, claims: dict[str, Any]) -> dict[str, Names]:
        """Read the three sets. What is not understood is denied: passing it over could allow too much."""
        name = self._terms.permissions
        said = claims.get(name, {})
        if not isinstance(said, dict) or not said.keys() <= set(_SETS):
            raise _claim(name, f"must be an object with the lists {', '.join(_SETS)} and nothing else")
        for patterns in said.values():
            if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
                raise _claim(name, "must hold lists of texts")
        return {key: Names.of(patterns) for key, patterns in said.items()}


def _claim(name: str, text: str) -> Denied:
    return Denied(Reason.CLAIMS, f"the JWT's claim {name!r} {text}")


def _time(claims: dict[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    # type and not isinstance: true is an int.
    if type(value) not in (int, float) or not 0 <= value <= _LAST:
        raise _claim(name, "must be a Unix time in seconds")
    return float(value)


def _decoded(segment: bytes) -> bytes:
    """Undo base64url as RFC 7515 writes it: no padding, one way only to write the same. Raises ValueError."""
    data = urlsafe_b64decode(segment + b"=" * (-len(segment) % 4))
    # Python passes over what is not of the alphabet.
    if urlsafe_b64encode(data).rstrip(b"=") != segment:
        raise ValueError("not base64url")
    return data


def _object(data: bytes | str) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError, also where it is nested too deep."""
    value = orjson.loads(data)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004  # as for everything else that it is not
    return value


def _oct(secret: bytes) -> PyJWK:
    return PyJWK({"kty": "oct", "k": urlsafe_b64encode(secret).rstrip(b"=").decode()}, "HS256")


def _entries(text: str | bytes) -> list[Any]:
    if len(text) > MAX_SET:
        raise KeySetError(f"a set of keys (JWKS) has at most {MAX_SET >> 20} MiB; is this one?")
    try:
        entries = _object(text).get("keys")
    except ValueError as error:
        raise KeySetError(
            f'not a set of keys (JWKS), which is a JSON object {{"keys": […]}}: {error}'
        ) from None
    if not isinstance(entries, list):
        raise KeySetError(
            'not a set of keys (JWKS), which is a JSON object {"keys": […]}: it has no list "keys"'
        )
    if len(entries) > MAX_KEYS:
        raise KeySetError(f"the set has {len(entries)} keys; at most {MAX_KEYS} are read")
    return entries


def _refuse_private(name: str, entry: dict[str, Any]) -> None:
    if entry.get("kty") != "oct" and not entry.keys().isdisjoint(_PRIVATE):
        raise KeySetError(
            f"{name} is a private key: who reads the set can sign tokens. Have the issuer replace this key, "
            "and put only the public one into the set"
        )


def _public(entry: Any) -> tuple[str, str | None, PyJWK]:
    """Read a public key: its algorithm and its kid, too. Raises ValueError with why it cannot be used."""
    match entry:
        case {"kty": "RSA", "n": str(n), "e": str(e)}:
            algorithm, members = "RS256", {"kty": "RSA", "n": n, "e": e}
        case {"kty": "EC", "crv": "P-256", "x": str(x), "y": str(y)}:
            algorithm, members = "ES256", {"kty": "EC", "crv": "P-256", "x": x, "y": y}
        case _:
            raise ValueError("is neither RSA, with n and e, nor EC on P-256, with x and y")
    if entry.get("use", "sig") != "sig" or entry.get("key_ops", ["verify"]) != ["verify"]:
        raise ValueError("is not for verifying signatures (use, key_ops)")
    if entry.get("alg", algorithm) != algorithm:
        raise ValueError(f"is not for {algorithm} but for alg {shown(entry['alg'])}")
    kid = entry.get("kid")
    if not isinstance(kid, str | None):
        raise ValueError("has a kid that is no text")  # noqa: TRY004  # one of many reasons, told alike
    return algorithm, kid, _loaded(members, algorithm)


def _loaded(members: dict[str, str], algorithm: str) -> PyJWK:
    # Before the numbers are looked at: huge ones would take long, and small ones make the library warn.
    smallest, largest = _RSA_BITS
    if algorithm == "RS256" and not smallest <= (bits := _bits(members["n"])) <= largest:
        raise ValueError(f"has {bits} bits, not {smallest} to {largest}")
    try:
        return PyJWK(members, algorithm)
    except (PyJWTError, ValueError):  # their texts repeat the key
        raise ValueError("has numbers that are not those of a public key") from None


def _bits(number: str) -> int:
    return int.from_bytes(_decoded(number.encode("ascii", "replace"))).bit_length()
