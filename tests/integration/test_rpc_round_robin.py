"""A notification between requests: it takes one turn of round_robin, not two."""

import random

import pytest

from tests.support.rpc import NOTIFY, Instance, bed
from tests.support.streams import until

PATHS = {
    "in runs": "",
    "in runs by name": 'methods = { "other" = { timeout = "10s" } }',
    "one by one": 'methods = { "m" = { idempotent = true } }',
}
every_path = pytest.mark.parametrize("rules", PATHS.values(), ids=PATHS)


@every_path
@pytest.mark.parametrize("told", [(1, 1), (0, 2)])
@pytest.mark.parametrize("count", [2, 3])
async def test_notifications_between_requests(rules: str, count: int, told: tuple[int, int]) -> None:
    """A notification takes a turn like a request: together they are even, wherever both are mixed."""
    instances = [Instance() for _ in range(count)]
    async with bed(*instances, listener=rules, balance='policy = "round_robin"') as g:
        client = await g.client()
        rng, sent = random.Random(1), 0
        for number in range(300):
            client.ask(number, number)
            for _ in range(rng.randint(*told)):
                client.send(NOTIFY, "m", [number])
                sent += 1
        await client.got(300)
        await until(lambda: sum(len(instance.notifications) for instance in instances) == sent)
        taken = [len(one.requests) + len(one.notifications) for one in instances]
        assert max(taken) - min(taken) <= 1, taken
