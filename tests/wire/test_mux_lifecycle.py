"""One request, one end: whatever happens to a connection, in any order, nothing leaks out of the table."""

import msgpack
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from tcpgw.wire.codec import FIRST_NUMBER, LAST_NUMBER, Batch, Kind
from tests.support.assembling import chunked
from tests.support.msgpack_messages import (
    Written,
    answer,
    frame,
    notifications,
    number_in,
    requests,
    values,
)
from tests.support.muxing import batch, enter, flushed, mux_of, received, tell


class Lifecycle(RuleBasedStateMachine):
    """Requests of three clients, from their entering to their end, beside a table of what is still owed."""

    asked = Bundle("asked")

    @initialize(framed=st.booleans(), start=st.sampled_from([FIRST_NUMBER, LAST_NUMBER - (1 << 24)]))
    def connect(self, framed: bool, start: int) -> None:
        self.framed = framed
        self.mux = mux_of(framed=framed)
        self.mux.next = start
        self.mux.flush()
        self.clock = 0.0
        self.owed: dict[int, tuple[Batch, Written]] = {}
        self.unsent: dict[int, Written] = {}
        self.tokens: set[int] = set()  # the numbers under which the instance was asked
        self.from_instance = b""  # what was cut off
        self.dropped = self.refused = self.told = 0

    def _batch(self, name: str) -> Batch:
        self.clock += 1.0
        return batch(name, self.clock)

    def _message(self, data: Written) -> bytes:
        return data.framed if self.framed else data.bare

    # ---- to the instance ----

    @rule(target=asked, message=requests, name=st.sampled_from("abc"))
    def enter(self, message: Written, name: str) -> int:
        of = self._batch(name)
        number = enter(self.mux, message, of)
        self._owe(number, of, message)
        return number

    @rule(messages=st.lists(requests, min_size=1, max_size=4), limit=st.integers(0, 4))
    def pass_run(self, messages: list[Written], limit: int) -> None:
        if not self.framed:
            return
        of = self._batch("runner")
        data = b"".join(message.framed for message in messages)
        first = self.mux.next
        end, count = self.mux.pass_run(data, 0, limit, of)
        assert count <= limit
        assert end == sum(len(message.framed) for message in messages[:count])
        assert all(message.header == b"\x94" for message in messages[:count])
        for place, message in enumerate(messages[:count]):
            self._owe(first + place, of, message)

    def _owe(self, number: int, of: Batch, message: Written) -> None:
        assert number not in self.owed
        self.owed[number] = of, message
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

    @rule(numbers=st.lists(consumes(asked), max_size=5), data=st.data())
    def answer(self, numbers: list[int], data: st.DataObject) -> None:
        """Answers in any order, some to what has ended otherwise, in any chunks."""
        said, expected = b"", []
        for number in numbers:
            message = answer(
                number_in(data.draw(st.sampled_from([0xCE, 0xCE, 0xCF])), number), data.draw(values())
            )
            said += self._message(message)
            of, asked = self.owed.pop(number, (None, None))
            if of is None or asked is None:
                self.dropped += 1
            else:
                expected.append((of, frame(message.as_answer(asked.token))))
        self._hear(said, expected, data)

    @rule(data=st.data(), message=requests | notifications, number=st.integers(0, FIRST_NUMBER - 1))
    def speak_unasked(self, data: st.DataObject, message: Written, number: int) -> None:
        """A request or a notification by the instance, and an answer to a number that never was."""
        self.refused += message.kind == Kind.REQUEST
        self.told += message.kind == Kind.NOTIFY
        self.dropped += 1
        self._hear(self._message(message) + self._message(answer(msgpack.packb(number))), [], data)

    def _hear(self, said: bytes, expected: list[tuple[Batch, bytes]], data: st.DataObject) -> None:
        got = [piece for chunk in data.draw(chunked(said)) for piece in received(self.mux, chunk)]
        assert sorted(got, key=repr) == sorted(expected, key=repr)

    # ---- other ends ----

    @rule(number=asked)
    def withdraw(self, number: int) -> None:
        assert self.mux.withdraw(number) == (number in self.owed)
        self.owed.pop(number, None)
        assert not self.mux.withdraw(number)

    @rule(age=st.integers(0, 6), name=st.sampled_from("abc"))
    def expire(self, age: int, name: str) -> None:
        """Deadlines of one client's requests pass, of those that came before some time."""
        before = self.clock - age
        over = [n for n, (of, _) in self.owed.items() if of[1] <= before and of[0] == name]
        expected = [(self.owed[number][0], self.owed.pop(number)[1].token) for number in over]
        assert self.mux.expire(before, lambda of: of[0] == name) == expected

    @rule()
    def lose(self) -> None:
        """What was flushed counts as sent; what was not comes back as the frame that it was."""
        sent, unsent = self.mux.lose()
        gone = {number: self.owed[number] for number in self.unsent if number in self.owed}
        assert [(one.batch, one.token, one.frame) for one in unsent] == [
            (
                of,
                message.token,
                frame(message.as_request(number)) if self.framed else message.as_request(number),
            )
            for number, (of, message) in gone.items()
        ]
        assert sent == [(of, m.token) for number, (of, m) in self.owed.items() if number not in gone]
        assert self.mux.lose() == ([], [])
        assert self.mux.parts == []
        self.connect(self.framed, FIRST_NUMBER)

    @invariant()
    def table_is_what_is_owed(self) -> None:
        assert self.mux.pending == {number: (of, m.token) for number, (of, m) in self.owed.items()}
        assert list(self.mux.pending) == list(self.owed)
        counts = (self.mux.dropped, self.mux.refused, self.mux.told)
        assert counts == (self.dropped, self.refused, self.told)
        assert self.mux.large == []


TestLifecycle = Lifecycle.TestCase
TestLifecycle.settings = settings(max_examples=40, stateful_step_count=25)
