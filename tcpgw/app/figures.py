"""The figures of pools as plain values, which other processes and pages can be given."""

from collections.abc import Mapping
from typing import Any

from tcpgw.pool import Pool

Figures = dict[str, Any]
"""By name: numbers, or more such dictionaries."""


def of_pool(pool: Pool) -> Figures:
    """Before the first snapshot its version is 0."""
    snapshot = pool.snapshot
    return {
        "version": snapshot.version if snapshot else 0,
        "taken_at": snapshot.taken_at if snapshot else 0.0,
        "endpoints": {
            str(endpoint): {"weight": weight, "inflight": pool.loads.inflight(endpoint)}
            for endpoint, weight in pool.members
        },
    }


def summed(*all_: Mapping[str, Any]) -> Figures:
    """Add up what stands under the same names."""
    total: Figures = {}
    for figures in all_:
        for name, figure in figures.items():
            if isinstance(figure, Mapping):
                total[name] = summed(total.get(name, {}), figure)
            else:
                total[name] = total.get(name, 0) + figure
    return total
