"""A gateway's supervisor, as it comes and goes."""

import asyncio
import socket
from pathlib import Path

import pytest

from tcpgw.app.supervisor import Supervisor
from tcpgw.config.load import loads
from tcpgw.relay.sockets import BindError


async def test_one_that_is_refused_leaves_nothing() -> None:
    """Where a listener's address is taken, no task goes on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = loads(
            f"""
            [gateway]
            admin = "off"
            [alerts.webhook.hook]
            url = "http://127.0.0.1:1/"
            [[service]]
            name = "s"
            discovery = {{ type = "static", endpoints = ["127.0.0.1:1"] }}
            [[listener]]
            name = "l"
            bind = "127.0.0.1:{taken.getsockname()[1]}"
            route = "s"
            """,
            Path("/etc"),
        )
        with pytest.raises(BindError):
            async with Supervisor(config, Path("/etc/gw.toml"), {}):
                pass
    assert asyncio.all_tasks() == {asyncio.current_task()}
