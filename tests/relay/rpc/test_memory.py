"""One account of bytes for all: never overdrawn by requests, granted in order, and nobody slow keeps it."""

from time import monotonic

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tcpgw.relay.rpc.memory import Memory

# A quarter is kept for answers, so requests have 750.
LIMIT, FOR_REQUESTS = 1000, 750
LATER = 60.0


class Client:
    """What a session is to the account."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.grants = 0
        self.sent = 0  # bytes of its request
        self.prompt = False
        self.ends: list[str] = []

    def sends(self, seconds: float, rate: int) -> bool:
        return self.sent >= seconds * rate

    def reads(self, now: float, rate: int) -> bool:  # noqa: ARG002
        return self.prompt

    def granted(self) -> None:
        self.grants += 1

    def cut(self, why: str) -> None:
        self.ends.append(why)
        self.memory.leave(self)


def some(memory: Memory, count: int) -> list[Client]:
    return [Client(memory) for _ in range(count)]


def test_takes_what_fits_and_counts_what_does_not() -> None:
    """All of the limit may be held, and no byte more."""
    memory = Memory(100)
    assert memory.take(60)
    assert not memory.take(41)
    assert memory.take(40)
    assert not memory.take(1)
    assert memory.take(0)
    assert (memory.held, memory.refused) == (100, 2)


# ---- large requests ----


def test_requests_leave_room_for_answers() -> None:
    """Where announced requests take all that they may, a quarter is still there."""
    memory = Memory(LIMIT)
    one, other = some(memory, 2)
    assert memory.begin(one, FOR_REQUESTS)
    assert not memory.begin(other, 1)
    assert memory.take(LIMIT - FOR_REQUESTS)
    memory.give(LIMIT - FOR_REQUESTS)
    assert other.grants == 0
    memory.give(memory.whole(one))
    assert (other.grants, memory.held) == (1, 1)


def test_first_come_first_served_whatever_the_size() -> None:
    """A large one in front is not overtaken by those that would fit, also not by new ones."""
    memory = Memory(LIMIT)
    first, large, small, new = some(memory, 4)
    assert memory.begin(first, 500)
    assert not memory.begin(large, 600)
    assert not memory.begin(small, 100)
    assert not memory.begin(new, 50)
    assert memory.held == 500
    memory.give(memory.whole(first))
    assert [client.grants for client in (large, small, new)] == [1, 1, 1]
    assert memory.held == 750


def test_who_asks_again_keeps_its_place_and_its_time() -> None:
    """Waiting is asked for once, however often it is said."""
    memory = Memory(LIMIT)
    first, one, other = some(memory, 3)
    memory.begin(first, FOR_REQUESTS)
    for client in (one, other, one):
        assert not memory.begin(client, 700)
    memory.give(memory.whole(first))
    assert (one.grants, other.grants) == (1, 0)


def test_who_leaves_is_not_granted_and_holds_nothing() -> None:
    """Also not where it leaves while others are granted. Leaving twice is no error."""
    memory = Memory(LIMIT)
    first, gone, last = some(memory, 3)
    memory.begin(first, FOR_REQUESTS)
    memory.begin(gone, 300)
    memory.begin(last, 300)
    memory.leave(gone)
    memory.leave(gone)
    memory.leave(first)
    assert (gone.grants, last.grants, memory.held) == (0, 1, 300)
    memory.leave(last)
    assert memory.held == 0


def test_more_room_is_granted_at_once() -> None:
    """With a higher limit those who wait begin, in order."""
    memory = Memory(LIMIT)
    one, other, last = some(memory, 3)
    assert memory.begin(one, FOR_REQUESTS)
    assert not memory.begin(other, FOR_REQUESTS)
    assert not memory.begin(last, FOR_REQUESTS)
    memory.resize(2 * LIMIT)
    assert (other.grants, last.grants) == (1, 0)
    for client in (one, other, last):
        memory.leave(client)
    assert memory.held == 0


def test_with_less_room_what_is_held_stays() -> None:
    """Nothing is added before enough was given back; who can never fit is cut off, and the next one goes."""
    memory = Memory(LIMIT)
    one, great, small = some(memory, 3)
    assert memory.begin(one, FOR_REQUESTS)
    assert not memory.begin(great, FOR_REQUESTS)
    assert not memory.begin(small, 10)
    memory.resize(LIMIT // 2)
    assert (len(great.ends), small.ends, one.ends) == (1, [], [])
    assert not memory.keep(1)
    memory.give(memory.whole(one))
    assert (great.grants, small.grants, memory.held) == (0, 1, 10)


# ---- slow readers ----


def test_beyond_the_limit_the_greatest_is_cut() -> None:
    """Not whoever comes next: it is the one that has most unread, and it is told how much."""
    memory = Memory(LIMIT)
    small, great, next_ = some(memory, 3)
    memory.owe(small, 100)
    memory.owe(great, 800)
    memory.owe(next_, 100)
    assert not great.ends
    memory.owe(next_, 101)
    assert [bool(client.ends) for client in (small, great, next_)] == [False, True, False]
    assert "800 bytes" in great.ends[0]
    assert memory.held == memory.unread == 201


def test_slow_readers_make_room_for_what_must_be_kept() -> None:
    """The greatest are cut, no more of them than it takes, and nobody where it would not help."""
    memory = Memory(LIMIT)
    clients = some(memory, 4)
    for client, size in zip(clients, (100, 300, 200, 100), strict=True):
        memory.owe(client, size)
    memory.take(300)
    assert not memory.take(701)
    assert not any(client.ends for client in clients)
    assert memory.take(450)
    assert [len(client.ends) for client in clients] == [0, 1, 1, 0]
    assert (memory.held, memory.refused) == (950, 1)


def test_prompt_readers_are_spared() -> None:
    """They are cut neither for an answer nor for a request; above the limit where nobody else is left."""
    memory = Memory(LIMIT)
    prompt, slow, waiting = some(memory, 3)
    prompt.prompt = True
    memory.owe(prompt, 600)
    memory.owe(slow, 300)
    assert not memory.begin(waiting, 400)
    memory.relieve(monotonic() + LATER)
    assert not memory.take(500)
    assert not memory.keep(1)
    assert not prompt.ends
    assert not slow.ends
    memory.owe(prompt, 750)
    assert (len(prompt.ends), len(slow.ends)) == (0, 1)
    memory.owe(prompt, 1100)
    assert len(prompt.ends) == 1


def test_what_is_read_is_free() -> None:
    """Unread bytes count as what they are now, and are granted to requests when they are read."""
    memory = Memory(LIMIT)
    reader, other = some(memory, 2)
    memory.owe(reader, 600)
    memory.owe(reader, 300)
    assert memory.unread == memory.held == 300
    assert not memory.begin(other, 500)
    memory.owe(reader, 0)
    assert (other.grants, memory.held) == (1, 500)


def test_what_an_answer_held_is_its_client_s_first() -> None:
    """An answer that is passed on is counted as unread before those who wait get what is left."""
    memory = Memory(LIMIT)
    reader, waiting = some(memory, 2)
    memory.take(900)
    assert not memory.begin(waiting, 600)
    memory.pass_on(900)
    memory.owe(reader, 700)
    memory.grant()
    assert (reader.ends, waiting.grants) == ([], 0)
    memory.owe(reader, 0)
    assert waiting.grants == 1


# ---- time ----


def test_nobody_is_cut_while_nobody_waits() -> None:
    """Slowness alone is the sessions' business."""
    memory = Memory(LIMIT)
    reader, sender = some(memory, 2)
    memory.owe(reader, 400)
    memory.begin(sender, 300)
    memory.relieve(monotonic() + LATER)
    assert not reader.ends
    assert not sender.ends


