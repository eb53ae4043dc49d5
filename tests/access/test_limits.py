import tracemalloc
from collections import Counter
from fractions import Fraction
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tcpgw.access.limits import Bucket, Limit, Limiter, Quota, Rate, Usage, source_of

KIB64 = 65536

# Moments and rates are multiples of powers of two, so that floats are exact and the models can be, too.
steps = st.sampled_from([0, 0.25, 0.5, 1, 8])


def bucket(per_second: float, burst: float) -> Bucket:
    rate = Rate()
    rate.become(per_second, burst)
    return Bucket(rate)


def admitted(limiter: Limiter, name: str, now: float = 0.0) -> Usage:
    usage = limiter.admit(name, now)
    assert isinstance(usage, Usage)
    return usage


def said(limiter: Limiter, name: str, now: float = 0.0) -> Limit | None:
    found = limiter.admit(name, now)
    return found if isinstance(found, Limit) else None


class Tokens:
    """A bucket as the textbook has it, in exact numbers."""

    def __init__(self, per_second: float, burst: float) -> None:
        self.per_second, self.burst = Fraction(per_second), Fraction(burst)
        self.tokens = self.burst
        self.at = Fraction(0)

    def fill(self, now: float) -> None:
        passed = max(Fraction(0), Fraction(now) - self.at)
        self.tokens = min(self.burst, self.tokens + passed * self.per_second)
        self.at += passed

    def take(self, n: int, now: float) -> Fraction:
        self.fill(now)
        self.tokens -= n
        return max(Fraction(0), -self.tokens / self.per_second)

    def spend(self, now: float) -> bool:
        self.fill(now)
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@given(
    st.sampled_from([0.5, 1, 4, 64]),
    st.integers(1, 20),
    st.lists(st.tuples(st.sampled_from([-1, 0, 0, 0.25, 1, 8]), st.integers(0, 30) | st.none()), max_size=60),
)
def test_a_bucket_is_the_textbooks(
    per_second: float, burst: int, history: list[tuple[float, int | None]]
) -> None:
    """Whatever is taken when, by a clock that may stand still or be late, the debt is that of the model."""
    real, model = bucket(per_second, burst), Tokens(per_second, burst)
    now = 100.0
    for step, n in history:
        now += step
        if n is None:
            assert real.spend(now) is model.spend(now)
        else:
            assert real.take(n, now) == model.take(n, now)
        assert real.full(now) is (model.tokens == burst)


def test_a_debt_is_paid_when_it_says() -> None:
    """After the seconds that `take` returned nothing is owed, and a moment earlier something is."""
    real = bucket(1000, 500)
    assert real.take(500, 7.0) == 0.0
    assert real.take(250, 7.0) == 0.25
    assert real.take(250, 7.0) == 0.5  # another connection of the same name: it waits for both
    assert real.take(0, 7.25) == 0.25
    assert real.take(0, 7.5) == 0.0
    assert real.take(1, 7.5) == 0.001


@given(st.floats(0.01, 1e5), st.integers(1, 300), st.floats(0, 1e7))
def test_a_burst_is_whole(per_second: float, burst: int, now: float) -> None:
    """However late it is and whatever the rate, exactly `burst` connections come at once."""
    limiter = Limiter(Quota(new_per_second=per_second, burst=burst), most=10)
    refused = [said(limiter, "a", now) for _ in range(burst + 2)]
    assert refused == [None] * burst + [Limit.RATE] * 2


@pytest.mark.parametrize(("per_second", "burst"), [(0.1, 1), (1, 1), (2.5, 3), (50, 50)])
def test_the_burst_is_a_second_of_them_by_default(per_second: float, burst: int) -> None:
    """Without a burst in the quota, a second's connections may come at once, and one in any case."""
    limiter = Limiter(Quota(new_per_second=per_second), most=10)
    assert [said(limiter, "a") for _ in range(burst + 1)] == [None] * burst + [Limit.RATE]
    assert said(limiter, "a", 1 / per_second) is None


