"""What a run of the demo came to: the figures, and the promises that they keep or break."""

import dataclasses
from typing import NamedTuple

from tcpgw.demo.rpc_clients import CLIENTS
from tcpgw.demo.stage import INSTANCES, WORKERS
from tcpgw.demo.traffic import KEYS

# Each worker's to each endpoint: the one that service.rpc.connections says, and one for what is above
# service.rpc.bulk.
_CONNECTIONS = 2 * WORKERS


@dataclasses.dataclass(kw_only=True)
class RpcResult:
    """The figures of the rpc clients. `connections_per_endpoint` is what the instances said, at most.

    `failed_elsewhere` are failures that the killed instance does not explain, `pending_on_killed` what was
    under way there as the gateway's log says. `slowest_answer` is in seconds.
    """

    clients: int = CLIENTS
    connections_lost: int
    requests: int
    missing: int
    wrong: int
    failed: int
    failed_elsewhere: int
    pending_on_killed: int
    killed: str
    slowest_answer: float
    connections_per_endpoint: dict[str, int]
    requests_per_endpoint: dict[str, int]
    errors: list[str]


@dataclasses.dataclass(kw_only=True)
class Result:
    """The figures of a whole run; those of connections are of the services that are relayed as such.

    Keys are counted for each service: `keys` clients, one key at each.
    """

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
    rpc: RpcResult


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
        *_rpc_promises(result.rpc),
        Promise(
            "the cloud's limits are kept",
            f"{result.api_calls} calls, {result.api_calls_refused} refused; tokens: {result.token_calls}",
            result.api_calls_refused == 0,
        ),
        Promise("the gateway ends well", f"exit status {result.gateway_status}", result.gateway_status == 0),
    ]


def _rpc_promises(rpc: RpcResult) -> list[Promise]:
    most = max(rpc.connections_per_endpoint.values(), default=0)
    seen_by = len(rpc.connections_per_endpoint)
    return [
        Promise(
            f"{rpc.clients:,} clients share few connections",
            f"{most} at each of {seen_by} instances",
            0 < most <= _CONNECTIONS and seen_by == INSTANCES,
        ),
        Promise(
            "every request gets its own answer",
            f"{rpc.requests:,} sent, {rpc.missing} missing, {rpc.wrong} wrong",
            rpc.missing == rpc.wrong == 0,
        ),
        Promise(
            "only what a dead instance had fails",
            f"{rpc.failed} failed, {rpc.pending_on_killed} were on it",
            rpc.failed_elsewhere == 0 and rpc.failed <= rpc.pending_on_killed,
        ),
        Promise(
            "no rpc client has to reconnect",
            f"{rpc.connections_lost} of {rpc.clients:,} connections lost",
            rpc.connections_lost == 0,
        ),
    ]
