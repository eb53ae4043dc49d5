"""Sums of what workers counted: the same table of numbers from each, whatever is in it."""

from collections.abc import Iterable, Mapping
from typing import Any

Figures = dict[str, Any]
"""By name: numbers, or more such tables."""

GAUGES = frozenset({"active", "ages", "draining", "inflight", "waiting"})
"""What is so at a moment: of a worker that is gone it is nothing."""


def summed(tables: Iterable[Mapping[str, Any]]) -> Figures:
    """Add numbers under the same keys, at any depth. Of what is no number, the last counts."""
    total: Figures = {}
    for table in tables:
        for key, value in table.items():
            before = total.get(key)
            # With an abstract class alone, the thousands of dicts in a report take six times as long.
            if type(value) is dict or isinstance(value, Mapping):
                total[key] = summed([before, value] if before else [value])
            elif before is not None and isinstance(value, int | float):
                total[key] = before + value
            else:
                total[key] = value
    return total


def counted(table: Mapping[str, Any]) -> Figures:
    """Return what stays of a table when its worker is gone."""
    return {
        key: counted(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if key not in GAUGES
    }