def test_connections_are_limited_and_given_back_once() -> None:
    """One that leaves makes room for one, however often it says so."""
    limiter = Limiter(Quota(connections=2), most=10)
    first, _ = admitted(limiter, "a"), admitted(limiter, "a")
    assert limiter.admit("a", 0.0) == "connections"
    first.leave(1.0)
    first.leave(1.0)
    assert [said(limiter, "a", 1.0) for _ in range(2)] == [None, Limit.CONNECTIONS]
    with pytest.raises(KeyError):
        limiter.leave("b", 1.0)


def test_without_a_quota_nothing_is_limited_or_kept() -> None:
    """Where there are no limits there are no buckets, and a name is forgotten with its last connection."""
    limiter = Limiter(Quota(), most=10)
    usages = [admitted(limiter, "a") for _ in range(1000)]
    assert usages[0].bytes_in is usages[0].bytes_out is None
    assert limiter.remembered == 1
    for usage in usages:
        usage.leave(0.0)
    assert limiter.remembered == 0


def test_the_bytes_of_a_name_are_one_account() -> None:
    """All connections of a name share a bucket for each direction, and no other name has part in it."""
    limiter = Limiter(Quota(bytes_in=KIB64, bytes_out=10 * KIB64), most=10)
    one, two, other = (admitted(limiter, name) for name in ("a", "a", "b"))
    assert one.bytes_in
    assert one.bytes_out
    assert one.bytes_in is two.bytes_in
    assert one.bytes_out is two.bytes_out
    assert one.bytes_in.take(2 * KIB64, 0.0) == 1.0
    assert one.bytes_out.take(11 * KIB64, 0.0) == 0.1
    assert other.bytes_in
    assert other.bytes_in.take(KIB64, 0.0) == 0.0
    one.leave(0.0)
    assert one.bytes_in is one.bytes_out is None
    assert two.bytes_in


def test_at_least_64_kib_may_come_at_once() -> None:
    """A read of ordinary size makes no debt, however low the rate."""
    usage = admitted(Limiter(Quota(bytes_in=1024), most=10), "a")
    assert usage.bytes_in
    assert usage.bytes_in.take(KIB64, 0.0) == 0.0
    assert usage.bytes_in.take(1024, 0.0) == 1.0


def test_who_comes_back_finds_its_debts() -> None:
    """A name without connections is remembered until its buckets are full, and not longer."""
    limiter = Limiter(Quota(new_per_second=1, bytes_in=KIB64), most=10)
    usage = admitted(limiter, "a")
    assert usage.bytes_in
    usage.bytes_in.take(3 * KIB64, 0.0)
    usage.leave(0.0)
    assert said(limiter, "a", 0.5) is Limit.RATE
    usage = admitted(limiter, "a", 1.0)
    assert usage.bytes_in
    assert usage.bytes_in.take(0, 1.0) == 1.0
    usage.leave(1.0)
    admitted(limiter, "b", 2.5)
    assert limiter.remembered == 2
    admitted(limiter, "b", 3.5)
    assert limiter.remembered == 1


def test_the_longest_idle_is_forgotten_for_another() -> None:
    """At the bound a new name takes the place of the one without connections that was silent longest."""
    limiter = Limiter(Quota(new_per_second=0.5), most=4)
    connected = admitted(limiter, "connected")
    for name in ("a", "b", "c"):
        admitted(limiter, name).leave(0.0)
    assert said(limiter, "a") is Limit.RATE  # so it is not the one that was silent longest
    admitted(limiter, "d").leave(0.0)
    assert limiter.remembered == 4
    assert [said(limiter, name) for name in "acd"] == [Limit.RATE] * 3
    assert said(limiter, "connected") is Limit.RATE
    assert said(limiter, "b") is None
    connected.leave(0.0)
    assert limiter.remembered == 4


