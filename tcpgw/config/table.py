"""What the tables of a configuration have in common."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Tag


class Table(BaseModel):
    """A table of the file: frozen, and unknown keys are refused."""

    # Inputs stay out of pydantic's own messages because they may be secrets.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def keys(table: type[BaseModel]) -> dict[str, str]:
    """By key of the file, the attribute: they differ where the key is a word of Python's."""
    return {field.alias or name: name for name, field in table.model_fields.items()}


def _form(value: Any) -> str:
    return "word" if isinstance(value, str) else "table"


def _switched(value: Any) -> str:
    return "switch" if isinstance(value, str | int | float) else "table"


IsWord = Tag("word")
IsSwitch = Tag("switch")
IsTable = Tag("table")
ByForm = Discriminator(_form)
"""Of a value that is a word or a table: what was written is judged as what it looks like, not as both."""

Off = Annotated[Literal["off"], IsWord]
BySwitch = Discriminator(_switched)
"""The same of a value that is true, false or a table."""
