"""What holds for every table of a configuration."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from tcpgw.config.load import load
from tcpgw.config.schema import TokenAuth
from tcpgw.config.table import ByForm, IsTable, IsWord, Table, keys

VALID = Path(__file__).parent.parent / "data" / "valid"


def test_a_configuration_cannot_be_changed() -> None:
    """Parts of the gateway may share a configuration without watching each other."""
    config = load(VALID / "full.toml")
    for table in (config, config.gateway.log, config.service[0].balance, config.listener[0].route[0]):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(table, next(iter(type(table).model_fields)), None)


def test_pydantics_own_errors_hold_no_input() -> None:
    """Who makes tables in Python without the loader sees no secret in a traceback either."""
    with pytest.raises(ValidationError) as caught:
        TokenAuth.model_validate({"type": "token", "tokn": "hush"})
    assert "hush" not in str(caught.value)
    assert "hush" not in repr(caught.value)


class _Rule(Table):
    size: int = 0


RULE: TypeAdapter[str | _Rule] = TypeAdapter(
    Annotated[Annotated[Literal["none"], IsWord] | Annotated[_Rule, IsTable], ByForm]
)


def test_a_word_or_a_table_is_judged_as_what_it_looks_like() -> None:
    """A fault speaks of the form that was meant, once, and not of the other one too."""
    assert RULE.validate_python("none") == "none"
    assert RULE.validate_python({"size": 1}) == RULE.validate_python(_Rule(size=1)) == _Rule(size=1)
    for wrong, kind in [("some", "literal_error"), ({"sise": 1}, "extra_forbidden"), (1, "model_type")]:
        with pytest.raises(ValidationError) as caught:
            RULE.validate_python(wrong)
        assert [error["type"] for error in caught.value.errors()] == [kind]


class _Loop(Table):
    times: int = Field(default=1, alias="while")
    body: str = ""


def test_a_key_may_be_a_word_of_python() -> None:
    """The file's word leads to the attribute, and others to themselves."""
    assert keys(_Loop) == {"while": "times", "body": "body"}
    assert _Loop.model_validate({"while": 2}).times == 2