def test_a_refused_name_takes_no_place() -> None:
    """What is refused at the bound makes nobody forgotten, and is not remembered itself."""
    limiter = Limiter(Quota(connections=1, new_per_second=0.5), most=3)
    for name in ("a", "b", "c"):
        admitted(limiter, name).leave(0.0)
    limiter.hear(dict.fromkeys((str(n) for n in range(1000)), 1))
    assert {said(limiter, str(n)) for n in range(1000)} == {Limit.CONNECTIONS}
    assert [said(limiter, name) for name in "abc"] == [Limit.RATE] * 3
    assert limiter.remembered == 3


def test_twenty_thousand_sources_are_bounded() -> None:
    """A flood of sources that come once costs the memory of `most`, and with its connections it ends."""
    limiter = Limiter(Quota(100, 0.001, 1, KIB64, KIB64), most=1000)
    names = [source_of(f"10.0.{n >> 8}.{n & 255}") for n in range(20_000)]
    tracemalloc.start()
    try:
        for name in names:
            admitted(limiter, name).leave(0.0)
        assert limiter.remembered == 1000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    usages = [admitted(limiter, name + "b") for name in names]
    assert limiter.remembered == 20_000  # each of them has a connection
    for usage in usages:
        usage.leave(0.0)
    assert limiter.remembered == 1000
    for n in range(1, 500):  # two are forgotten when one comes, and two when it leaves
        admitted(limiter, "last", n * 1e4).leave(n * 1e4)
    assert limiter.remembered == 1


def test_a_change_keeps_who_is_connected() -> None:
    """Under a lower quota all stay, and count; a bucket that somebody holds goes by the new terms."""
    limiter = Limiter(Quota(connections=3, bytes_in=KIB64), most=10)
    usages = [admitted(limiter, "a") for _ in range(3)]
    held = usages[0].bytes_in
    assert held
    assert held.take(2 * KIB64, 0.0) == 1.0
    limiter.change(Quota(connections=2, bytes_in=2 * KIB64, bytes_out=KIB64, new_per_second=1))
    assert usages[0].bytes_in is held
    assert held.take(0, 0.0) == 0.5
    assert usages[0].bytes_out
    usages[0].leave(0.0)
    assert said(limiter, "a") is Limit.CONNECTIONS
    usages[1].leave(0.0)
    assert [said(limiter, "a") for _ in range(2)] == [None, Limit.CONNECTIONS]
    usages[2].leave(0.0)
    assert said(limiter, "a") is Limit.RATE


def test_a_limit_that_is_lifted_holds_nobody() -> None:
    """Who still has the bucket of a limit that is gone owes nothing, at once and later."""
    limiter = Limiter(Quota(connections=1, new_per_second=1, bytes_in=KIB64), most=10)
    usage = admitted(limiter, "a")
    held = usage.bytes_in
    assert held
    held.take(9 * KIB64, 5.0)
    limiter.change(Quota())
    assert usage.bytes_in is None
    assert held.take(9 * KIB64, 5.0) == held.take(9 * KIB64, 6.0) == 0.0
    assert {said(limiter, "a", 6.0) for _ in range(100)} == {None}


def test_connections_elsewhere_count() -> None:
    """What other processes have counts against a name's connections, as last heard, and nobody else's."""
    limiter = Limiter(Quota(connections=3), most=10)
    limiter.hear({"a": 2})
    assert [said(limiter, "a") for _ in range(2)] == [None, Limit.CONNECTIONS]
    assert [said(limiter, "b") for _ in range(4)] == [None, None, None, Limit.CONNECTIONS]
    limiter.hear({"b": 100})
    assert said(limiter, "a") is Limit.CONNECTIONS
    limiter.hear({"a": 1, "c": 0})
    assert [said(limiter, "a") for _ in range(2)] == [None, Limit.CONNECTIONS]
    limiter.hear({"a": 0})
    assert said(limiter, "a") is None
    assert limiter.remembered == 2


