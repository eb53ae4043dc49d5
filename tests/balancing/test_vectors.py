"""Pinned choices: which endpoints serve a key, and which service of a split, in files on disk.

During an upgrade two versions of tcpgw run side by side, and the gateways of a fleet are seldom all of one
version. They must send a client to the same instance, so these choices are a promise to users, like a file
format.

A failure here means that the change moves clients: undo it. The files are never regenerated to make a test
pass. Only a release that announces the movement in CHANGELOG.md may replace one: delete the file by hand, run
`python tests/balancing/test_vectors.py`, which writes what is missing and touches nothing that is there, and
say in the commit's message what moved and why. `nft_jhash.json` was recorded from the kernel and cannot be
made here.
"""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tcpgw.balancing.hashing import SPLIT_SEED, other, source_ip, source_ip_port
from tcpgw.balancing.maglev import Maglev
from tcpgw.balancing.policy import Policy
from tcpgw.balancing.ring import Ring
from tcpgw.balancing.split import Split
from tcpgw.endpoints import Endpoint

DIRECTORY = Path(__file__).parents[1] / "data/vectors"

ENDPOINTS = {
    "10.0.0.1:8000": 1,
    "10.0.0.2:8000": 1,
    "10.0.0.2:8001": 2,
    "10.0.3.40:11211": 3,
    "192.168.1.250:65535": 1,
    "[fd00::1]:8000": 2,
    "[fd00:0:0:1::a:b]:443": 1,
}
SERVICES = {"resnet-v1": 90, "resnet-v2": 9, "resnet-v3": 1, "retired": 0}

# A key as an operator would write it: an address, an address and port, or a listener's name.
KEYS = [
    *[f"10.{n}.{n * 7 % 256}.{n * 31 % 256}" for n in range(1, 19)],
    *[f"fd00::{n:x}:{n * 4099:x}" for n in range(1, 9)],
    *[f"172.16.0.{n} {32768 + n * 1009}" for n in range(1, 13)],
    *[f"2001:db8::{n:x} {50000 + n}" for n in range(1, 7)],
    *[f"listener:predict-{n}" for n in range(1, 7)],
]


def position(key: str, *seed: int) -> int:
    host, _, port = key.partition(" ")
    if key.startswith("listener:"):
        return other(key.removeprefix("listener:").encode(), *seed)
    return source_ip_port(host, int(port), *seed) if port else source_ip(host, *seed)


def endpoint_choices(make: Callable[[dict[Endpoint, float]], Policy]) -> dict[str, Any]:
    policy = make({Endpoint.parse(text): weight for text, weight in ENDPOINTS.items()})
    choices = {key: [str(e) for e in islice(policy.candidates(position(key)), 3)] for key in KEYS}
    return {"endpoints": ENDPOINTS, "candidates": choices}


def split_choices() -> dict[str, Any]:
    split = Split(SERVICES)
    return {"services": SERVICES, "chosen": {key: split.choose(position(key, SPLIT_SEED)) for key in KEYS}}


PINNED: dict[str, Callable[[], dict[str, Any]]] = {
    "maglev": lambda: endpoint_choices(Maglev),
    "ring": lambda: endpoint_choices(Ring),
    "split": split_choices,
}


@pytest.mark.parametrize("name", PINNED)
def test_no_key_has_moved(name: str) -> None:
    """Every pinned key still has the candidates, or the service, that released versions give it."""
    pinned = json.loads((DIRECTORY / f"{name}.json").read_text())
    assert len(KEYS) == 50
    assert PINNED[name]() == pinned


if __name__ == "__main__":
    for name, choices in PINNED.items():
        path = DIRECTORY / f"{name}.json"
        if not path.exists():
            path.write_text(json.dumps(choices(), indent=1) + "\n")
            print(f"wrote {path}")  # noqa: T201  # a script here
