"""Who holds more than it uses: memory that is announced, sent or left unread, and places in queues."""

import asyncio
import gc
from typing import Any

import pytest

from tcpgw.relay.rpc.session import RpcSession
from tests.support.rpc import REQUEST, Client, Instance, Request, bed, echo, hold
from tests.support.rpc_ends import frame
from tests.support.streams import MiB, until

LITTLE = 'rpc_memory = "16MiB"'
LARGE = 'max_frame = "8MiB"'


def answered(client: Client) -> dict[Any, str]:
    """The code of each answer by its id, "" for a result."""
    return {number: error["code"] if error else "" for _, number, error, _ in client.answers}


# ---- memory ----


async def test_what_instances_do_not_read_counts() -> None:
    """Requests that are sent to instances that do not read hold memory until they are written or lost."""
    deaf = [Instance(deaf=True) for _ in range(3)]
    async with bed(*deaf, gateway=LITTLE, listener=LARGE) as g:
        clients = [await g.client() for _ in range(9)]
        for place, client in enumerate(clients):
            client.ask(place, bytes(6 * MiB))
        await until(lambda: g.held >= 6 * MiB)
        await asyncio.sleep(0.2)  # more must not come
        assert g.held <= 16 * MiB
        channels = [channel for instance in deaf for channel in g.target(instance).channels]
        unwritten = sum(channel._transport.get_write_buffer_size() for channel in channels)
        assert unwritten <= g.held
        for instance in deaf:
            instance.behave = echo
            instance.hear()
        for client in clients:
            await client.got(1)
        await until(lambda: g.held == 0)


async def test_an_announcement_does_not_keep_others_waiting() -> None:
    """Who announces large requests and does not send them is cut off once somebody has waited a second."""
    instance = Instance()
    async with bed(instance, gateway=LITTLE, listener=LARGE) as g:
        peers = [g.dial() for _ in range(2)]
        for peer in peers:
            await peer.send(frame(REQUEST, 1, "m", [bytes(6 * MiB - 1000)])[:9000])
        await until(lambda: g.held > 11 * MiB)
        honest = await g.client()
        honest.ask(1, bytes(6 * MiB))
        assert answered(honest) == {}
        await honest.got(1)
        assert answered(honest) == {1: ""}
        line = await g.line()
        assert line["reason"] == "frame_timeout"
        assert "comes too slowly while others wait" in line["error"]


async def test_who_reads_too_little_is_cut() -> None:
    """A byte now and then does not make a reader: less than its buffer within frame_timeout is too little."""
    instance = Instance(lambda request: request.link.send(1, request.id, None, bytes(2 * MiB)))
    async with bed(instance, listener='frame_timeout = "600ms"\nbuffer = "64KiB"') as g:
        peer = g.dial(receive_buffer=4096)
        for place in range(4):
            await peer.send(frame(REQUEST, place, "m", []))
        while not g.lines:
            await peer.read_some(1000)
            await asyncio.sleep(0.02)
        line = await g.line()
        assert line["reason"] == "slow_reader"
        assert "were read within 0.6 s" in line["error"]
        await until(lambda: g.held == g.unread == 0)


async def test_who_asks_and_ends_and_reads_nothing_is_cut() -> None:
    """After its FIN a client has fin_timeout to fetch its answers, also where the kernels hold the rest."""
    instance = Instance(lambda request: request.link.send(1, request.id, None, bytes(1 * MiB)))
    async with bed(instance, listener='fin_timeout = "300ms"\nbuffer = "64MiB"') as g:
        peer = g.dial(receive_buffer=4096)
        for place in range(8):
            await peer.send(frame(REQUEST, place, "m", []))
        peer.fin()
        line = await g.line()
        assert line["reason"] == "fin_timeout"


# ---- answers ----


async def test_an_answer_beyond_max_frame_costs_its_own_request() -> None:
    """It is passed over: its client is told, and the others on the connection notice nothing."""
    instance = Instance(hold)
    async with bed(
        instance, listener='max_frame = "1MiB"', service="rpc = { connections = 1, bulk = 0 }"
    ) as g:
        clients = [await g.client() for _ in range(3)]
        for place, client in enumerate(clients):
            client.ask(place, place)
        await until(lambda: len(instance.held) == 3)
        for request in instance.held:
            large = request.params == [1]
            request.link.send(1, request.id, None, bytes(5 * MiB) if large else request.params)
        answers = [(await client.got(1))[0] for client in clients]
        assert [answer[3] for answer in answers] == [[0], None, [2]]
        error = answers[1][2]
        assert (error["code"], error["endpoint"]) == ("frame_too_large", instance.endpoint)
        instance.behave = echo
        assert await clients[1].is_served()
        assert instance.accepted == 1
        assert g.held == 0


async def test_answers_that_find_no_memory() -> None:
    """Where rpc_memory is full, an answer is lost rather than kept, and says so; then things go on."""
    instance = Instance(hold)
    rules = f'{LARGE}\nmethods = {{ "kept" = {{ idempotent = true }} }}'
    async with bed(instance, gateway=LITTLE, listener=rules) as g:
        keeper, other = await g.client(), await g.client()
        keeper.ask(1, bytes(6 * MiB), method="kept")
        keeper.ask(2, bytes(5 * MiB), method="kept")
        other.ask(3, "x")
        await until(lambda: len(instance.held) == 3)
        (request,) = [one for one in instance.held if one.params == ["x"]]
        request.link.send(1, request.id, None, bytes(7 * MiB))
        (answer,) = await other.got(1)
        assert answer[2]["code"] == "upstream_lost"
        assert "rpc_memory" in answer[2]["message"]
        instance.held.remove(request)
        for request in instance.held:
            request.link.send(1, request.id, None, "done")
        await keeper.got(2)
        assert answered(keeper) == {1: "", 2: ""}
        instance.behave = echo
        assert await other.is_served()


