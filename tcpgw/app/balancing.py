"""What a service's `balance` means: its policy, and the hash of its key."""

import random
import time
from collections.abc import Mapping

from tcpgw.balancing import hashing
from tcpgw.balancing.bounded import Bounded
from tcpgw.balancing.least_request import LeastRequest
from tcpgw.balancing.loads import Loads
from tcpgw.balancing.maglev import Maglev
from tcpgw.balancing.peak_ewma import PeakEwma
from tcpgw.balancing.policy import Policy
from tcpgw.balancing.ring import Ring
from tcpgw.balancing.round_robin import RoundRobin
from tcpgw.balancing.sampling import Random
from tcpgw.config import schema
from tcpgw.config.service import OF_CONNECTION
from tcpgw.config.values import parse_path
from tcpgw.endpoints import Endpoint
from tcpgw.relay.rpc.routing import Key
from tcpgw.relay.session import Client
from tcpgw.relay.upstream import Hash
from tcpgw.wire.field import Field


def make_policy(balance: schema.Balance, weights: Mapping[Endpoint, float], loads: Loads) -> Policy:
    """Build a service's policy; takes up to a tenth of a second, so off the event loop."""
    policy: Policy
    match balance.policy:
        case "maglev":
            policy = Maglev(weights, balance.table_size, breathe=_breathe)
        case "ring":
            policy = Ring(weights, breathe=_breathe)
        case "least_request":
            return LeastRequest(weights, loads, random.Random())
        case "peak_ewma":
            return PeakEwma(weights, loads, random.Random())
        case "round_robin":
            return RoundRobin(weights, random.Random())
        case "random":
            return Random(weights, random.Random())
    return Bounded(policy, weights, loads, balance.bounded_load) if balance.bounded_load else policy


def _breathe() -> None:
    """Let the event loop's thread have the interpreter; sleep(0) often takes it back before that wakes."""
    time.sleep(1e-6)


def make_hash(key: str, listener: str, seed: int) -> Hash:
    """What a service's `balance.key` means for the clients of a listener."""
    if key == "listener":
        fixed = hashing.other(listener.encode(), seed)
        return lambda _: fixed

    def of_source(client: Client) -> int:
        if key == "hash_key" and client.hash_key:
            return hashing.other(client.hash_key, seed)
        if key == "subject" and client.grant is not None:
            return hashing.other(client.grant.subject.encode(), seed)
        address = client.address
        if address is None:  # of a Unix socket: no address to keep, so it is spread
            return random.getrandbits(32)
        return (
            hashing.source_ip_port(*address, seed)
            if key == "source_ip_port"
            else hashing.source_ip(address[0], seed)
        )

    return of_source


def make_key(key: str, listener: str, seed: int) -> Key:
    """What a service's `balance.key` means for the requests of an rpc listener's clients."""

    def of_bytes(data: bytes) -> int:
        return hashing.other(data, seed)

    if key == "method":
        return Key(make_hash("source_ip", listener, seed), of_bytes, by_method=True, name=key)
    if key in OF_CONNECTION:
        return Key(make_hash(key, listener, seed), of_bytes, name=key)
    return Key(make_hash("source_ip", listener, seed), of_bytes, field=Field(parse_path(key)), name=key)
