"""What becomes of requests that wait when the gateway has too much to do."""

from tests.support.rpc import REQUEST, Instance, bed, echo, hold
from tests.support.streams import until


async def test_what_waits_longest_is_shed() -> None:
    """Of the lowest priority first; its client is told, and the rest is served as if nothing had been."""
    instance = Instance(hold)
    rules = 'methods = { "low" = { priority = "low" }, "high" = { priority = "high" } }'
    async with bed(
        instance, service='rpc = { max_inflight = 1, queue_timeout = "20s" }', listener=rules
    ) as g:
        client, other = await g.client(), await g.client()
        client.ask(0, method="m")
        await until(lambda: instance.held)
        asked = [(client, "high"), (client, "m"), (other, "m"), (client, "low"), (other, "low")]
        for number, (who, method) in enumerate(asked, 1):
            who.send(REQUEST, number, method, [number])
            await until(lambda number=number: len(g.target(instance).main.queue) == number)  # type: ignore[misc]
        assert g.service.shed(3) == 3
        await until(lambda: len(client.answers) + len(other.answers) == 3)
        told = [*client.answers, *other.answers]
        assert {number for _, number, *_ in told} == {2, 4, 5}
        assert {(error["code"], error["message"]) for _, _, error, _ in told} == {
            ("overloaded", "the gateway is overloaded")
        }
        instance.behave = echo
        instance.answer_all()
        await client.got(4)
        await other.got(2)
        assert g.service.shed(10) == 0
        assert await client.is_served()
