"""How paths are read and shown."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tcpgw.config.files import FilePath

PATH: TypeAdapter[Path] = TypeAdapter(FilePath)


def test_relative_paths_start_at_the_given_folder(tmp_path: Path) -> None:
    """A relative path is relative to the configuration's folder, an absolute one is not."""
    assert PATH.validate_python("x.json", context={"folder": tmp_path}) == tmp_path / "x.json"
    assert PATH.validate_python("/x.json", context={"folder": tmp_path}) == Path("/x.json")


def test_finished_paths_are_taken_as_they_are() -> None:
    """Who makes a configuration in Python may give a path."""
    assert PATH.validate_python(Path("x")) == Path("x")


@given(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text()))
def test_no_value_breaks_the_reader(value: Any) -> None:
    """Whatever stands there is read or refused with a validation error, never with another exception."""
    with suppress(ValidationError):
        PATH.validate_python(value)
