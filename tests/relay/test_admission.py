"""Who is turned away although the credential is good."""

import asyncio
from pathlib import Path

import pytest

from tcpgw.access.keys import new_key
from tcpgw.app.gateway import Gateway
from tcpgw.client import RpcError, connect
from tcpgw.config.load import loads
from tcpgw.errors import Code
from tests.support.streams import in_time


@pytest.mark.parametrize(
    ("services", "others", "code"), [([], 1, Code.OVERLOADED), (["another"], 0, Code.DENIED)]
)
def test_who_may_not_come_in_is_not_welcomed_first(
    tmp_path: Path, services: list[str], others: int, code: Code
) -> None:
    """The answer to `tcpgw.auth` is no where a limit, or the services of the credential, say so."""
    made = new_key("alice", services=services)
    (tmp_path / "keys").write_text(made.line)
    config = """
        [[service]]
        name = "s"
        discovery = { type = "static", endpoints = ["127.0.0.1:9"] }
        health = { active = "off" }
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        mode = "rpc"
        route = "s"
        access = { api_keys = "keys" }
        limits = { per_subject = { connections = 1 } }
    """

    async def scenario() -> None:
        async with Gateway(loads(config, tmp_path)) as gateway:
            address = gateway.listeners["l"].address
            held = [connect(address, token=made.key) for _ in range(others)]
            for one in held:
                await one.__aenter__()
            with pytest.raises(RpcError) as refused:
                await connect(address, token=made.key).__aenter__()
            assert refused.value.code == code
            for one in held:
                await one.close()

    asyncio.run(in_time(scenario()))
