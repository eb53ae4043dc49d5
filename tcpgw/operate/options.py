"""What options of several commands have in common."""

import contextlib

import typer
from pydantic import TypeAdapter, ValidationError

from tcpgw.config.values import Duration

_DURATION: TypeAdapter[float] = TypeAdapter(Duration)


def duration(text: str) -> float:
    """Read `90`, `90s`, `15m` or `1h30m` as seconds: an option's parser."""
    number: str | float = text
    with contextlib.suppress(ValueError):
        number = float(text)
    try:
        return _DURATION.validate_python(number)
    except ValidationError as exc:
        raise typer.BadParameter(str(exc.errors()[0]["ctx"]["error"])) from None
