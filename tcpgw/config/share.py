"""What one of several workers may use of limits that are the whole gateway's. Pure.

Workers know nothing of each other, and asking would cost every connection a message; so each gets an equal
part. The kernel spreads connections over them by a hash of addresses, so many connections make parts of a
like size; few may meet a worker's limit while another has room.
"""

from typing import TypeVar

from tcpgw.config.schema import LEAST_RPC_MEMORY, Config, Listener, Rpc, Rule, Service
from tcpgw.config.table import Table

AnyTable = TypeVar("AnyTable", bound=Table)


def share(config: Config, workers: int) -> Config:
    """Return the configuration of one of so many workers.

    Parts are rounded up, so that no limit becomes 0 that was not: each limit may be exceeded by up to
    `workers` - 1 when all of them reach theirs. rpc_memory is never less than the longest frames need, nor
    than the key's least, so with many workers its sum can be far more. What is each connection's, or a share
    of the traffic, stays as it is. For one worker all of it does.
    """
    return config.model_copy(
        update={
            "gateway": config.gateway.model_copy(update={"rpc_memory": _rpc_memory(config, workers)}),
            "service": tuple(_service(service, workers) for service in config.service),
            "listener": tuple(_listener(listener, workers) for listener in config.listener),
        }
    )


def _service(service: Service, workers: int) -> Service:
    balance = service.balance.model_copy(update={"rebalance": service.balance.rebalance / workers})
    return service.model_copy(update={"balance": balance, "rpc": _rpc(service.rpc, workers)})


def _rpc(rpc: Rpc, workers: int) -> Rpc:
    # Connections that are shared are 1 or 2 for each worker's own loop; exclusive ones are what the instance
    # has threads for.
    keys = ("max_inflight", "queue", *(("connections",) if rpc.exclusive else ()))
    return _parted(rpc, workers, *keys)


def _listener(listener: Listener, workers: int) -> Listener:
    methods = {pattern: _rule(rule, workers) for pattern, rule in listener.methods.items()}
    return _parted(listener, workers, "max_connections").model_copy(update={"methods": methods})


def _rule(rule: Rule, workers: int) -> Rule:
    return rule if rule == "deny" or rule.max_inflight is None else _parted(rule, workers, "max_inflight")


def _rpc_memory(config: Config, workers: int) -> int:
    # What the check between max_frame and rpc_memory asks for, which holds for a worker's configuration too.
    frames = [2 * listener.max_frame for listener in config.listener if listener.mode == "rpc"]
    return max(_part(config.gateway.rpc_memory, workers), LEAST_RPC_MEMORY, *frames)


def _parted(table: AnyTable, workers: int, *keys: str) -> AnyTable:
    return table.model_copy(update={key: _part(getattr(table, key), workers) for key in keys})


def _part(whole: int, workers: int) -> int:
    return -(-whole // workers)
