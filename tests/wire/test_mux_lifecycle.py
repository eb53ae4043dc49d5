"""One request, one end: whatever happens to a connection, in any order, nothing leaks out of the table."""

import msgpack
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from tcpgw.errors import Code
from tcpgw.wire.codec import FIRST_NUMBER, LARGE, LAST_NUMBER, Kind
from tests.support.assembling import chunked
from tests.support.batches import Given, Shared
from tests.support.msgpack_messages import (
    Written,
    answer,
    blob,
    frame,
    notifications,
    number_in,
    requests,
    values,
)
from tests.support.muxing import Room, enter, failed, flushed, mux_of, received, tell

# Of a request: whose it is, what it shares with others, and itself.
Owed = tuple[str, Shared, Written]

# Beyond it are the largest of `values`.
MAX_FRAME = 2 * LARGE
ENOUGH = 4 * LARGE


class Lifecycle(RuleBasedStateMachine):
    """Requests of three clients, from their entering to their end, beside a table of what is still owed."""

    asked = Bundle("asked")

    @initialize(framed=st.booleans(), start=st.sampled_from([FIRST_NUMBER, LAST_NUMBER - (1 << 24)]))
    def connect(self, framed: bool, start: int) -> None:
        self.framed = framed
        self.room = Room()
        self.mux = mux_of(framed=framed, max_frame=MAX_FRAME, room=self.room)
        self.mux.next = start
        self.mux.flush()
        self.clock = 0.0
        self.owed: dict[int, Owed] = {}
        self.unsent: dict[int, Written] = {}
        self.tokens: set[int] = set()  # the numbers under which the instance was asked
        # What was cut off: the number that it answers, the answer, and what is still to come.
        self.coming: tuple[int, Written, bytes] | None = None
        self.dropped = self.refused = self.told = 0

    def _batch(self, name: str) -> Shared:
        self.clock += 1.0
        return Shared(name, self.clock)

    def _message(self, data: Written) -> bytes:
        return data.framed if self.framed else data.bare

    # ---- to the instance ----

    @rule(target=asked, message=requests, name=st.sampled_from("abc"))
    def enter(self, message: Written, name: str) -> int:
        of = self._batch(name)
        number = enter(self.mux, message, f"client {name}", of)
        self._owe(number, f"client {name}", of, message)
        return number

    @rule(messages=st.lists(requests, min_size=1, max_size=4), limit=st.integers(0, 4))
    def pass_run(self, messages: list[Written], limit: int) -> None:
        if not self.framed:
            return
        of = self._batch("a run")
        data = b"".join(message.framed for message in messages)
        first = self.mux.next
        end, count = self.mux.pass_run(data, 0, limit, "runner", of)
        assert count <= limit
        assert end == sum(len(message.framed) for message in messages[:count])
        assert all(message.header == b"\x94" for message in messages[:count])
        for place, message in enumerate(messages[:count]):
            self._owe(first + place, "runner", of, message)

    @rule(
        messages=st.dictionaries(st.sampled_from("defg"), requests | notifications, min_size=1),
        most=st.sampled_from([40, LARGE - 1]),
    )
    def pass_reads(self, messages: dict[str, Written], most: int) -> None:
        if not self.framed:
            return
        of = self._batch("a turn")
        reads = {name: message.framed for name, message in messages.items()}
        first = self.mux.next
        others = self.mux.pass_reads(reads, most, of)
        taken = [name for name in reads if name not in dict(others)]
        assert self.mux.next == first + len(taken)
        for place, name in enumerate(taken):
            self._owe(first + place, name, of, messages[name])
        assert others == [
            (name, message.framed)
            for name, message in messages.items()
            if message.kind != Kind.REQUEST or message.header != b"\x94" or len(message.framed) > most
        ]

    def _owe(self, number: int, owner: str, of: Shared, message: Written) -> None:
        assert number not in self.owed
        self.owed[number] = owner, of, message
        self.unsent[number] = message

    @rule(message=notifications)
    def tell(self, message: Written) -> None:
        tell(self.mux, message)

    @rule()
    def flush(self) -> None:
        sent = flushed(self.mux)
        seen = msgpack.Unpacker(max_buffer_size=0, strict_map_key=False, raw=True)
        while sent:
            size = int.from_bytes(sent[:4]) if self.framed else len(sent) - 4
            seen.feed(sent[4 : 4 + size] if self.framed else sent)
            sent = sent[4 + size :]
        asked = [message[1] for message in seen if message[0] == Kind.REQUEST]
        assert asked == list(self.unsent)
        self.unsent.clear()
        assert FIRST_NUMBER <= self.mux.next < LAST_NUMBER

    # ---- from the instance ----

    @rule(limit=st.sampled_from([0, LARGE, 1 << 30]))
    def make_room(self, limit: int) -> None:
        self.room.limit = limit

    @rule(numbers=st.lists(consumes(asked), max_size=5), data=st.data())
    def answer(self, numbers: list[int], data: st.DataObject) -> None:
        """Answers in any order, some to what has ended otherwise, in any chunks."""
        leads = st.sampled_from([0xCE, 0xCE, 0xCF])
        messages = [answer(number_in(data.draw(leads), number), data.draw(values())) for number in numbers]
        said = self._finish(list(zip(numbers, messages, strict=True)))
        self._hear(said + b"".join(map(self._message, messages)), data)

    @rule(number=asked, size=st.integers(1, 3), missing=st.integers(1, 2 * LARGE), data=st.data())
    def begin_to_answer(self, number: int, size: int, missing: int, data: st.DataObject) -> None:
        """A large answer, or one too large. The rest of it comes when something else has happened."""
        self._hear(self._finish([]), data)
        message = answer(number_in(0xCE, number), blob(size * LARGE))
        whole = self._message(message)
        cut = len(whole) - missing
        self.coming = (number, message, whole[cut:])
        dropped = self.mux.dropped
        for chunk in data.draw(chunked(whole[:cut])):
            assert received(self.mux, chunk) == []
        told = failed(self.mux)
        if told or self.mux.dropped > dropped:
            # It is over already, and the rest is passed over.
            assert cut >= LARGE
            self.coming = (0, message, whole[cut:])
        if told:
            owner, of, asked = self.owed.pop(number)
            assert [one[:3] for one in told] == [(owner, asked.token, of)]
            self._check_failed(message, told[0].code)
        self.dropped += self.mux.dropped > dropped

    @rule(data=st.data(), message=requests | notifications, number=st.integers(0, FIRST_NUMBER - 1))
    def speak_unasked(self, data: st.DataObject, message: Written, number: int) -> None:
        """A request or a notification by the instance, and an answer to a number that never was."""
        said = self._finish([])
        self.refused += message.kind == Kind.REQUEST
        self.told += message.kind == Kind.NOTIFY
        self.dropped += 1
        self._hear(said + self._message(message) + self._message(answer(msgpack.packb(number))), data)

    def _finish(self, answers: list[tuple[int, Written]]) -> bytes:
        """What is left of the answer that was cut off. Its end is expected, and those of `answers`."""
        rest = b""
        if self.coming is not None:
            number, message, rest = self.coming
            answers = [(number, message), *answers] if number else answers
            self.coming = None
        self.expected: list[tuple[str, Shared, Written, Written]] = []
        for number, message in answers:
            if number in self.owed:
                self.expected.append((*self.owed.pop(number), message))
            else:
                self.dropped += 1
        return rest

    def _hear(self, said: bytes, data: st.DataObject) -> None:
        """Each that is expected is given whole, or fails for a reason."""
        got = [piece for chunk in data.draw(chunked(said)) for piece in received(self.mux, chunk)]
        kept: list[Given] = []
        told = failed(self.mux)
        for owner, of, asked, message in self.expected:
            one = (owner, frame(message.as_answer(asked.token)), of)
            if got.count(one) > kept.count(one):
                kept.append(one)
                continue
            [reason, *_] = [each for each in told if each[:3] == (owner, asked.token, of)]
            told.remove(reason)
            self._check_failed(message, reason.code)
        assert sorted(got, key=repr) == sorted(kept, key=repr)
        assert told == []

    def _check_failed(self, message: Written, code: Code) -> None:
        if code == Code.FRAME_TOO_LARGE:
            assert len(message.bare) > MAX_FRAME
        else:
            assert code == Code.UPSTREAM_LOST
            assert len(message.bare) > LARGE - 4
            assert self.room.limit < ENOUGH

    # ---- other ends ----

    @rule(number=asked)
    def withdraw(self, number: int) -> None:
        assert self.mux.withdraw(number) == (number in self.owed)
        self._give_up(number)
        assert not self.mux.withdraw(number)

    @rule(age=st.integers(0, 6), name=st.sampled_from("abc"))
    def expire(self, age: int, name: str) -> None:
        """Deadlines of one client's requests pass, of those that came before some time."""
        before = self.clock - age
        over = [n for n, (_, of, _) in self.owed.items() if of.came <= before and of.name == name]
        expected = [self._entry(self.owed[number]) for number in over]
        assert self.mux.expire(before, lambda of: of.name == name) == expected
        for number in over:
            self._give_up(number)

    def _give_up(self, number: int) -> None:
        """Its answer is dropped at once if it is being collected, else if it comes."""
        if self.owed.pop(number, None) and self.coming and self.coming[0] == number and self._collected():
            self.coming = (0, *self.coming[1:])
            self.dropped += 1

    def _collected(self) -> int:
        """How much is reserved for the answer that was cut off."""
        if self.coming is None or not self.coming[0]:
            return 0
        _, message, rest = self.coming
        size = len(self._message(message))
        return (size if self.framed else MAX_FRAME) if size - len(rest) >= LARGE else 0

    @rule()
    def lose(self) -> None:
        """What was flushed counts as sent; what was not comes back as the frame that it was."""
        sent, unsent = self.mux.lose()
        gone = {number: self.owed[number] for number in self.unsent if number in self.owed}
        assert [(one.owner, one.batch, one.token, one.frame) for one in unsent] == [
            (
                owner,
                of,
                message.token,
                frame(message.as_request(number)) if self.framed else message.as_request(number),
            )
            for number, (owner, of, message) in gone.items()
        ]
        assert sent == [self._entry(owed) for number, owed in self.owed.items() if number not in gone]
        assert self.mux.lose() == ([], [])
        assert self.mux.parts == []
        assert self.room.held == 0
        self.connect(self.framed, FIRST_NUMBER)

    @staticmethod
    def _entry(owed: Owed) -> tuple[str, bytes, Shared]:
        owner, of, message = owed
        return owner, message.token, of

    @invariant()
    def table_is_what_is_owed(self) -> None:
        assert self.mux.pending == {number: self._entry(owed) for number, owed in self.owed.items()}
        assert list(self.mux.pending) == list(self.owed)
        counts = (self.mux.dropped, self.mux.refused, self.mux.told)
        assert counts == (self.dropped, self.refused, self.told)
        assert self.mux.large == []
        assert self.mux.failed == []

    @invariant()
    def the_account_has_what_is_being_collected(self) -> None:
        assert self.room.held == self._collected()


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=40, stateful_step_count=25)
