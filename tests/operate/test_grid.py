"""Columns that fit."""

import pytest
from rich.console import Console
from rich.text import Text

from tcpgw.operate.grid import Column, grid, shown

COLUMNS = (
    Column("name", left=True),
    Column("rate"),
    Column("share", rank=2),
    Column("failures", rank=1),
    Column("why", rank=3, text=True),
)
ROWS: list[tuple[str | Text, ...]] = [
    ("one", "12", "3.0%", "0", "a reason that is longer than the rest of it all"),
    ("another", "7", Text("90.0%", style="red"), "4", ""),
]


def lines(width: int, *, titled: bool = True) -> list[str]:
    console = Console(width=width, highlight=False, markup=False, color_system=None)
    with console.capture() as captured:
        console.print(grid(COLUMNS, ROWS, width, titled=titled))
    found = [line.rstrip() for line in captured.get().splitlines()]
    assert max(map(len, found)) <= width
    return found


def test_all_is_there_where_there_is_room() -> None:
    """Names to the left, figures to the right."""
    assert lines(100) == [
        "name     rate  share  failures  why",
        "one        12   3.0%         0  a reason that is longer than the rest of it all",
        "another     7  90.0%         4",
    ]
    assert lines(100, titled=False) == lines(100)[1:]


@pytest.mark.parametrize(
    ("width", "titles", "first"),
    [
        (
            60,
            "name     rate  share  failures  why",
            "one        12   3.0%         0  a reason that is longer tha…",
        ),
        (48, "name     rate  share  failures  why", "one        12   3.0%         0  a reason that i…"),
        (47, "name     rate  share  failures", "one        12   3.0%         0"),
        (29, "name     rate  failures", "one        12         0"),
        (22, "name     rate", "one        12"),
    ],
)
def test_whole_columns_are_left_out(width: int, titles: str, first: str) -> None:
    """The least important first; a text is cut short as long as something of it is seen."""
    assert lines(width)[:2] == [titles, first]


def test_a_row_is_one_line_that_commands_nothing() -> None:
    """Whatever its cells have, they are as wide as what is seen of them, and keep their style."""
    console = Console(width=40, color_system=None)
    with console.capture() as captured:
        console.print(grid(COLUMNS[:2], [("a\x1b[2J\n", Text("\x1b", style="red"))], 40))
    assert [line.split() for line in captured.get().splitlines()] == [
        ["name", "rate"],
        [r"a\x1b[2J\n", r"\x1b"],
    ]
    assert (shown(Text("\x1b", style="red")).style, shown("\x1b").plain) == ("red", r"\x1b")


def test_what_says_nothing_takes_no_place() -> None:
    """A column without a cell that says something."""
    console = Console(width=40, color_system=None)
    with console.capture() as captured:
        console.print(grid(COLUMNS, [("one", "1", "", "2", "")], 40))
    assert captured.get().splitlines()[0].split() == ["name", "rate", "failures"]