def test_slow_readers_go_before_slow_senders() -> None:
    """After a second of waiting the greatest reader ends, and the next one, while that helps."""
    memory = Memory(LIMIT)
    little, much, sender, waiting = some(memory, 4)
    memory.owe(little, 100)
    memory.owe(much, 200)
    memory.begin(sender, 400)
    assert not memory.begin(waiting, 300)
    now = monotonic()
    memory.relieve(now + 0.5)
    assert not much.ends
    ended = []
    for _ in range(3):
        memory.relieve(now + LATER)
        ended.append([len(client.ends) for client in (much, little, sender)])
    assert ended == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    assert (waiting.grants, memory.held) == (1, 700)


def test_nobody_is_cut_in_vain() -> None:
    """Where all that is unread would not make room, readers stay, and who does not send ends."""
    memory = Memory(LIMIT)
    reader, sender, waiting = some(memory, 3)
    memory.owe(reader, 100)
    memory.begin(sender, 600)
    assert not memory.begin(waiting, 700)
    memory.relieve(monotonic() + LATER)
    assert (len(reader.ends), len(sender.ends), waiting.grants) == (0, 1, 0)
    memory.relieve(monotonic() + LATER)
    assert (len(reader.ends), waiting.grants) == (1, 1)


def test_a_request_that_comes_fast_enough_is_left_alone() -> None:
    """1 MiB/s is, however large it is, and there is a second to begin with."""
    mib = 1 << 20
    memory = Memory(64 * mib)
    sender, waiting = some(memory, 2)
    memory.begin(sender, 32 * mib)
    memory.begin(waiting, 32 * mib)
    memory.relieve(monotonic() + 0.9)
    sender.sent = 10 * mib
    memory.relieve(monotonic() + 9.9)
    assert not sender.ends
    memory.relieve(monotonic() + 10.1)
    assert sender.ends
    assert waiting.grants == 1


