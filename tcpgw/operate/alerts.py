"""What is wrong, and who need not hear of it: `tcpgw alerts`, `tcpgw silence`, `tcpgw unsilence`."""

import json
import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tcpgw import terminal
from tcpgw.operate.ask import ConfigFile, ask, out, say
from tcpgw.operate.figures import age
from tcpgw.operate.options import duration

_RANKS = {"firing": 0, "pending": 1, "resolved": 2}
_WHOLE = ("alert", "state")

AlertArgument = Annotated[str, typer.Argument(metavar="ALERT", help="Its name, as `tcpgw alerts` has it.")]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="NAME=VALUE", help="Only where it has this label; may be repeated."),
]


def alerts(
    config: ConfigFile,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON array, of the alerts alone.")
    ] = False,
) -> None:
    """Print the alerts of the running gateway: firing, pending, and resolved a while ago; then its silences.

    The exit code says nothing of them: 0 wherever the gateway answers.
    """
    found = ask(config, "alerts")
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if found:
        _show(found, time.time())
    else:
        typer.echo("no alerts")
    for one in ask(config, "silences"):
        comment = f": {one['comment']}" if one["comment"] else ""
        named = _named(one["alert"], one["labels"])
        say(f"silence of {named} until {_clock(one['until'])}{comment}")


def _show(found: list[dict[str, Any]], now: float) -> None:
    table = terminal.table("state", "severity", "alert", "labels", "for", "value", "summary", whole=_WHOLE)
    for one in ordered(found):
        state = one["state"] if not one["silenced_until"] else f"{one['state']}, silenced"
        what = (one["severity"], one["alert"], labelled(one["labels"]), standing(one, now))
        cells = (state, *what, f"{one['value']:.4g}", one["summary"])
        table.add_row(*map(terminal.visible, cells))
    out.print(table)
    for alert, hint in {one["alert"]: one["hint"] for one in ordered(found) if one["hint"]}.items():
        say(f"{alert}: {hint}")


def silence(
    alert: AlertArgument,
    config: ConfigFile,
    label: LabelOption = None,
    *,
    seconds: Annotated[
        float,
        typer.Option(
            "--for",
            parser=duration,
            metavar="DURATION",
            help="30m, 2h, or seconds; 2h where it is not given.",
            show_default=False,
        ),
    ] = 7200.0,
    comment: Annotated[str, typer.Option(metavar="TEXT", help="Why, for who comes later.")] = "",
) -> None:
    """Have nobody notified of an alert for a while; it is still shown, as silenced.

    Without --label it is silenced for all its labels.

    Exit code 2: there is no such alert.
    """
    labels = _labels(label)
    ask(config, "silence", alert, labels, seconds, comment)
    say(f"{_named(alert, labels)} is silenced until {_clock(time.time() + seconds)}")


def unsilence(alert: AlertArgument, config: ConfigFile, label: LabelOption = None) -> None:
    """End the silences of an alert, or the one with just these labels. `tcpgw alerts` lists them.

    Where there is none, nothing changes.
    """
    labels = _labels(label)
    ended, named = ask(config, "unsilence", alert, labels), _named(alert, labels)
    some = f"{ended} {'silence' if ended == 1 else 'silences'} ended"
    say(f"{named}: {some}" if ended else f"no silence of {named} stands: see `tcpgw alerts`")


def ordered(alerts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What matters most first: firing, critical, and of those the oldest."""
    return sorted(
        alerts,
        key=lambda one: (
            bool(one["silenced_until"]),
            _RANKS.get(one["state"], len(_RANKS)),
            one["severity"] != "critical",
            one["since"],
        ),
    )


def labelled(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels.items())


def standing(alert: Mapping[str, Any], now: float) -> str:
    """For how long it is what it is; what is resolved was so that long ago."""
    return f"{age(now - alert['since'])}{' ago' if alert['state'] == 'resolved' else ''}"


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(at))


def _named(alert: str, labels: Mapping[str, str]) -> str:
    return f"{alert} ({labelled(labels)})" if labels else alert


def _labels(given: list[str] | None) -> dict[str, str]:
    """Read the options, or exit with 2."""
    labels = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise terminal.end(2, f"{text!r} is no label: write --label service=resnet-v1")
        labels[name] = value
    return labels
