"""Columns that fit: where a terminal is narrow, whole columns are left out, for half a figure is none."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from tcpgw.terminal import visible

_GAP = 2
# Characters of a text below which showing its beginning is of no use.
_LEAST = 16


class Column(NamedTuple):
    """`rank` says which are left out first, the greatest; those of rank 0 stay. `text`: may be cut short."""

    title: str
    rank: int = 0
    text: bool = False
    left: bool = False


def grid(
    columns: Sequence[Column], rows: Iterable[Sequence[str | Text]], width: int, *, titled: bool = True
) -> Table:
    """Return a table of at most `width` characters: one line for each row, and one for the titles.

    A column in which nothing stands is left out.
    """
    cells = [[shown(cell) for cell in row] for row in rows]
    widths = [_width(column, [row[place] for row in cells]) for place, column in enumerate(columns)]
    kept = [place for place in range(len(columns)) if any(row[place].plain for row in cells)]
    while sum(widths[place] + _GAP for place in kept) - _GAP > width:
        droppable = [place for place in kept if columns[place].rank]
        if not droppable:
            break
        kept.remove(max(droppable, key=lambda place: (columns[place].rank, place)))
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold", show_header=titled)
    left = width - sum(widths[place] + _GAP for place in kept) + _GAP
    for place in kept:
        column = columns[place]
        if column.text:  # as much of it as there is room for
            more = min(left, max(row[place].cell_len for row in cells) - widths[place])
            widths[place] += max(0, more)
            left -= more
        table.add_column(
            column.title,
            justify="left" if column.left or column.text else "right",
            no_wrap=True,
            overflow="ellipsis",
            width=widths[place],
        )
    for row in cells:
        table.add_row(*(row[place] for place in kept))
    return table


def shown(text: str | Text) -> Text:
    """Return `text` as `terminal.visible` has it, in its style."""
    made = Text(text) if isinstance(text, str) else text.copy()
    made.plain = visible(made.plain)
    return made


def _width(column: Column, cells: Sequence[Text]) -> int:
    widest = max((cell.cell_len for cell in cells), default=0)
    return max(len(column.title), min(widest, _LEAST) if column.text else widest)
