"""Second requests, to cut the tail and to outlive the dead, and the budgets that prevent a storm of them."""

import asyncio
from collections import Counter

import pytest

from tests.support.rpc import Bed, Behaviour, Client, Instance, Request, bed, echo, hold
from tests.support.streams import until

HEDGED = 'methods = { "read" = { idempotent = true, hedge = "30ms" } }'
P95 = 'methods = { "read" = { idempotent = true, hedge = "p95" } }'
AGAIN = 'methods = { "again" = { idempotent = true } }'
# Hedges beyond its share that a service may always make.
BURST = 10


def after(seconds: float) -> Behaviour:
    """Answer so much later."""

    def answer(request: Request) -> None:
        asyncio.get_running_loop().call_later(seconds, _answer, request)

    return answer


def _answer(request: Request) -> None:
    if not request.link.transport.is_closing():
        request.answer()


def dying(seconds: float) -> Behaviour:
    """Cut the connection so much after a request; at once with 0."""

    def cut(request: Request) -> None:
        if seconds:
            asyncio.get_running_loop().call_later(seconds, request.link.transport.abort)
        else:
            request.link.transport.abort()

    return cut


def total(*instances: Instance) -> int:
    return sum(len(instance.requests) for instance in instances)


def outcomes(*clients: Client) -> Counter[str]:
    return Counter(error["code"] if error else "" for client in clients for _, _, error, _ in client.answers)


# ---- a second endpoint ----


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("size", [0, 50_000])
async def test_the_first_answer_wins(framed: bool, size: int) -> None:
    """A slow instance's requests are answered by another; what it answers later is dropped and counted."""
    slow, *fast = Instance(hold), Instance(), Instance()
    async with bed(slow, *fast, listener=HEDGED) as g:
        client = await g.client(framed=framed)
        for place in range(12):
            assert await client.call(place, bytes(size), method="read") == [place, bytes(size)]
        assert fast[0].seen + fast[1].seen == Counter(range(12))
        assert set(slow.seen.values()) == {1}
        hedged = g.service.hedges.sent
        assert 0 < hedged == len(slow.held)
        assert g.pool.loads.total == 0  # what is not awaited is no load
        slow.behave = echo
        slow.answer_all()
        await until(lambda: g.dropped == hedged)
        assert await client.call("x") == ["x"]
        assert len(client.answers) == 13
        assert g.held == 0


async def test_a_hedge_that_loses() -> None:
    """The first endpoint may answer first after all: then the second one's answer is dropped."""
    first, second = Instance(hold), Instance(hold)
    async with bed(first, second, listener=HEDGED) as g:
        client = await g.client()
        client.ask(1, "x", method="read")
        await until(lambda: first.held or second.held)
        asked, other = (first, second) if first.held else (second, first)
        await until(lambda: other.held)
        assert g.service.hedges.sent == 1
        asked.answer_all()
        assert await client.got(1) == [[1, 1, None, ["x"]]]
        other.answer_all()
        await until(lambda: g.dropped == 1)
        assert len(client.answers) == 1


async def test_a_quick_answer_is_not_hedged() -> None:
    """What is answered before the delay is asked once."""
    instances = [Instance(), Instance()]
    async with bed(*instances, listener='methods = { "read" = { idempotent = true, hedge = "5s" } }') as g:
        client = await g.client()
        for place in range(50):
            assert await client.call(place, method="read") == [place]
        assert (total(*instances), g.service.hedges.sent) == (50, 0)


async def test_never_the_same_endpoint() -> None:
    """Where there is no other one, a slow request is only waited for, with however many connections."""
    instance = Instance(hold)
    async with bed(instance, listener=HEDGED, service="rpc = { connections = 2 }") as g:
        client = await g.client()
        for place in range(5):
            client.ask(place, place, method="read")
        await asyncio.sleep(0.15)
        assert instance.seen == Counter(range(5))
        instance.answer_all()
        await client.got(5)
        assert (outcomes(client), g.service.hedges.sent) == ({"": 5}, 0)


async def test_never_a_third_endpoint() -> None:
    """A request whose hedge is slow as well is not sent again."""
    instances = [Instance(hold) for _ in range(4)]
    async with bed(*instances, listener=HEDGED) as g:
        client = await g.client()
        client.ask(1, "x", method="read")
        await until(lambda: total(*instances) == 2)
        await asyncio.sleep(0.15)
        assert sorted(len(instance.requests) for instance in instances) == [0, 0, 1, 1]
        assert sum(instance.answer_all() for instance in instances) == 2
        await until(lambda: g.dropped == 1)
        assert len(client.answers) == 1


