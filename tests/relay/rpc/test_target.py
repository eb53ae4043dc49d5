"""How many requests an endpoint may be given at once."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tcpgw.relay.rpc.target import Target


def one_by_one(inflight: int, others: int, limit: int, share: float) -> int:
    count = 0
    while inflight + count < min(limit, share * (inflight + count + others + 1)):
        count += 1
    return count


@given(
    st.integers(0, 60), st.integers(0, 60), st.integers(1, 80), st.sampled_from([0.0, 0.25, 0.5, 0.625, 1.0])
)
def test_as_many_as_one_by_one(inflight: int, others: int, limit: int, share: float) -> None:
    """At once it takes as many as if it were asked before each whether it is within limit and share."""
    pool = SimpleNamespace(loads=SimpleNamespace(total=inflight + others))
    target: Any = SimpleNamespace(load=SimpleNamespace(inflight=inflight), limit=limit, pool=pool)
    assert max(0, Target.allowed(target, share)) == one_by_one(inflight, others, limit, share)
