"""What commands have in common in front of people: tables, and how they end."""

from collections.abc import Container

import typer
from rich.table import Column, Table


def table(*columns: str, title: str | None = None, whole: Container[str] = ()) -> Table:
    """Make a table that breaks a long cell rather than leave its end out: half an address is none.

    Cells of the columns in `whole` are not broken while others can be.
    """
    made = (Column(name, no_wrap=name in whole, overflow="fold") for name in columns)
    return Table(*made, title=title, title_justify="left")


def visible(text: str) -> str:
    """Return `text` with what is no printable character escaped, ends of lines too.

    Instances, clients and clouds have their say in much of what is shown, and must not command the terminal.
    """
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def end(code: int, message: str) -> typer.Exit:
    """Print why a command ends, and return what to raise."""
    typer.secho(message, err=True, fg="red")
    return typer.Exit(code)