# ---- places in queues ----


async def test_who_waits_goes_where_there_is_room() -> None:
    """A request does not wait for its first candidate while another one, which load may choose, is idle."""
    slow, fast = Instance(hold), Instance(hold)
    service = 'rpc = { max_inflight = 1, queue_timeout = "20s" }'
    async with bed(slow, fast, service=service) as g:
        client = await g.client()
        for place in range(6):
            client.ask(place, place)
        await until(lambda: slow.held and fast.held)
        fast.behave = echo
        fast.answer_all()
        await client.got(5)
        assert len(slow.requests) == 1
        assert not g.service.crowded
        slow.answer_all()
        await client.got(6)


async def test_a_key_waits_for_its_own() -> None:
    """Where no load may move a key, its requests wait, though another endpoint is idle."""
    slow, fast = Instance(hold), Instance(hold)
    service = 'rpc = { max_inflight = 1, queue_timeout = "20s" }'
    balance = 'policy = "maglev", key = "params[0]", bounded_load = 0'
    async with bed(slow, fast, service=service, balance=balance) as g:
        client = await g.client()
        for place in range(3):
            client.ask(place, "one session")
        await until(lambda: slow.held or fast.held)
        own, other = (slow, fast) if slow.held else (fast, slow)
        other.behave = own.behave = echo
        own.answer_all()
        await client.got(3)
        assert (len(own.requests), len(other.requests)) == (3, 0)


async def test_a_full_queue_has_a_place_for_who_has_none() -> None:
    """The greatest flood gives way: its newest request is answered `overloaded`, and the newcomer waits."""
    instance = Instance(hold)
    service = 'rpc = { max_inflight = 1, queue = 10, queue_timeout = "20s" }'
    async with bed(instance, service=service) as g:
        flood, new = await g.client(), await g.client()
        for place in range(11):
            flood.ask(place, "flood", place)
        await until(lambda: len(g.target(instance).main.queue) == 10)
        new.ask(1, "new")
        await flood.got(1)
        assert answered(flood) == {10: "overloaded"}
        instance.behave = echo
        instance.answer_all()
        await new.got(1)
        await flood.got(11)
        assert answered(new) == {1: ""}
        assert sorted(answered(flood).values()) == [""] * 10 + ["overloaded"]
        assert len(instance.requests) == 11


# ---- rules ----


async def test_rules_that_only_time_and_rank() -> None:
    """Requests of such methods pass in runs, and each is timed and counted by its own method's rule."""
    instance = Instance()
    rules = 'methods = { "fast" = { timeout = "2s" }, "low*" = { priority = "low" }, "no" = "deny" }'
    async with bed(instance, listener=rules) as g:
        client = await g.client()
        methods = ["fast", "fast", "lower", "no", "other", "fast", "low", "no"] * 20
        for place, method in enumerate(methods):
            client.ask(place, place, method=method)
        await client.got(len(methods))
        outcome = answered(client)
        assert [place for place, code in outcome.items() if code] == [
            place for place, method in enumerate(methods) if method == "no"
        ]
        (service,) = g.plane.routing.services
        (methods_,) = service.status()["methods"].values()
        assert {name: figures["outcomes"] for name, figures in methods_.items()} == {
            "*": {"ok": 20}, "fast": {"ok": 60}, "low*": {"ok": 40}, "no": {"denied": 40},
        }  # fmt: skip


async def test_a_rule_s_time_out_holds_in_runs() -> None:
    """The requests of each method have their own time, also where many pass at once."""

    def behave(request: Request) -> None:
        if request.params == ["answer"]:
            request.answer()

    instance = Instance(behave)
    rules = 'request_timeout = "20s"\nmethods = { "hasty" = { timeout = "150ms" } }'
    async with bed(instance, listener=rules) as g:
        client = await g.client()
        for place in range(20):
            client.ask(place, "answer" if place % 4 == 0 else "nothing", method="hasty")
        client.ask(99, "nothing", method="patient")
        await client.got(20)
        assert {place: code for place, code in answered(client).items() if code} == {
            place: "deadline_exceeded" for place in range(20) if place % 4
        }
        assert 99 not in answered(client)


@pytest.mark.parametrize("end", ["reset", "fin", "nonsense"])
async def test_what_a_client_leaves_is_free_at_once(end: str) -> None:
    """A frame that never gets whole goes with its client, and not when the collector comes."""
    gc.collect()
    gc.disable()
    try:
        async with bed(Instance()) as g:
            for count in range(1, 4):
                peer = g.dial()
                half = frame(REQUEST, 2, "m", [bytes(4 * MiB)])[: 2 * MiB]
                await peer.send(frame(REQUEST, 1, "m", []) + half)
                await until(lambda: g.held)
                if end == "reset":
                    peer.reset()
                else:
                    if end == "nonsense":
                        await peer.send(bytes(3 * MiB) + b"\xff" * 9)
                    peer.fin()
                    await peer.read_to_end()
                await g.line(count)
            # Soon: who was hung up on has two seconds to read why.
            await until(lambda: not any(isinstance(one, RpcSession) for one in gc.get_objects()))
    finally:
        gc.enable()