def test_others_are_told_of_who_has_a_share() -> None:
    """From a share of the limit on, with what changed since the last time, and once for all of it."""
    limiter = Limiter(Quota(), most=10)
    heard: list[None] = []
    limiter.heard = lambda: heard.append(None)
    usages = [admitted(limiter, name) for name in ("a", "a", "b")]
    assert (limiter.news(), heard) == ({}, [])  # without a share nobody is told of
    limiter.divide(2)
    assert (limiter.news(), len(heard)) == ({"a": 2}, 1)
    admitted(limiter, "c")
    usages[2].leave(0.0)
    assert (limiter.news(), len(heard)) == ({}, 1)
    admitted(limiter, "a")
    admitted(limiter, "c")
    assert len(heard) == 2
    assert limiter.news() == {"a": 3, "c": 2}
    usages[0].leave(0.0)
    usages[1].leave(0.0)
    assert (limiter.news(), limiter.all_told(), len(heard)) == ({"a": 1}, {"a": 1, "c": 2}, 3)
    limiter.divide(2)
    assert limiter.news() == {"a": 0}
    limiter.divide(1)
    assert limiter.news() == {"a": 1}
    limiter.divide(inf)
    assert limiter.news() == {"a": 0, "c": 0}


def test_others_are_told_of_whom_they_told_of() -> None:
    """However few there are here: for as long as there are some."""
    limiter = Limiter(Quota(connections=10), most=10)
    limiter.divide(5)
    usage = admitted(limiter, "a")
    assert limiter.news() == {}
    limiter.hear({"a": 5, "b": 5})
    assert limiter.news() == {"a": 1}
    other = admitted(limiter, "b")
    assert limiter.news() == {"b": 1}
    usage.leave(0.0)
    limiter.hear({"b": 0})
    assert limiter.news() == {"a": 0}
    other.leave(0.0)
    assert limiter.news() == {"b": 0}


@pytest.mark.parametrize(
    ("host", "prefix", "name"),
    [
        ("10.1.2.3", 64, "10.1.2.3"),
        ("::ffff:10.1.2.3", 64, "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", 64, "2001:db8:1:2::/64"),
        ("2001:db8:1:2ff::1", 57, "2001:db8:1:280::/57"),
        ("2001:db8::1", 128, "2001:db8::1/128"),
        ("2001:db8::1", 0, "::/0"),
        ("::1", 64, "::/64"),
    ],
)
def test_a_source_is_an_address_or_a_network(host: str, prefix: int, name: str) -> None:
    """An IPv4 source is named by its address, however written; an IPv6 one by its network."""
    assert source_of(host, prefix) == name


def test_a_source_has_64_bits_by_default() -> None:
    """Two addresses of one /64 are one source, and what is no address is none."""
    assert source_of("2001:db8::1") == source_of("2001:db8::ffff:0:0:1") != source_of("2001:db8:0:1::1")
    with pytest.raises(ValueError, match="is not an IP address"):
        source_of("::1%lo")


names = st.sampled_from("abc")
moves = st.lists(
    st.tuples(st.sampled_from(["flood"] * 5 + ["a", "b", "c"]), st.sampled_from("++-t"), steps), max_size=120
)


def answers(history: list[tuple[str, str, float]], without: str) -> list[object]:
    """What all but one name are told, as if that one were not there."""
    limiter = Limiter(Quota(3, 1, 2, KIB64, KIB64), most=4)
    usages: dict[str, list[Usage]] = {name: [] for name in ("flood", "a", "b", "c")}
    told: list[object] = []
    now = 0.0
    for name, move, step in history:
        now += step
        if name == without:
            continue
        answer: object = None
        if move == "+":
            found = limiter.admit(name, now)
            if isinstance(found, Usage):
                usages[name].append(found)
            else:
                answer = found
        elif usages[name] and move == "-":
            usages[name].pop().leave(now)
        elif usages[name]:
            shared = usages[name][0].bytes_in
            answer = shared and shared.take(KIB64, now)
        if name != "flood":
            told.append((name, move, answer))
    return told


