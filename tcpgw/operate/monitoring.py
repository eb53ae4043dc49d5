"""What a monitoring system beside the gateway is given: `tcpgw monitoring rules` and `dashboard`."""

from importlib.resources import files

import typer

from tcpgw import terminal

monitoring = typer.Typer(
    name="monitoring",
    help="Print what Prometheus and Grafana need to watch this version's metrics.",
    no_args_is_help=True,
)


@monitoring.command()
def rules() -> None:
    """Print alerting rules for Prometheus: a file for its `rule_files`."""
    _print("rules.yml")


@monitoring.command()
def dashboard() -> None:
    """Print a dashboard for Grafana, to be imported there."""
    _print("dashboard.json")


def _print(name: str) -> None:
    try:
        text = (files("tcpgw") / "monitoring" / name).read_text(encoding="utf-8")
    except OSError as exc:
        raise terminal.end(1, f"this installation lacks {name}: {exc.strerror}. Install tcpgw anew") from None
    typer.echo(text, nl=False)
