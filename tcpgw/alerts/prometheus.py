"""The same rules for Prometheus, as the text of a rule file. Pure.

`monitoring/rules.yml` is the text of the rules' defaults. Of a rule that is off by default, because only the
operator knows its threshold, it has an example in comments.
"""

import json
from collections.abc import Iterator

from tcpgw.alerts.rules import Kind, Terms, rules
from tcpgw.config.alerts import Alerts, InstancesBelow, P99Latency

_HEAD = """\
# Alerts of tcpgw for Prometheus: those that the gateway has built in, on the metrics that it exports. Scrape
# it at least every 20 s, since some look back for one minute. Written from the rules of the gateway itself.
groups:
  - name: tcpgw
    rules:
"""

# What no gateway can say of itself: it was there, and is no longer.
_GONE = """\
      - alert: TcpgwGone
        expr: max_over_time(tcpgw_build_info[15m]) unless on (job, instance) tcpgw_build_info
        for: 1m
        labels:
          severity: critical
        annotations:
          summary: "The gateway {{ $labels.instance }} is gone"
          description: "It cannot be scraped any more. `systemctl status tcpgw` and its log say why; its clients have nobody else."
"""  # noqa: E501 - YAML's text

_EXAMPLES = Alerts(instances_below=InstancesBelow(threshold=2), p99_latency=P99Latency(threshold=0.5))
_UNKNOWN = ("instances_below", "p99_latency")


def rule_file(alerts: Alerts) -> str:
    """The rule file of what `[alerts]` says. Services' own rules are not in it."""
    blocks = [_HEAD]
    for rule, example in zip(rules(alerts), rules(_EXAMPLES), strict=True):
        if rule.terms is not None:
            blocks.append("".join(_lines(rule.kind, rule.terms, alerts)))
        elif example.terms is not None and rule.kind.key in _UNKNOWN:
            lines = _lines(rule.kind, example.terms, alerts)
            blocks.append("      # Off without a threshold, which only you know:\n")
            blocks.append("".join(f"      # {line.removeprefix('      ')}" for line in lines))
    return "".join([*blocks, _GONE])


def _lines(kind: Kind, terms: Terms, alerts: Alerts) -> Iterator[str]:
    yield f"      - alert: {kind.alert}\n"
    yield f"        expr: {_expression(kind, terms, alerts)}\n"
    if terms.wait:
        yield f"        for: {_duration(terms.wait)}\n"
    if alerts.keep_firing_for:
        yield f"        keep_firing_for: {_duration(alerts.keep_firing_for)}\n"
    yield "        labels:\n"
    yield f"          severity: {terms.severity}\n"
    yield "        annotations:\n"
    yield f"          summary: {_quoted(_summary(kind, terms))}\n"
    yield f"          description: {_quoted(kind.hint)}\n"


def _expression(kind: Kind, terms: Terms, alerts: Alerts) -> str:
    sign = "<" if terms.below else ">"
    guard = f" and {kind.guard.format(min_volume=alerts.min_volume)}" if kind.guard else ""
    return f"{kind.expr} {sign} {_number(terms.threshold)}{guard}"


def _summary(kind: Kind, terms: Terms) -> str:
    shown = {"value": f"{{{{ $value | {kind.unit.value} }}}}", "threshold": kind.unit.shown(terms.threshold)}
    return kind.summary.format_map(_Templates(shown))


class _Templates(dict[str, str]):
    """A label is what Prometheus puts in its place."""

    def __missing__(self, label: str) -> str:
        return f"{{{{ $labels.{label} }}}}"


def _quoted(text: str) -> str:
    """As YAML 1.2 has it, which takes JSON's strings."""
    return json.dumps(text, ensure_ascii=False)


def _number(number: float) -> str:
    return str(int(number)) if number == int(number) else repr(number)


def _duration(seconds: float) -> str:
    """As Prometheus reads it: one unit, and no fractions."""
    milliseconds = round(seconds * 1000)
    for of, unit in ((3_600_000, "h"), (60_000, "m"), (1000, "s")):
        if milliseconds % of == 0:
            return f"{milliseconds // of}{unit}"
    return f"{milliseconds}ms"
