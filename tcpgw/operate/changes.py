"""Changes of a whole gateway: `tcpgw reload`, `tcpgw upgrade`."""

import typer

from tcpgw.operate.ask import ConfigFile, ask


def reload(config: ConfigFile) -> None:
    """Have the running gateway read its configuration again; connections go on.

    Prints what changed. Exit code 2: the file is not valid, or what it asks for cannot be had (an address
    that is taken), and the configuration in force stays as it was.
    """
    changes = ask(config, "reload")
    for line in changes:
        typer.echo(line)
    if not changes:
        typer.echo("nothing changed")


def upgrade(config: ConfigFile) -> None:
    """Have the running gateway replaced by the version installed now; no client is refused.

    The new one takes over the listening sockets, the old one drains.
    """
    successor = ask(config, "upgrade")
    typer.echo(
        f"process {successor['pid']} accepts on {', '.join(successor['listeners'])}; the old one drains"
    )
