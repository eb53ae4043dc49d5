"""What a listener's tables come to."""

from pathlib import Path

import pytest

from tcpgw.access.denial import UnknownKey
from tcpgw.access.guard import OPEN
from tcpgw.access.keys import new_key
from tcpgw.access.limits import Limit, Usage
from tcpgw.app.access import Guards
from tcpgw.config import schema
from tcpgw.config.load import loads
from tcpgw.errors import ConfigError
from tests.support.certificates import SERVER
from tests.support.tokens import NOW, claims, jwks, signed

KEYS = {"listener[0].access.api_keys": new_key("alice").line.encode()}
CERTIFICATE = {
    "listener[0].tls.certificates[0].chain": SERVER.chain,
    "listener[0].tls.certificates[0].key": SERVER.key,
}
TLS = 'tls = { certificates = [ { chain = "c.pem", key = "k.pem" } ] }'


def config(*listener: str) -> schema.Config:
    text = """
        [[service]]
        name = "s"
        discovery = { type = "static", endpoints = ["127.0.0.1:9"] }
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        route = "s"
    """
    return loads("\n".join((text, *listener)), Path())


def test_without_tables_nothing_is_asked() -> None:
    """The guard of a listener without access, TLS and limits is the one that asks nothing."""
    assert Guards().make(config(), {})["l"] is OPEN


def test_each_table_has_its_part() -> None:
    """Networks, limits, TLS and credentials, and what takes its time-out from where."""
    listener = (
        'access = { allow = ["10.0.0.0/8"], api_keys = "keys", timeout = "2s" }',
        TLS,
        "limits = { per_source = { connections = 1, ipv6_prefix = 48 }, per_subject = { connections = 2 } }",
    )
    guard = Guards().make(config(*listener), KEYS | CERTIFICATE)["l"]
    assert guard.networks is not None
    assert guard.networks.admits("10.1.2.3")
    assert not guard.networks.admits("192.0.2.1")
    assert guard.tls is not None
    assert guard.credentials is not None
    assert (guard.credentials_timeout, guard.handshake_timeout, guard.ipv6_prefix) == (2.0, 5.0, 48)
    assert guard.sources is not None
    assert guard.subjects is not None
    assert guard.sources.admit("a", 0.0) is not Limit.CONNECTIONS
    assert guard.sources.admit("a", 0.0) is Limit.CONNECTIONS


def test_what_did_not_change_stays() -> None:
    """A reload that concerns other listeners leaves a guard as it is, so nobody is judged anew."""
    guards = Guards()
    made = config('access = { api_keys = "keys" }')
    before = guards.make(made, KEYS)["l"]
    assert guards.make(made, dict(KEYS))["l"] is before
    assert guards.make(made, {"listener[0].access.api_keys": new_key("b").line.encode()})["l"] is not before


def test_limits_go_on_counting() -> None:
    """A limit that changes knows who is connected."""
    guards = Guards()
    sources = guards.make(config("limits = { per_source = { connections = 2 } }"), {})["l"].sources
    assert sources is not None
    assert isinstance(sources.admit("a", 0.0), Usage)
    lower = guards.make(config("limits = { per_source = { connections = 1 } }"), {})["l"].sources
    assert lower is sources
    assert sources.admit("a", 0.0) is Limit.CONNECTIONS


def test_all_faults_are_named() -> None:
    """Each with the key that names its file, the file, and what is wrong there."""
    made = config(TLS, "[listener.access]", 'api_keys = "keys"', "[listener.access.jwt]",
                  'algorithms = ["RS256"]', 'audience = "a"', 'jwks = "set.json"')  # fmt: skip
    contents = CERTIFICATE | {
        "listener[0].tls.certificates[0].key": b"nothing",
        "listener[0].access.api_keys": b"\xff",
        "listener[0].access.jwt.jwks": b"{}",
    }
    with pytest.raises(ConfigError) as refused:
        Guards().make(made, contents)
    texts = {fault.path: fault.message for fault in refused.value.faults}
    assert texts["listener[0].tls.certificates[0].key"].endswith("k.pem: no private key in PEM form")
    assert texts["listener[0].access.api_keys"].endswith(
        "keys: byte 0 is no UTF-8: is this a file of API keys?"
    )
    assert "set.json: " in texts["listener[0].access.jwt.jwks"]


def test_a_jwt_is_verified_by_what_was_read() -> None:
    """A set of keys makes a verifier."""
    made = config("[listener.access.jwt]", 'algorithms = ["RS256"]', 'audience = "a"', 'jwks = "set.json"')
    guard = Guards().make(made, {"listener[0].access.jwt.jwks": jwks().encode()})["l"]
    assert guard.credentials is not None
    assert guard.credentials.takes_tokens


def test_a_set_of_keys_that_has_not_come() -> None:
    """A URL that has not answered has no keys yet, and its tokens wait for them; a file must have some."""
    terms = ("[listener.access.jwt]", 'algorithms = ["RS256"]', 'audience = "a"')
    contents = {"listener[0].access.jwt.jwks": b""}
    guard = Guards().make(config(*terms, 'jwks = "https://idp/jwks"'), contents)["l"]
    assert guard.credentials is not None
    with pytest.raises(UnknownKey):
        guard.credentials.verify(signed(claims()), NOW)
    with pytest.raises(ConfigError, match=r"set\.json: not a set of keys"):
        Guards().make(config(*terms, 'jwks = "set.json"'), contents)


def test_a_secret_that_everybody_knows() -> None:
    """A public key as the secret of HS256 is a fault like any other."""
    secret = f"-----BEGIN PUBLIC KEY-----{'A' * 64}-----END PUBLIC KEY-----"
    terms = ("[listener.access.jwt]", 'algorithms = ["HS256"]', 'audience = "a"', f'secret = "{secret}"')
    with pytest.raises(ConfigError, match="must not be a public key") as refused:
        Guards().make(config(*terms), {})
    assert secret not in str(refused.value)
