"""The demo's story: what happens to the stage while clients use it, and the figures that come of it."""

import asyncio
import dataclasses
import time
from typing import NamedTuple

from tcpgw.demo.instances import Instance
from tcpgw.demo.stage import INSTANCES, Stage, Tell
from tcpgw.demo.traffic import HELD, KEYS, ROUND, Traffic

_VICTIM = "predict-2"
_SHOWN_ERRORS = 5
# When each step begins, as shares of the whole time. None begins before the one before it is done.
_KILL_AT, _UNLIST_AT, _ADD_AT = 0.25, 0.40, 0.65


@dataclasses.dataclass(kw_only=True)
class Result:
    """The figures of a whole run. Keys are counted for each service: `keys` clients, one key at each."""

    seconds: float
    keys: int = KEYS
    connections: int
    failed: int
    cut_with_instance: int
    second_choice: int
    bytes_exchanged: int
    bytes_mismatched: int
    per_endpoint: dict[str, int]
    killed: str
    keys_on_killed: int
    moved_while_steady: int
    moved_on_remove: int
    moved_on_remove_needlessly: int
    added: str
    moved_on_add: int
    moved_on_add_needlessly: int
    api_calls: int
    api_calls_refused: int
    token_calls: int
    gateway_status: int
    errors: list[str]


class Promise(NamedTuple):
    """What the gateway promises, the figures that say whether it is so, and the verdict."""

    text: str
    figures: str
    kept: bool


def make_promises(result: Result) -> list[Promise]:
    """What a run has to show. All must be kept."""
    removed, added = result.moved_on_remove, result.moved_on_add
    to_new = added - result.moved_on_add_needlessly
    return [
        Promise(
            "no connection fails that need not",
            f"{result.connections:,} connections, {result.failed} failed",
            result.failed == 0,
        ),
        Promise(
            "every byte arrives as sent",
            f"{result.bytes_exchanged / 1e6:,.0f} MB compared, {result.bytes_mismatched} bytes differ",
            result.bytes_mismatched == 0,
        ),
        Promise(
            "without a change no key moves",
            f"{result.moved_while_steady} moved",
            result.moved_while_steady == 0,
        ),
        Promise(
            "a lost instance moves only its keys",
            f"{removed} of {result.keys} moved, {result.keys_on_killed} were on it",
            removed == result.keys_on_killed and result.moved_on_remove_needlessly == 0,
        ),
        Promise(
            f"a new instance takes about 1/{INSTANCES}",
            f"{added} of {result.keys} moved, {to_new} to it",
            # Hashing 100 keys leaves this to chance: all but one run in some thousands lie within.
            1 / 3 <= added * INSTANCES / result.keys <= 2 and to_new == added,
        ),
        Promise(
            "the cloud's limits are kept",
            f"{result.api_calls} calls, {result.api_calls_refused} refused; tokens: {result.token_calls}",
            result.api_calls_refused == 0,
        ),
        Promise("the gateway ends well", f"exit status {result.gateway_status}", result.gateway_status == 0),
    ]


async def play(stage: Stage, traffic: Traffic, seconds: float, tell: Tell) -> Result:
    """Send traffic for so long, or as long as the steps need; meanwhile an instance dies and another comes.

    Ends the gateway. Raises DemoError where the story cannot go on; a broken promise is told by the result.
    """
    gateway, began = stage.gateway, time.monotonic()

    async def until(share: float) -> None:
        await asyncio.sleep(max(0.0, began + share * seconds - time.monotonic()))

    async with traffic.flowing():
        tell(
            f"{KEYS} clients connect to both services every {ROUND:g} s; {HELD} of them hold a connection to "
            "each open besides. Each has an address of its own: this is the key that decides on its instance."
        )
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
        per_endpoint={str(i.endpoint): traffic.per_instance[i.name] for i in stage.instances.values()},
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
    )


async def _kill(stage: Stage, victim: Instance, tell: Tell) -> None:
    stage.gateway.watched.add(str(victim.endpoint))
    await victim.kill()
    tell(
        f"{victim.name} is killed (SIGKILL), and its open connections with it. The cloud lists it still: new "
        "connections are refused there, and the gateway takes each key's next candidate."
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
