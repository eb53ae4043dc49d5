"""What a session found, put together: ratios, warnings, a verdict, JSON. Pure."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tcpgw import __version__
from tcpgw.address import Address
from tcpgw.bench.exchange import BAD_ANSWER, WRONG_PAYLOAD
from tcpgw.bench.plan import Plan
from tcpgw.bench.tally import LATE, Counts, of_rounds

PERCENTILES = (50.0, 90.0, 99.0, 99.9)

_BUSY = 0.9  # of a core, from which on the generator may be what limits the rate
_LATE_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Measured:
    """A target and what was counted in each round, in the order they ran."""

    target: Address
    rounds: tuple[Counts, ...]

    @property
    def total(self) -> Counts:
        """All rounds as one."""
        return of_rounds(self.rounds)


def order(targets: int, number: int) -> list[int]:
    """Which target comes when in a round: turned about each time, so that none always follows the other."""
    places = list(range(targets))
    return places[::-1] if number % 2 else places


def ratios(one: Measured, other: Measured) -> dict[str, float | None]:
    """`one` relative to `other`: the median of the rounds' ratios, None where no round has one.

    Within a round both met the same machine: one that is slower from round to round changes no ratio.
    """
    rounds = [(_compared(a), _compared(b)) for a, b in zip(one.rounds, other.rounds, strict=True)]
    return {name: _median([(a[name], b[name]) for a, b in rounds]) for name in rounds[0][0]}


def _compared(counts: Counts) -> dict[str, float | None]:
    return {"requests_per_second": counts.rate, **_latencies(counts)}


def _latencies(counts: Counts) -> dict[str, float | None]:
    return {f"p{percent:g}": counts.percentile(percent) for percent in PERCENTILES}


def _median(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    quotients = [a / b for a, b in pairs if a and b]
    return statistics.median(quotients) if quotients else None


def warnings(plan: Plan, measured: Sequence[Measured]) -> list[str]:
    """What makes the figures doubtful, each in a sentence that says what to do."""
    found = []
    for total, target in ((each.total, each.target) for each in measured):
        due = total.answered + total.failed
        if total.late > _LATE_SHARE * due:
            found.append(
                f"The generator did not keep the rate for {target}: {total.late:,} of {due:,} requests "
                f"({total.late / due:.0%}) went more than {LATE / 1e6:g} ms after they were due, up to "
                f"{total.late_worst / 1000:,.0f} ms. That is in the latencies: more --processes, a lower "
                "--rate, or a less busy machine."
            )
        busy = total.cpu_seconds / total.seconds / plan.processes
        if busy >= _BUSY:
            found.append(
                f"The generator used {busy:.0%} of a core in each process for {target}: it may be what "
                "limited the rate. More --processes, if there are cores for them."
            )
    return found


def failures(measured: Sequence[Measured]) -> list[str]:
    """Why the session as a whole has failed: nothing was answered, or something was answered wrongly."""
    found = []
    for total, target in ((each.total, each.target) for each in measured):
        wrong = total.errors.get(WRONG_PAYLOAD, 0) + total.errors.get(BAD_ANSWER, 0)
        if not total.answered:
            seen = total.errors | {
                "connections lost": total.connections_lost,
                "tries to open one again that failed": total.connects_failed,
            }
            why = ", ".join(f"{count:,} {kind}" for kind, count in seen.items() if count)
            found.append(f"{target} answered no request: {why or 'and none failed'}")
        elif wrong:
            found.append(f"{target} answered {wrong:,} requests with other bytes than it had to")
    return found


def to_json(plan: Plan, measured: Sequence[Measured]) -> dict[str, Any]:
    """The whole session. Latencies are in microseconds, rates per second."""
    return {
        "tcpgw": __version__,
        "plan": plan.to_dict(),
        "targets": [
            {
                "target": str(each.target),
                **_summary(plan, each.total),
                "rounds": [_summary(plan, counts) for counts in each.rounds],
            }
            for each in measured
        ],
        "ratios": ratios(measured[0], measured[1]) if len(measured) == 2 else None,
        "warnings": warnings(plan, measured),
        "failures": failures(measured),
    }


def _summary(plan: Plan, counts: Counts) -> dict[str, Any]:
    return {
        "seconds": counts.seconds,
        "requests_per_second": counts.rate,
        "latency_us": _latencies(counts) | {"max": counts.worst},
        "answered": counts.answered,
        "failed": counts.failed,
        "errors": counts.errors,
        "bytes_sent_per_second": counts.bytes_sent / counts.seconds,
        "bytes_received_per_second": counts.bytes_received / counts.seconds,
        "strays": counts.strays,
        "connections_lost": counts.connections_lost,
        "connects_failed": counts.connects_failed,
        "generator": {
            "cores": counts.cpu_seconds / counts.seconds,
            "processes": plan.processes,
            "late": counts.late,
            "late_worst_us": counts.late_worst,
        },
        "histogram": counts.to_dict()["histogram"],
    }
