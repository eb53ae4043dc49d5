"""What the requests of a service came to, by listener and method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tcpgw.errors import Code
from tcpgw.observe.histogram import Histogram
from tcpgw.observe.totals import summed

if TYPE_CHECKING:
    from tcpgw.relay.rpc.routing import Rule


class MethodFigures:
    """Of the requests with one rule.

    `latency` is of those that an instance answered, `errors` how many of these answers were errors of the
    protocol, and `failed` those that the gateway answered with an error of its own.
    """

    __slots__ = ("errors", "failed", "latency")

    def __init__(self) -> None:
        self.latency = Histogram()
        self.errors = 0
        self.failed: Counter[Code] = Counter()

    def figures(self) -> dict[str, Any]:
        """Return plain values: `outcomes` counts each request once, under ok, error or the gateway's code."""
        answered = {"ok": self.latency.count - self.errors, "error": self.errors}
        failed = {code.value: count for code, count in self.failed.items()}
        outcomes = {name: count for name, count in (answered | failed).items() if count}
        return {"outcomes": outcomes, "latency": self.latency.figures()}


class ServiceFigures(dict["Rule", MethodFigures]):
    """By rule. Methods that none names count under the default one: clients choose names, without end."""

    def __init__(self) -> None:
        super().__init__()
        self._past: dict[str, Any] = {}

    def __missing__(self, rule: Rule) -> MethodFigures:
        made = self[rule] = MethodFigures()
        return made

    def dismiss(self, rules: Iterable[Rule]) -> None:
        """Forget rules that no request has any more, but not what they came to. Idempotent."""
        for rule in rules:
            figures = self.pop(rule, None)
            if figures is not None:
                self._past = summed([self._past, _placed(rule, figures.figures())])

    def status(self, under_way: Counter[Rule]) -> dict[str, Any]:
        """By listener, then by method."""
        there = [_placed(rule, figures.figures()) for rule, figures in self.items()]
        inflight = [_placed(rule, {"inflight": count}) for rule, count in under_way.items()]
        return summed([self._past, *there, *inflight])


def _placed(rule: Rule, figures: dict[str, Any]) -> dict[str, Any]:
    return {rule.listener: {rule.name or "*": figures}}
