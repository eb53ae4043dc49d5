"""How secrets are fetched, and that none is shown."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, TypeAdapter, ValidationError

from tcpgw.config.secret import Secret

SECRET: TypeAdapter[SecretStr] = TypeAdapter(Secret)


def test_secrets_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret comes from the file itself, the environment, or another file without its last newline."""
    monkeypatch.setenv("TCPGW_TEST_SECRET", "from the environment")
    tmp_path.joinpath("secret").write_bytes(b"from a file\r\n")
    context = {"folder": tmp_path}
    assert SECRET.validate_python("literal:1").get_secret_value() == "literal:1"
    assert SECRET.validate_python("env:TCPGW_TEST_SECRET").get_secret_value() == "from the environment"
    assert SECRET.validate_python("file:secret", context=context).get_secret_value() == "from a file"
    assert SECRET.validate_python(f"file:{tmp_path}/secret").get_secret_value() == "from a file"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"hush\xff", "not UTF-8"),
        (b"hush\nhush\n", "line break"),
        (None, "No such file"),
    ],
)
def test_unusable_secret_files_are_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    """A missing, empty, binary or many-line file is no secret, and what it holds is not shown."""
    if content is not None:
        tmp_path.joinpath("secret").write_bytes(content)
    with pytest.raises(ValidationError, match=reason) as caught:
        SECRET.validate_python("file:secret", context={"folder": tmp_path})
    assert "hush" not in str(caught.value.errors(include_input=False))


@given(st.uuids())
def test_secrets_are_masked(unique: UUID) -> None:
    """No way to show a secret shows it."""
    secret = SECRET.validate_python(f"hush{unique}")
    for shown in (str(secret), repr(secret), str(SECRET.dump_python(secret)), str(SECRET.dump_json(secret))):
        assert str(unique) not in shown
        assert "***" in shown


@given(st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()))
def test_no_value_breaks_the_reader(value: Any) -> None:
    """Whatever stands there is read or refused with a validation error, never with another exception."""
    with suppress(ValidationError):
        SECRET.validate_python(value)


@pytest.mark.parametrize("secret", ["env:TCPGW_TEST_UNSET", "file:/nonexistent", "", "a\nb", "literal"])
def test_a_fetched_secret_is_taken_as_it_is(secret: str) -> None:
    """What another process fetched is neither looked for nor judged again."""
    assert SECRET.validate_python(secret, context={"fetched": True}).get_secret_value() == secret


def test_a_finished_secret_is_taken_as_it_is() -> None:
    """Who makes a configuration in Python has fetched the secret, whatever it looks like."""
    secret = SecretStr("env:taken as it is")
    assert SECRET.validate_python(secret) == secret
