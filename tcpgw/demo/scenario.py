"""The demo's story: what happens to the stage while clients use it, and the figures that come of it."""

import asyncio
import time

from tcpgw.demo.instances import Instance
from tcpgw.demo.result import Result, RpcResult
from tcpgw.demo.rpc_clients import CLIENTS, EVERY, Load
from tcpgw.demo.stage import INSTANCES, RELAYED, WORKERS, Stage, Tell
from tcpgw.demo.traffic import HELD, KEYS, ROUND, Traffic
from tcpgw.errors import Code

_VICTIM, _RPC_VICTIM = "predict-2", "infer-2"
_SHOWN_ERRORS = 5
# When each step begins, as shares of the whole time. None begins before the one before it is done.
_KILL_AT, _UNLIST_AT, _RPC_KILL_AT, _ADD_AT = 0.20, 0.35, 0.55, 0.75


async def play(stage: Stage, traffic: Traffic, load: Load, seconds: float, tell: Tell) -> Result:
    """Send traffic for so long, or as long as the steps need; meanwhile instances die and another comes.

    Ends the gateway. Raises DemoError where the story cannot go on; a broken promise is told by the result.
    """
    gateway, began = stage.gateway, time.monotonic()

    async def until(share: float) -> None:
        await asyncio.sleep(max(0.0, began + share * seconds - time.monotonic()))

    async with load.flowing(stage.of("infer")), traffic.flowing():
        _introduce(tell)
        await traffic.round()
        await until(_KILL_AT)
        astray = traffic.take_moved()

        victim = stage.instances[_VICTIM]
        on_victim = {key for key, name in traffic.seen.items() if name == victim.name}
        await _kill(stage, victim, tell)
        await traffic.round()
        await until(_UNLIST_AT)
        await _unlist(stage, victim, tell)
        await traffic.round()
        removed = traffic.take_moved()
        tell(f"{len(removed)} of {KEYS} keys have moved; {len(on_victim)} were on {victim.name}.")

        await until(_RPC_KILL_AT)
        await _kill_rpc(stage.instances[_RPC_VICTIM], load, tell)

        await until(_ADD_AT)
        astray += traffic.take_moved()
        newcomer = await _add(stage, tell)
        await traffic.round()
        added = traffic.take_moved()
        share = f"{len(added)} of {KEYS} keys have moved to it, about 1/{INSTANCES}"
        tell(f"{share}; connections that are open stay where they are.")
        await until(1.0)
    astray += traffic.take_moved()
    status = await gateway.stop()

    cut, failed = stage.judge(traffic.broken)
    return Result(
        seconds=round(time.monotonic() - began, 1),
        connections=traffic.connections,
        failed=len(failed),
        cut_with_instance=len(cut),
        second_choice=gateway.second_choice,
        bytes_exchanged=traffic.bytes_exchanged,
        bytes_mismatched=traffic.bytes_mismatched,
        per_endpoint={
            str(instance.endpoint): traffic.per_instance[instance.name]
            for service in RELAYED
            for instance in stage.of(service)
        },
        killed=str(victim.endpoint),
        keys_on_killed=len(on_victim),
        moved_while_steady=len(astray),
        moved_on_remove=len(removed),
        moved_on_remove_needlessly=len([move for move in removed if move.key not in on_victim]),
        added=str(newcomer.endpoint),
        moved_on_add=len(added),
        moved_on_add_needlessly=len([move for move in added if move.new != newcomer.name]),
        api_calls=stage.cloud.api_calls,
        api_calls_refused=stage.cloud.throttled_calls,
        token_calls=stage.cloud.token_calls,
        gateway_status=status,
        errors=[f"{service} {source}: {error}" for (service, source), _, error in failed[:_SHOWN_ERRORS]],
        rpc=_rpc_result(stage, load),
    )


def _rpc_result(stage: Stage, load: Load) -> RpcResult:
    instances = stage.of("infer")
    killed = str(stage.instances[_RPC_VICTIM].endpoint)
    expected = Code.UPSTREAM_LOST, killed
    elsewhere = [failure for failure in load.failures if (failure.code, failure.endpoint) != expected]
    return RpcResult(
        connections_lost=load.lost,
        requests=load.requests,
        missing=load.missing,
        wrong=load.wrong,
        failed=len(load.failures),
        failed_elsewhere=len(elsewhere),
        pending_on_killed=stage.gateway.pending_on[killed],
        killed=killed,
        slowest_answer=round(load.slowest, 3),
        connections_per_endpoint={
            str(instance.endpoint): load.connections[instance.name]
            for instance in instances
            if instance.name in load.connections
        },
        requests_per_endpoint={str(i.endpoint): load.per_instance[i.name] for i in instances},
        errors=load.errors[:_SHOWN_ERRORS] + [f"infer: {failure}" for failure in elsewhere[:_SHOWN_ERRORS]],
    )


def _introduce(tell: Tell) -> None:
    tell(
        f"{CLIENTS:,} rpc clients have connected to infer. Each keeps its connection and sends a request "
        f"about every {EVERY:g} s, with random bytes that must come back. The gateway chooses an "
        f"instance for each request; to each instance each of its {WORKERS} workers has two connections for "
        "all clients, one of them for large requests."
    )
    tell(
        f"{KEYS} other clients connect to predict and echo every {ROUND:g} s; {HELD} of them hold a "
        "connection to each open besides. Each has an address of its own: this is the key that decides "
        "on its instance."
    )


async def _kill(stage: Stage, victim: Instance, tell: Tell) -> None:
    stage.gateway.watched.add(str(victim.endpoint))
    await victim.kill()
    tell(
        f"{victim.name} is killed (SIGKILL), and its open connections with it. The cloud lists it still: new "
        "connections are refused there, and the gateway takes each key's next candidate."
    )


async def _kill_rpc(victim: Instance, load: Load, tell: Tell) -> None:
    failed = len(load.failures)
    await victim.kill()
    tell(
        f"{victim.name} is killed with requests under way. It may have done them, so the gateway does not "
        f"send them again (`idempotent` would allow it): it answers them with the error {Code.UPSTREAM_LOST}."
    )
    await load.round()
    tell(
        f"{len(load.failures) - failed} requests failed so. Each of the {len(load.clients):,} clients has "
        "had an answer from another instance since, over the connection that it had."
    )


async def _unlist(stage: Stage, victim: Instance, tell: Tell) -> None:
    stage.list_running("predict")
    began, gone = time.monotonic(), str(victim.endpoint)
    await stage.gateway.until(
        lambda: gone not in stage.gateway.members["predict"], f"a snapshot without {gone}"
    )
    tell(
        f"The cloud no longer lists {victim.name}; the gateway knew after {time.monotonic() - began:.1f} s. "
        f"{stage.gateway.second_choice} connections had taken the next candidate so far."
    )


async def _add(stage: Stage, tell: Tell) -> Instance:
    await stage.start("predict", INSTANCES + 1)
    newcomer = stage.instances[f"predict-{INSTANCES + 1}"]
    stage.list_running("predict")
    began, come = time.monotonic(), str(newcomer.endpoint)
    await stage.gateway.until(lambda: come in stage.gateway.members["predict"], f"a snapshot with {come}")
    tell(f"{newcomer.name} starts and is listed; the gateway knew after {time.monotonic() - began:.1f} s.")
    return newcomer
