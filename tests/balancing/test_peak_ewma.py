from collections import Counter
from random import Random as Rng

from tcpgw.balancing.loads import Loads
from tcpgw.balancing.peak_ewma import PeakEwma
from tcpgw.balancing.standing import Share
from tcpgw.endpoints import Endpoint

A, B, C = (Endpoint.of(f"10.0.0.{n}", 80) for n in (1, 2, 3))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def firsts(policy: PeakEwma) -> set[Endpoint]:
    return {next(policy.candidates(n)) for n in range(100)}


def test_one_slow_answer_is_enough_and_forgotten_in_time() -> None:
    """An endpoint that stalls once is avoided at once, and tried again when the peak has faded."""
    clock = Clock()
    loads = Loads(clock)
    policy = PeakEwma({A: 1, B: 1}, loads, Rng(1))
    for endpoint in (A, B):
        loads.observe(endpoint, 0.010)
    loads.observe(A, 1.0)
    assert firsts(policy) == {B}
    for _ in range(60):
        clock.now += 1
        loads.observe(B, 0.010)
    assert firsts(policy) == {A}


def test_the_cost_is_latency_times_queue_per_weight() -> None:
    """Twice the latency stands up to twice the queue, or to half the weight."""
    loads = Loads(Clock())
    policy = PeakEwma({A: 2, B: 1}, loads, Rng(2))
    loads.observe(A, 0.040)
    loads.observe(B, 0.030)
    assert firsts(policy) == {A}  # 20 against 30
    loads.begin(A)
    assert firsts(policy) == {B}  # 40 against 30
    loads.begin(B)
    assert firsts(policy) == {A}  # 40 against 60


def test_a_share_counts_with_what_is_in_flight() -> None:
    """Who has a tenth of its weight is worth as much as others while idle, and with one in flight a tenth."""
    loads = Loads(Clock())
    policy = PeakEwma({A: 1, B: 1}, loads, Rng(2)).under({A: Share(0.1)})
    for endpoint in (A, B):
        loads.observe(endpoint, 0.010)
    assert firsts(policy) == {A, B}  # whichever is drawn first
    loads.begin(A)
    loads.begin(B, 9)
    assert firsts(policy) == {B}  # 110 against 100
    loads.begin(B, 2)
    assert firsts(policy) == {A}  # 110 against 120


def test_a_new_endpoint_is_measured_by_one_connection() -> None:
    """An endpoint without a latency is tried first while idle, and left alone until its first answer."""
    loads = Loads(Clock())
    policy = PeakEwma({A: 1, B: 1}, loads, Rng(3))
    loads.observe(A, 0.5)
    assert firsts(policy) == {B}
    loads.begin(B)
    assert firsts(policy) == {A}
    loads.observe(B, 0.010)
    assert firsts(policy) == {B}


def test_without_latencies_it_is_least_request() -> None:
    """Where nobody observes, in-flight counts alone decide, and idle endpoints share out."""
    loads = Loads(Clock())
    policy = PeakEwma({A: 1, B: 1, C: 1}, loads, Rng(4))
    counts = Counter(next(policy.candidates(n)) for n in range(3000))
    assert min(counts[endpoint] for endpoint in (A, B, C)) > 800
    for n in range(300):
        loads.begin(next(policy.candidates(n)))
    assert [loads.inflight(endpoint) for endpoint in (A, B, C)] == [100, 100, 100]


def test_each_endpoint_comes_once() -> None:
    """Whoever goes on asking gets every endpoint; of none, nothing."""
    for endpoints in ([], [A], [A, B], [A, B, C]):
        weights: dict[Endpoint, float] = dict.fromkeys(endpoints, 1)
        assert sorted(PeakEwma(weights, Loads(Clock()), Rng(5)).candidates(0)) == endpoints


def test_explains_itself() -> None:
    """An operator reads what is compared."""
    explained = PeakEwma({A: 1}, Loads(Clock()), Rng(6)).explain(0)
    assert (
        explained
        == "peak_ewma: of two drawn by weight the one with the lower latency * (in flight + 1) / weight"
    )
