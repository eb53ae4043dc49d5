"""An issuer of JWTs: its keys, their set, and tokens good and bad."""

import json
from base64 import urlsafe_b64encode
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from jwt.api_jws import PyJWS

NOW = 1_750_000_000.0
AUDIENCE = "tcpgw"
SECRET = b"0123456789abcdef0123456789abcdef"


@cache  # 0.1 s each
def rsa_key(name: str = "r1", bits: int = 2048) -> rsa.RSAPrivateKey:  # noqa: ARG001  # one for each name
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@cache
def ec_key(name: str = "e1") -> ec.EllipticCurvePrivateKey:  # noqa: ARG001  # one for each name
    return ec.generate_private_key(ec.SECP256R1())


def public_rsa(kid: str | None = "r1", **members: Any) -> dict[str, Any]:
    """As an issuer publishes it; a member None is left out."""
    return _with_kid(RSAAlgorithm.to_jwk(rsa_key(kid or "r1").public_key(), as_dict=True), kid, members)


def public_ec(kid: str | None = "e1", **members: Any) -> dict[str, Any]:
    return _with_kid(ECAlgorithm.to_jwk(ec_key(kid or "e1").public_key(), as_dict=True), kid, members)


def _with_kid(key: dict[str, Any], kid: str | None, members: dict[str, Any]) -> dict[str, Any]:
    whole = key | {"kid": kid, "key_ops": None} | members
    return {name: value for name, value in whole.items() if value is not None}


def jwks(*keys: Any) -> str:
    return json.dumps({"keys": keys or [public_rsa(), public_ec()]})


def claims(**changed: Any) -> dict[str, Any]:
    """Good ones, for an hour from NOW on; a claim None is left out."""
    whole = {"sub": "alice", "aud": AUDIENCE, "exp": NOW + 3600, "iat": NOW, "nbf": NOW, **changed}
    return {name: value for name, value in whole.items() if value is not None}


def signed(
    said: dict[str, Any], algorithm: str = "RS256", kid: str | None = "", key: Any = None, **header: Any
) -> bytes:
    """A token by r1, e1 or SECRET, after the algorithm, unless `kid` or `key` say otherwise."""
    usual = {"RS256": "r1", "ES256": "e1"}.get(algorithm)
    kid = usual if kid == "" else kid
    if key is None:
        made = {"RS256": rsa_key, "ES256": ec_key}.get(algorithm)
        key = made(kid or usual or "") if made else SECRET
    more = header if kid is None else {"kid": kid, **header}
    # Not jwt.encode: it refuses some of the claims that a verifier must refuse.
    return PyJWS().encode(json.dumps(said).encode(), key, algorithm=algorithm, headers=more).encode()


def segment(value: Any) -> bytes:
    """Base64url of JSON, or of bytes as they are."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(data).rstrip(b"=")
