"""What a configuration may say of TLS, and what it means where it says nothing."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tcpgw.config.tls import Alpn, Certificate, ClientTls, HostPattern, ServerName, ServerTls

HOST: TypeAdapter[str] = TypeAdapter(HostPattern)
NAME: TypeAdapter[str] = TypeAdapter(ServerName)
SERVER = {"certificates": [{"chain": "a.pem"}]}


def refusal(kind: Any, table: dict[str, Any]) -> list[tuple[Any, ...]]:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(table)
    return [error["loc"] for error in caught.value.errors()]


def test_defaults_are_those_that_operators_expect() -> None:
    """Towards clients no certificate of theirs is asked for; instances' certificates are verified."""
    server = ServerTls.model_validate(SERVER)
    assert server.certificates == (Certificate(chain=Path("a.pem"), key=None),)
    assert (server.client_ca, server.client_crl, server.client_certificate) == (None, None, "required")
    assert (server.alpn, server.min_version, server.handshake_timeout) == ((), "1.2", 5)
    client = ClientTls()
    assert (client.ca, client.server_name, client.verify) == (None, None, True)
    assert (client.certificate, client.key) == (None, None)


@pytest.mark.parametrize(("key", "value"), [("client_crl", "crl.pem"), ("client_certificate", "optional")])
def test_what_is_said_of_clients_certificates_needs_their_authorities(key: str, value: str) -> None:
    """Without client_ca no client shows one; where that is faulty the other is not blamed as well."""
    assert refusal(ServerTls, SERVER | {key: value}) == [(key,)]
    ServerTls.model_validate(SERVER | {"client_ca": "ca.pem", key: value})
    assert refusal(ServerTls, SERVER | {"client_ca": 7, key: value}) == [("client_ca",)]


def test_a_client_needs_a_certificate_for_its_key() -> None:
    """The key may stand in the certificate's file, but not alone."""
    ClientTls.model_validate({"certificate": "a.pem"})
    ClientTls.model_validate({"certificate": "a.pem", "key": "a.key"})
    assert refusal(ClientTls, {"key": "a.key"}) == [("key",)]
    assert refusal(ClientTls, {"certificate": 7, "key": "a.key"}) == [("certificate",)]


def test_authorities_are_asked_or_not() -> None:
    """Who names them and verifies nothing has said two things."""
    ClientTls.model_validate({"ca": "ca.pem", "verify": True})
    ClientTls.model_validate({"verify": False})
    assert refusal(ClientTls, {"ca": "ca.pem", "verify": False}) == [("verify",)]


@pytest.mark.parametrize(
    "host", ["a", "a.example.com", "*.example.com", "xn--bcher-kva.de", "a_b.c-d.e", "x" * 63, "1.a"]
)
def test_host_names_and_ends_of_them_are_patterns(host: str) -> None:
    """They stay as they are written."""
    assert HOST.validate_python(host) == host


@pytest.mark.parametrize(
    ("host", "advice"),
    [
        ("A.example.com", "write 'a.example.com'"),
        ("*", "write a.example.com"),
        ("*.", "write a.example.com"),
        ("", "write a.example.com"),
        ("a*.example.com", "write a.example.com"),
        ("a.*.com", "write a.example.com"),
        ("*.*.com", "write a.example.com"),
        ("a.example.com.", "write a.example.com"),
        ("a..b", "write a.example.com"),
        ("-a.b", "write a.example.com"),
        ("bücher.de", "write a.example.com"),
        ("a.example.com:443", "write a.example.com"),
        ("x" * 64, "write a.example.com"),
        (".".join(["x" * 63] * 5), "write a.example.com"),
        ("10.0.0.1", "is an address"),
        ("::1", "is an address"),
    ],
)
def test_what_no_client_asks_for_is_refused(host: str, advice: str) -> None:
    """A pattern that could never fit is refused, with what to write."""
    with pytest.raises(ValidationError, match=advice):
        HOST.validate_python(host)


@given(st.text())
def test_no_text_breaks_the_reader_of_hosts(text: str) -> None:
    """Whatever stands there is one host name or one ending in lower case, or is refused as a value."""
    try:
        host = HOST.validate_python(text)
    except ValidationError:
        return
    assert host == text.lower()
    assert "*" not in host[1:]
    assert host.isascii()


@pytest.mark.parametrize("name", ["a.example.com", "A.Example.com", "10.0.0.1", "fd00::1", "localhost"])
def test_an_instance_is_verified_by_its_name_or_address(name: str) -> None:
    """Certificates name hosts and addresses."""
    assert NAME.validate_python(name) == name


@pytest.mark.parametrize("name", ["", "*.example.com", "a b", "a:443", "[::1]", "x" * 254, "https://a"])
def test_what_no_certificate_names_is_refused(name: str) -> None:
    """The handshakes would all fail."""
    with pytest.raises(ValidationError, match="write what the certificate names"):
        NAME.validate_python(name)


@pytest.mark.parametrize(("name", "fits"), [("h2", True), ("x" * 255, True), ("", False), ("x" * 256, False)])
def test_protocols_have_names_that_fit_into_a_byte(name: str, fits: bool) -> None:
    """RFC 7301 has one byte for their length."""
    if fits:
        assert TypeAdapter(Alpn).validate_python(name) == name
    else:
        with pytest.raises(ValidationError, match="is no protocol's name"):
            TypeAdapter(Alpn).validate_python(name)


@pytest.mark.parametrize(
    "table", [{"certificates": []}, {}, SERVER | {"min_version": "1.1"}, SERVER | {"alpn": [""]}]
)
def test_other_tables_are_refused(table: dict[str, Any]) -> None:
    """TLS needs a certificate, and no broken version can be asked for."""
    assert len(refusal(ServerTls, table)) == 1