async def test_never_another_method() -> None:
    """Requests of a method without `hedge` are asked once, idempotent or not."""
    slow, other = Instance(hold), Instance(hold)
    rules = 'methods = { "read" = { idempotent = true, hedge = "10ms" }, "again" = { idempotent = true } }'
    async with bed(slow, other, listener=rules) as g:
        client = await g.client()
        for place, method in enumerate(["write", "again", "readers", "write"]):
            client.ask(place, place, method=method)
        await until(lambda: total(slow, other) == 4)
        await asyncio.sleep(0.1)
        assert slow.seen + other.seen == Counter(range(4))
        assert slow.answer_all() + other.answer_all() == 4
        await client.got(4)
        assert g.service.hedges.sent == 0


async def test_hedged_and_lost() -> None:
    """An endpoint that dies of a hedged request is no loss, as long as the other one is there."""
    first, second = Instance(hold), Instance(hold)
    async with bed(first, second, listener=HEDGED) as g:
        client = await g.client()
        for place in range(6):
            client.ask(place, place, method="read")
        await until(lambda: len(first.held) == len(second.held) == 6)
        first.cut()
        await until(lambda: g.pool.loads.total == 6)
        second.answer_all()
        await client.got(6)
        assert (outcomes(client), g.service.recovery.retried) == ({"": 6}, 0)
        assert total(first, second) == 12


async def test_the_client_of_a_hedged_request_goes() -> None:
    """Then nobody is asked a second time for it, and nothing of it stays."""
    first, second = Instance(hold), Instance(hold)
    async with bed(first, second, listener=HEDGED) as g:
        client = await g.client()
        client.ask(1, 1, method="read")
        await until(lambda: total(first, second) == 1)
        client.reset()
        await g.line()
        await asyncio.sleep(0.1)
        assert total(first, second) == 1
        assert first.answer_all() + second.answer_all() == 1
        await until(lambda: g.pool.loads.total == g.held == 0)


# ---- by the running p95 ----


async def test_p95() -> None:
    """Until enough answers are known nothing is hedged; then what takes longer than nearly all of them."""
    first, second = Instance(hold), Instance(hold)
    async with bed(first, second, listener=P95) as g:
        client = await g.client()
        for place in range(15):
            client.ask(place, place, method="read")
        await until(lambda: total(first, second) == 15)
        await asyncio.sleep(0.15)
        for instance in (first, second):
            instance.answer_all()
        await client.got(15)
        client.ask(15, 15, method="read")
        await asyncio.sleep(0.1)
        assert total(first, second) == 16
        for instance in (first, second):
            instance.answer_all()
        await client.got(16)  # the 16th fills the first window: nearly all took 150 ms
        loop = asyncio.get_running_loop()
        began = loop.time()
        client.ask(16, 16, method="read")
        await until(lambda: first.held and second.held)
        assert 0.12 < loop.time() - began < 2
        assert (g.service.hedges.sent, total(first, second)) == (1, 18)
        for instance in (first, second):
            instance.answer_all()
        await client.got(17)


# ---- the hedge budget ----


@pytest.mark.parametrize("hedge", ["5ms", "p95"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.0])
async def test_the_hedge_budget(hedge: str, share: float) -> None:
    """However slow all instances are, they see at most `hedge_budget` more requests than clients sent, and
    10; with a budget of 0 not one more.
    """
    instances = [Instance(after(0.03)) for _ in range(3)]
    rules = f'methods = {{ "read" = {{ idempotent = true, hedge = "{hedge}" }} }}'
    async with bed(*instances, listener=rules, service=f"rpc = {{ hedge_budget = {share} }}") as g:
        clients = [await g.client() for _ in range(4)]
        waves, depth = 6, 25
        for wave in range(waves):
            if wave == 1:  # from now on all are late, by what p95 knows too
                for instance in instances:
                    instance.behave = after(0.08)
            await _ask_all(clients, wave, depth)
            assert total(*instances) <= (1 + share) * 100 * (wave + 1) + BURST
        sent = len(clients) * waves * depth
        assert outcomes(*clients) == {"": sent}
        assert total(*instances) == sent + g.service.hedges.sent
        assert all(set(instance.seen.values()) == {1} for instance in instances)
        if share:
            assert g.service.hedges.sent >= BURST
            assert g.service.hedges.budget.refused > 0
        else:
            assert g.service.hedges.sent == 0
        await until(lambda: g.dropped == g.service.hedges.sent)


