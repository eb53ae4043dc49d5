"""How many requests an endpoint may be given at once."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.balancing.standing import Share
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


@pytest.mark.parametrize(
    ("share", "inflight", "helps"),
    [
        (None, 19, True),
        (Share(0.0), 0, False),
        (Share(0.25), 4, True),
        (Share(0.25), 5, False),
        (Share(0.25, by_key=False), 0, False),
    ],
)
def test_who_helps(share: Share | None, inflight: int, helps: bool) -> None:
    """What others have no room for goes to who is well, and to a slow start up to that share of its limit."""
    pool = SimpleNamespace(shares={"it": share} if share else {})
    target: Any = SimpleNamespace(
        endpoint="it", retired_at=None, pool=pool, load=SimpleNamespace(inflight=inflight), limit=20
    )
    assert Target.helps.fget(target) is helps  # type: ignore[attr-defined]
    target.retired_at = 1.0
    assert Target.helps.fget(target) is False  # type: ignore[attr-defined]