@settings(max_examples=300)
@given(moves)
def test_a_source_over_its_limit_hurts_no_other(history: list[tuple[str, str, float]]) -> None:
    """Whatever one name tries, all others are told and owe what they would without it."""
    assert answers(history, without="flood") == answers(history, without="")


class LimiterMachine(RuleBasedStateMachine):
    """Any history against accounts that are never forgotten, or, at a bound, only by its promises."""

    most = 100

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.quota = Quota(3, 0.5, 2, KIB64, 2 * KIB64)
        self.limiter = Limiter(self.quota, self.most)
        self.usages: list[tuple[str, Usage]] = []
        self.new = {name: Tokens(0.5, 2) for name in "abcdef"}
        self.bytes_in = {name: Tokens(KIB64, KIB64) for name in "abcdef"}
        self.elsewhere: dict[str, int] = {}
        self.known: dict[str, int] = {}  # by others, of this one
        self.heard = False
        self.limiter.heard = self.note
        self.limiter.divide(2)

    def note(self) -> None:
        self.heard = True

    def connections(self) -> Counter[str]:
        return Counter(name for name, _ in self.usages)

    @rule(step=steps)
    def wait(self, step: float) -> None:
        self.now += step

    @rule(name=st.sampled_from("abcdef"))
    def admit(self, name: str) -> None:
        own, elsewhere = self.connections()[name], self.elsewhere.get(name, 0)
        found = self.limiter.admit(name, self.now)
        if own + elsewhere >= 3:
            assert found is Limit.CONNECTIONS
            return
        spent = self.new[name].spend(self.now)
        if isinstance(found, Usage):
            self.usages.append((name, found))
        if self.most > len(self.new):
            assert isinstance(found, Usage) is spent
        else:
            assert found is not Limit.CONNECTIONS

    @rule(place=st.integers(0, 20))
    def leave(self, place: int) -> None:
        if self.usages:
            _, usage = self.usages.pop(place % len(self.usages))
            usage.leave(self.now)
            usage.leave(self.now)

    @rule(place=st.integers(0, 20), n=st.sampled_from([0, 4096, KIB64, 3 * KIB64]))
    def take(self, place: int, n: int) -> None:
        if self.usages:
            name, usage = self.usages[place % len(self.usages)]
            assert usage.bytes_in
            debt = self.bytes_in[name].take(n, self.now)
            found = usage.bytes_in.take(n, self.now)
            assert found == debt if self.most > len(self.new) else found <= debt

    @rule(elsewhere=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 4), max_size=2))
    def hear(self, elsewhere: dict[str, int]) -> None:
        self.limiter.hear(elsewhere)
        self.elsewhere |= elsewhere

    @rule()
    def change_nothing(self) -> None:
        self.limiter.change(self.quota)

    @invariant()
    def memory_is_bounded(self) -> None:
        connected = len(self.connections())
        assert connected <= self.limiter.remembered <= max(self.most, connected)

    @invariant()
    def others_know_who_has_a_share(self) -> None:
        news = self.limiter.news()
        assert self.heard is bool(news)
        self.heard = False
        before = {name for name, count in self.known.items() if count}
        self.known |= news
        known = {name: count for name, count in self.known.items() if count}
        assert known == {
            name: count
            for name, count in self.connections().items()
            if count >= 2 or self.elsewhere.get(name) or name in before
        }


class BoundedLimiterMachine(LimiterMachine):
    """As LimiterMachine, with more names than are remembered."""

    most = 2


TestLimiter = LimiterMachine.TestCase
TestLimiter.settings = settings(max_examples=100, stateful_step_count=40)
TestBoundedLimiter = BoundedLimiterMachine.TestCase
TestBoundedLimiter.settings = settings(max_examples=100, stateful_step_count=40)
