"""How much of their weight endpoints get at present: what their health comes to where one is chosen."""

from collections.abc import Mapping
from typing import NamedTuple

from xxhash import xxh64_intdigest

from tcpgw.endpoints import Endpoint

# Another one than those of Maglev's slots and steps, else keys would not come over evenly.
_SEED = 2


class Share(NamedTuple):
    """What an endpoint gets of its weight, 0 to 1. 0: nothing. An endpoint without one has all of it.

    In between, `by_key` is slow start: under a hash policy the endpoint has a part of its keys, and a greater
    share takes more of them over and gives none back. Else it is a trial: each choice is by chance, so that
    few keys are at its mercy for long and every client may be the one that finds it well.
    """

    value: float
    by_key: bool = True


def usable(weights: Mapping[Endpoint, float], shares: Mapping[Endpoint, Share]) -> dict[Endpoint, float]:
    """Return what the weights are at present, of all that get anything."""
    return {
        endpoint: weight * shares[endpoint].value if endpoint in shares else weight
        for endpoint, weight in weights.items()
        if endpoint not in shares or shares[endpoint].value > 0
    }


def seed(endpoint: Endpoint) -> int:
    """What `rank` is to be given for an endpoint."""
    return xxh64_intdigest(str(endpoint).encode(), _SEED)


def rank(position: int, seed: int) -> float:
    """From which share on, 0 to 1, an endpoint has a key of its own in slow start. On every gateway alike."""
    return xxh64_intdigest(position.to_bytes(4, "little"), seed) / 2**64
