"""A configuration as plain data, for the processes that get it from the one that read it.

They cannot read the file themselves: it may have changed since, most of its secrets are none of their
business, and what it leaves out may depend on the environment.
"""

from typing import Any

from tcpgw.config.schema import Config


def plain(config: Config) -> dict[str, Any]:
    """Return what `restored` needs: texts, numbers, lists and tables, with asterisks for secrets of the cloud
    and of the admin server.

    Without alerts, which one process judges and sends. The secrets of tokens stand in it as they are: who
    relays has to check signatures with them.

    Defaults are left out, because some keys may not stand beside some others even with these.
    """
    data = config.model_dump(mode="json", exclude_defaults=True)
    for table in (data, *data["service"]):
        table.pop("alerts", None)
    # Its default is this process's environment, which the other one need not have.
    state_dir = config.gateway.state_dir
    data.setdefault("gateway", {})["state_dir"] = None if state_dir is None else str(state_dir.absolute())
    for number, cloud in enumerate(data.get("cloud", {}).values()):
        if "access_key" in cloud["auth"]:
            # Two that look alike would be taken for one IAM user who stands twice.
            cloud["auth"]["access_key"] += "*" * number
    for listener, table in zip(config.listener, data["listener"], strict=True):
        jwt = listener.access.jwt
        if jwt is not None and jwt.secret is not None:
            table["access"]["jwt"]["secret"] = jwt.secret.get_secret_value()
    return data


def restored(data: dict[str, Any]) -> Config:
    """Return the configuration that `plain` was given, but for alerts and those secrets, and with absolute
    paths.

    Reads neither files nor the environment. Raises ValidationError for what is not from `plain`.
    """
    return Config.model_validate(data, context={"fetched": True})
