"""What an instance is given at first that comes, or comes back: under each policy, of real connections."""

import asyncio
from pathlib import Path

import pytest

from tcpgw.app.gateway import Gateway
from tcpgw.config.load import loads
from tcpgw.endpoints import Endpoint
from tests.support.instances import clients, listener, serving
from tests.support.sick import Clients, Instance, instances
from tests.support.streams import until

BY_KEY = {"maglev": "table_size = 1021, bounded_load = 0", "ring": 'policy = "ring", bounded_load = 0'}
BY_TURNS = {"least_request": 'policy = "least_request"', "round_robin": 'policy = "round_robin"'}
POLICIES = BY_KEY | BY_TURNS
SOURCES = clients(120)
CHECK = '{ type = "tcp", interval = "100ms", fast_interval = "50ms", timeout = "50ms" }'


def config(*members: Instance) -> str:
    """A service and a listener of the same name for each policy."""
    addresses = ", ".join(f'"{one.endpoint}"' for one in members)
    return "\n".join(
        f"""
        [[service]]
        name = "{name}"
        discovery = {{ type = "static", endpoints = [{addresses}] }}
        balance = {{ {balance}, slow_start = "3s" }}
        health = {{ active = {CHECK}, passive = "off" }}
        {listener(f'"{name}"', name)}
        """
        for name, balance in POLICIES.items()
    )


def share(gateway: Gateway, policy: str, instance: Instance) -> float:
    told = gateway.pools[policy].shares.get(Endpoint.parse(instance.endpoint))
    return 1.0 if told is None else told.value


async def until_all(gateway: Gateway, instance: Instance, state: str) -> None:
    def all_are() -> bool:
        return all(one["states"].get(instance.endpoint) == state for one in gateway.health.status().values())

    await until(all_are)


async def taken(gateway: Gateway, policy: str, instance: Instance) -> set[str] | None:
    """Who comes to that instance. None where its share changed meanwhile.

    Many connect at a time: of one alone least_request would know only that the other is busy with the last.
    """
    before = share(gateway, policy, instance)
    c = Clients(gateway.listeners[policy].address)
    who = await asyncio.gather(*(c.ask(source) for source in SOURCES))
    assert not c.failures
    if share(gateway, policy, instance) != before:
        return None
    return {source for source, name in zip(SOURCES, who, strict=True) if name == instance.endpoint}


@pytest.mark.parametrize("how", ["returned", "new"])
async def test_slow_start(how: str) -> None:
    """It has a part of its share at first, more each second, then all of it, and no client fails.

    By turns that is of all connections. By key it is of the keys that are its own: no key that it took over
    does it give back.
    """
    async with instances(2) as (one, other):
        first = config(other) if how == "new" else config(one, other)
        async with serving(first) as (gateway, _):
            await until_all(gateway, other, "healthy")
            if how == "new":
                await gateway.reload(loads(config(one, other), Path()))
            else:
                await until_all(gateway, one, "healthy")
                one.down()
                await until_all(gateway, one, "unhealthy")
                one.up()
            await until_all(gateway, one, "healthy")
            seen: dict[str, dict[float, set[str]]] = {policy: {} for policy in POLICIES}
            while not all(1.0 in of for of in seen.values()):
                for policy, of in seen.items():
                    value = share(gateway, policy, one)
                    if value not in of and (mine := await taken(gateway, policy, one)) is not None:
                        of[value] = mine
                await asyncio.sleep(0.02)
    for policy, of in seen.items():
        assert min(of) < 0.6
        assert list(of) == sorted(of)
        for value, mine in of.items():
            expected = value / 2 if policy in BY_KEY else value / (1 + value)
            assert abs(len(mine) / len(SOURCES) - expected) < 0.17, (policy, value, len(mine))
        if policy in BY_KEY:
            for less, more in zip(list(of.values()), list(of.values())[1:], strict=False):
                assert less <= more
