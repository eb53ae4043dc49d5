"""The admin server's table: who must be kept out without a token, and where it may listen."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tcpgw.config.admin import Admin, AnyAdmin
from tcpgw.config.schema import Config
from tcpgw.config.values import Bind

TOKEN = "0123456789abcdef"
ADMIN: TypeAdapter[Any] = TypeAdapter(AnyAdmin)


def config(admin: object, bind: str) -> Config:
    return Config.model_validate(
        {
            "gateway": {"admin": admin},
            "service": [{"name": "s", "discovery": {"type": "static", "endpoints": ["10.0.0.1:80"]}}],
            "listener": [{"name": "l", "bind": bind, "route": "s"}],
        }
    )


@pytest.mark.parametrize("bind", ["127.0.0.1:9080", "127.8.8.8:0", "[::1]:9080", "unix:/run/x.sock"])
def test_who_is_on_this_machine_needs_no_token(bind: str) -> None:
    """Addresses that nobody else reaches are taken as they are, and as a table."""
    assert ADMIN.validate_python(bind) == Admin(bind=Bind.parse(bind))
    assert ADMIN.validate_python({"bind": bind}).is_local


@pytest.mark.parametrize("bind", ["0.0.0.0:9080", "[::]:9080", "10.0.0.1:9080", "[fd00::1]:9080"])
def test_who_comes_from_elsewhere_needs_one(bind: str) -> None:
    """An address that others reach is refused without a token, and taken with one."""
    with pytest.raises(ValidationError, match="needs a token"):
        ADMIN.validate_python(bind)
    assert not ADMIN.validate_python({"bind": bind, "token": TOKEN}).is_local


def test_off_is_off() -> None:
    """No server then, and no table."""
    assert ADMIN.validate_python("off") == "off"


@pytest.mark.parametrize("token", [TOKEN[1:], f"{TOKEN} ", f"{TOKEN}\xe9", "a" * 513])
def test_a_token_fits_a_header_and_cannot_be_guessed(token: str) -> None:
    """Short ones, spaces and what is not ASCII are refused, and not repeated."""
    with pytest.raises(ValidationError, match="openssl rand") as caught:
        Admin.model_validate({"token": token})
    assert token not in str(caught.value)


@pytest.mark.parametrize(
    ("admin", "listener", "collide"),
    [
        ("127.0.0.1:1", "127.0.0.1:1", True),
        ("127.0.0.1:1", "0.0.0.0:1", True),
        ("127.0.0.1:1", "[::]:1", True),
        ("[::1]:1", "[::]:1", True),
        ("[::1]:1", "0.0.0.0:1", False),
        ("127.0.0.1:1", "10.0.0.1:1", False),
        ("127.0.0.1:1", "0.0.0.0:2", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
        ("unix:/a", "unix:/a", True),
        ("unix:/a", "unix:/b", False),
        ("unix:/a", "127.0.0.1:1", False),
        ("off", "127.0.0.1:9080", False),
    ],
)
def test_no_listener_is_where_it_is(admin: str, listener: str, collide: bool) -> None:
    """An address that both would accept on is refused at the listener that binds it."""
    if not collide:
        assert config(admin, listener).listener
        return
    with pytest.raises(ValidationError, match="admin has"):
        config(admin, listener)