async def _ask_all(clients: list[Client], wave: int, depth: int) -> None:
    for place, client in enumerate(clients):
        for turn in range(depth):
            client.ask(turn, (wave * len(clients) + place) * depth + turn, method="read")
    for client in clients:
        await client.got((wave + 1) * depth)


# ---- the retry budget ----


async def test_the_retry_budget_at_a_loss() -> None:
    """When an instance dies with much under way, a fifth of what was in flight is retried; the others'
    clients are told why not.
    """
    instances = [Instance(hold) for _ in range(3)]
    async with bed(*instances, listener=AGAIN) as g:
        client = await g.client()
        for place in range(150):
            client.ask(place, place, method="again")
        await until(lambda: total(*instances) == 150)
        lost = len(instances[0].held)
        instances[0].kill()
        left = 150 - lost
        most = 150 // 5
        await until(lambda: outcomes(client)["upstream_lost"] >= lost - most)
        retried = g.service.recovery.retried
        assert 3 < retried <= most
        assert g.service.recovery.retries.running == retried
        await until(lambda: total(*instances) == 150 + retried)
        assert outcomes(client) == {"upstream_lost": lost - retried}
        assert all("retry budget" in error["message"] for _, _, error, _ in client.answers)
        assert instances[1].answer_all() + instances[2].answer_all() == left + retried
        await client.got(150)
        assert outcomes(client) == {"upstream_lost": lost - retried, "": left + retried}


async def test_a_lone_request_has_its_retries() -> None:
    """At least three retries are allowed at a time: three clients' requests find the one that lives."""
    instances = [*(Instance(dying(0)) for _ in range(2)), Instance()]
    async with bed(*instances, listener=AGAIN) as g:
        clients = [await g.client() for _ in range(3)]
        for client in clients:
            client.ask(1, "x", method="again")
        for client in clients:
            await client.got(1)
        assert outcomes(*clients) == {"": 3}


@pytest.mark.parametrize("seconds", [0.0, 0.02])
async def test_no_storm(seconds: float) -> None:
    """While every instance dies of every request, what the instances see stays near what clients sent, and at
    no time more than a fifth of what can be in flight, or three, is there again.
    """
    clients_, depth, rounds = 10, 10, 2
    most = max(3, 0.2 * clients_ * depth)
    instances = [Instance(dying(seconds)) for _ in range(4)]
    async with bed(*instances, listener=AGAIN) as g:
        clients = [await g.client() for _ in range(clients_)]
        watch = Watch(g)
        task = asyncio.create_task(watch.run())
        await asyncio.gather(*(_insist(client, place, depth, rounds) for place, client in enumerate(clients)))
        task.cancel()
        sent = clients_ * depth * rounds
        assert sum(outcomes(*clients).values()) == sent
        assert "" not in outcomes(*clients)
        assert watch.most <= most
        seen = sum((instance.seen for instance in instances), Counter())
        assert seen.total() <= sent + g.service.recovery.retried
        assert max(seen.values()) <= 3  # connect.candidates
        # A place in the budget is had until its request is over: for two more endpoints at most.
        assert seen.total() <= (1 + 2 * 0.2) * sent
        for instance in instances:
            instance.behave = echo
        await until(lambda: any(g.target(instance).alive for instance in instances))
        assert await clients[0].is_served()


class Watch:
    """The most retries that were under way at a time, as often as the loop turns."""

    def __init__(self, g: Bed) -> None:
        self._g = g
        self.most = 0

    async def run(self) -> None:
        while True:
            self.most = max(self.most, self._g.service.recovery.retries.running)
            await asyncio.sleep(0)


async def _insist(client: Client, name: int, depth: int, rounds: int) -> None:
    for turn in range(rounds):
        for place in range(depth):
            client.ask(place, f"{name}.{turn}.{place}", method="again")
        await client.got((turn + 1) * depth)
        await asyncio.sleep(0.02)
