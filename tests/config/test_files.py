"""How paths are read and shown."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tcpgw.config.files import FilePath, NamedFile, Source

PATH: TypeAdapter[Path] = TypeAdapter(FilePath)
NAMED: TypeAdapter[Path] = TypeAdapter(NamedFile)
SOURCE: TypeAdapter[Path | str] = TypeAdapter(Source)


def test_relative_paths_start_at_the_given_folder(tmp_path: Path) -> None:
    """A relative path is relative to the configuration's folder, an absolute one is not."""
    assert PATH.validate_python("x.json", context={"folder": tmp_path}) == tmp_path / "x.json"
    assert PATH.validate_python("/x.json", context={"folder": tmp_path}) == Path("/x.json")


def test_finished_paths_are_taken_as_they_are() -> None:
    """Who makes a configuration in Python may give a path."""
    for kind in (PATH, NAMED, SOURCE):
        assert kind.validate_python(Path("x")) == Path("x")


@given(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()))
def test_no_value_breaks_the_reader(value: Any) -> None:
    """Whatever stands there is read or refused with a validation error, never with another exception."""
    for kind in (PATH, NAMED, SOURCE):
        with suppress(ValidationError):
            kind.validate_python(value)


@pytest.mark.parametrize("kind", [NAMED, SOURCE])
def test_a_file_that_is_named_may_say_so(kind: TypeAdapter[Any], tmp_path: Path) -> None:
    """`file:PATH` is the same as `PATH`; what is dumped is absolute and read again as the same."""
    context = {"folder": tmp_path}
    for written in ("keys", "file:keys", f"file:{tmp_path}/keys"):
        assert kind.validate_python(written, context=context) == tmp_path / "keys"
    assert kind.validate_json(kind.dump_json(tmp_path / "keys")) == tmp_path / "keys"


@pytest.mark.parametrize("written", ["env:KEYS", "https://example.com/keys", "http://127.0.0.1/keys"])
def test_a_file_is_no_variable_and_no_url(written: str) -> None:
    """What stands where a secret or a URL might is refused, not looked for as a file of that name."""
    with pytest.raises(ValidationError, match="cannot stand here: write the path of a file"):
        NAMED.validate_python(written)


@pytest.mark.parametrize(
    "url",
    ["https://idp.example.com/jwks.json", "http://127.0.0.1:8080/keys", "http://[::1]/", "http://localhost"],
)
def test_a_source_may_be_a_url(url: str) -> None:
    """Encrypted, or of this machine alone; dumped and read again it is the same."""
    source = SOURCE.validate_python(url)
    assert source == url.rstrip("/")
    assert SOURCE.validate_json(SOURCE.dump_json(source)) == source


@pytest.mark.parametrize(
    "url", ["http://example.com/keys", "http://10.0.0.1", "http://127.0.0.1.example.com"]
)
def test_a_url_that_anybody_could_answer_is_refused(url: str) -> None:
    """Keys that came unencrypted could be anybody's."""
    with pytest.raises(ValidationError, match="must begin with https://"):
        SOURCE.validate_python(url)


@pytest.mark.parametrize("written", ["env:KEYS", "https://user:hush@example.com", "https://", "file:", ""])
def test_other_sources_are_refused(written: str) -> None:
    """What is neither a path nor a URL is refused, without showing what may be a password."""
    with pytest.raises(ValidationError) as caught:
        SOURCE.validate_python(written)
    assert "hush" not in str([error["msg"] for error in caught.value.errors()])
