import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.balancing.budgets import HedgeBudget, RetryBudget

shares = st.sampled_from([0.0, 0.05, 0.2, 1.0])


def test_retries_are_a_share_of_what_is_in_flight() -> None:
    """With 100 requests in flight and a share of 0.2, twenty may be retries; one that ends makes room."""
    budget = RetryBudget(0.2)
    assert [budget.begin(100) for _ in range(21)] == [True] * 20 + [False]
    budget.end()
    assert budget.begin(100)
    assert not budget.begin(104)  # a fifth is 20.8: not yet 21
    assert budget.begin(105)
    assert (budget.running, budget.refused) == (21, 2)


def test_a_few_retries_may_always_be() -> None:
    """However little is in flight, `least` retries may run."""
    budget = RetryBudget(0.2)
    assert [budget.begin(1) for _ in range(4)] == [True, True, True, False]
    assert RetryBudget(0.0, least=1).begin(1000)
    assert not RetryBudget(0.2, least=0).begin(4)
    assert RetryBudget(0.2, least=0).begin(5)


@given(shares, st.integers(0, 4), st.lists(st.one_of(st.none(), st.integers(0, 60)), max_size=120))
def test_retries_never_exceed_their_share(share: float, least: int, history: list[int | None]) -> None:
    """Whatever begins and ends, a retry that begins is within the share of that moment or the least."""
    budget = RetryBudget(share, least)
    running = refused = 0
    for active in history:
        if active is None:
            if running:
                budget.end()
                running -= 1
        elif budget.begin(active):
            running += 1
            assert running <= max(least, share * active)
        else:
            refused += 1
            assert running + 1 > max(least, share * active)
        assert (budget.running, budget.refused) == (running, refused)


def test_a_failing_backend_makes_no_storm_of_retries() -> None:
    """Where every request fails and would be tried again at once, a fifth of those in flight are retries."""
    budget = RetryBudget(0.2)
    ordinary = 400
    retries = sum(budget.begin(ordinary + budget.running) for _ in range(ordinary))
    assert retries / (ordinary + retries) == pytest.approx(0.2, abs=0.002)
    assert budget.refused == ordinary - retries


@given(shares, st.integers(0, 12), st.lists(st.one_of(st.none(), st.integers(1, 40)), max_size=120))
def test_hedges_never_exceed_their_share_and_the_burst(
    share: float, burst: int, history: list[int | None]
) -> None:
    """At any time there were at most `share` of the requests, and `burst`, hedges."""
    budget = HedgeBudget(share, burst)
    requests = hedges = refused = 0
    for count in history:
        if count is not None:
            requests += count
            budget.deposit(count)
        elif budget.spend():
            hedges += 1
        else:
            refused += 1
        assert hedges <= share * requests + burst + 1e-9
        assert budget.refused == refused


def test_a_stall_of_everything_is_hedged_by_its_share() -> None:
    """Where every request would be hedged, 5 % are, after the first burst."""
    budget = HedgeBudget(0.05)
    hedges = 0
    for _ in range(10_000):
        budget.deposit()
        hedges += budget.spend()
    assert hedges == pytest.approx(500 + 10, abs=1)


def test_rare_requests_have_their_hedges() -> None:
    """The first hedges need no requests before them, and later ones are earned one in twenty."""
    budget = HedgeBudget(0.05, burst=2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    budget.deposit(19)
    assert not budget.spend()
    budget.deposit(2)
    assert budget.spend()


def test_a_quiet_day_saves_nothing_up() -> None:
    """However many requests went by without a hedge, at most a burst follows."""
    budget = HedgeBudget(0.05, burst=10)
    budget.deposit(1_000_000)
    assert sum(budget.spend() for _ in range(100)) == 10


def test_a_share_of_nothing_is_none() -> None:
    """Who sets the share to 0 has no hedge, not even at the start."""
    budget = HedgeBudget(0.0)
    budget.deposit(1000)
    assert not budget.spend()
    assert budget.refused == 1