# ---- any order of events ----


class Account(RuleBasedStateMachine):
    """Clients that send, wait, owe and leave, others that take and give, beside a sum of what they have."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory(LIMIT)
        self.clients = some(self.memory, 4)
        self.taken: list[int] = []
        self.asked: dict[int, int] = {}  # the request that each client sends or waits for
        self.owed: dict[int, int] = {}

    def settle(self) -> None:
        """Take note of who was cut."""
        for place, client in enumerate(self.clients):
            if client.ends:
                client.ends.clear()
                client.grants = 0
                self.asked.pop(place, None)
                self.owed.pop(place, None)

    @rule(size=st.integers(0, 1200))
    def take(self, size: int) -> None:
        fits = self.memory.held - self.memory.unread + size <= LIMIT
        assert self.memory.take(size) == fits
        self.settle()
        if fits:
            self.taken.append(size)

    @rule(size=st.integers(0, 1200))
    def keep(self, size: int) -> None:
        fits = self.memory.held + size <= FOR_REQUESTS
        assert self.memory.keep(size) == fits
        if fits:
            self.taken.append(size)

    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        if self.taken:
            self.memory.give(self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1))))

    @rule(place=st.integers(0, 3), size=st.integers(1, FOR_REQUESTS))
    def begin(self, place: int, size: int) -> None:
        if place not in self.asked:
            self.asked[place] = size
            if self.memory.begin(self.clients[place], size):
                self.clients[place].grants = 1

    @rule(place=st.integers(0, 3))
    def whole(self, place: int) -> None:
        if self.clients[place].grants:
            self.clients[place].grants = 0
            assert self.memory.whole(self.clients[place]) == self.asked[place]
            self.taken.append(self.asked.pop(place))

    @rule(place=st.integers(0, 3), size=st.integers(0, 500))
    def owe(self, place: int, size: int) -> None:
        self.owed[place] = size
        self.memory.owe(self.clients[place], size)
        self.settle()

    @rule(place=st.integers(0, 3))
    def leave(self, place: int) -> None:
        self.memory.leave(self.clients[place])
        self.clients[place].ends.append("left")
        self.settle()

    @rule(seconds=st.sampled_from([0.0, LATER]))
    def relieve(self, seconds: float) -> None:
        self.memory.relieve(monotonic() + seconds)
        self.settle()

    @invariant()
    def holds_what_is_held(self) -> None:
        sending = sum(self.asked[place] for place in self.asked if self.clients[place].grants)
        assert self.memory.unread == sum(self.owed.values())
        assert self.memory.held == sum(self.taken) + sending + sum(self.owed.values())
        assert self.memory.held <= LIMIT or not self.memory.unread

    @invariant()
    def who_waits_has_a_reason(self) -> None:
        waiting = [size for place, size in self.asked.items() if not self.clients[place].grants]
        if waiting:
            assert self.memory.held + max(waiting) > FOR_REQUESTS


TestAccount = Account.TestCase
TestAccount.settings = settings(max_examples=60, stateful_step_count=40)
