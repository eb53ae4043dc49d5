"""What one of several workers may use of limits that are the whole gateway's. Pure.

Asking the others would cost every connection a message; so each worker gets an equal part. The kernel
spreads connections over them by a hash of addresses, so many connections make parts of a like size; few may
meet a worker's limit while another has room. Only how many connections one source or subject has is not
parted, since these are few: of that workers tell each other.
"""

from typing import TypeVar

from tcpgw.config.schema import (
    LEAST_MEMORY,
    LEAST_RPC_MEMORY,
    Config,
    Gateway,
    Limits,
    Listener,
    Quota,
    Rpc,
    Rule,
    Service,
)
from tcpgw.config.table import Table

AnyTable = TypeVar("AnyTable", bound=Table)
AnyQuota = TypeVar("AnyQuota", bound=Quota)


def share(config: Config, workers: int) -> Config:
    """Return the configuration of one of so many workers.

    Parts are rounded up, so that no limit becomes 0 that was not: each limit may be exceeded by up to
    `workers` - 1 when all of them reach theirs. rpc_memory is never less than the longest frames need, nor it
    and overload.memory than the key's least, so with many workers their sums can be far more. What is each
    connection's, or a share of the traffic, stays as it is. For one worker all of it does.
    """
    return config.model_copy(
        update={
            "gateway": _gateway(config, workers),
            "service": tuple(_service(service, workers) for service in config.service),
            "listener": tuple(_listener(listener, workers) for listener in config.listener),
        }
    )


def _gateway(config: Config, workers: int) -> Gateway:
    overload = config.gateway.overload
    if overload.memory is not None:
        memory = max(_part(overload.memory, workers), LEAST_MEMORY)
        overload = overload.model_copy(update={"memory": memory})
    update = {"rpc_memory": _rpc_memory(config, workers), "overload": overload}
    return config.gateway.model_copy(update=update)


def _service(service: Service, workers: int) -> Service:
    balance = service.balance.model_copy(update={"rebalance": service.balance.rebalance / workers})
    connect = _parted(service.connect, workers, "max_connections", "queue")
    update = {"balance": balance, "connect": connect, "rpc": _rpc(service.rpc, workers)}
    return service.model_copy(update=update)


def _rpc(rpc: Rpc, workers: int) -> Rpc:
    # Connections that are shared are 1 or 2 for each worker's own loop; exclusive ones are what the instance
    # has threads for.
    keys = ("max_inflight", "queue", *(("connections",) if rpc.exclusive else ()))
    return _parted(rpc, workers, *keys)


def _listener(listener: Listener, workers: int) -> Listener:
    methods = {pattern: _rule(rule, workers) for pattern, rule in listener.methods.items()}
    update = {"methods": methods, "limits": _limits(listener.limits, workers)}
    return _parted(listener, workers, "max_connections").model_copy(update=update)


def _limits(limits: Limits, workers: int) -> Limits:
    quotas = {
        "per_source": _quota(limits.per_source, workers),
        "per_subject": _quota(limits.per_subject, workers),
    }
    return _parted(limits, workers, "handshakes").model_copy(update=quotas)


def _quota(quota: AnyQuota | None, workers: int) -> AnyQuota | None:
    if quota is None:
        return None
    rate = None if quota.new_per_second is None else quota.new_per_second / workers
    parted = _parted(quota, workers, "burst", "bytes_in", "bytes_out")
    return parted.model_copy(update={"new_per_second": rate})


def _rule(rule: Rule, workers: int) -> Rule:
    return rule if rule == "deny" else _parted(rule, workers, "max_inflight")


def _rpc_memory(config: Config, workers: int) -> int:
    # What the check between max_frame and rpc_memory asks for, which holds for a worker's configuration too.
    frames = [2 * listener.max_frame for listener in config.listener if listener.mode == "rpc"]
    return max(_part(config.gateway.rpc_memory, workers), LEAST_RPC_MEMORY, *frames)


def _parted(table: AnyTable, workers: int, *keys: str) -> AnyTable:
    """Where a key has no limit, a part has none."""
    limits = {key: getattr(table, key) for key in keys}
    parts = {key: _part(limit, workers) for key, limit in limits.items() if limit is not None}
    return table.model_copy(update=parts)


def _part(whole: int, workers: int) -> int:
    return -(-whole // workers)
