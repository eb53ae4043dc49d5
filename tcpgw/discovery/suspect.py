"""Whether an answer may replace what is in force, or is too bad to be believed at once.

Every peer breaks in the same way: its registry answers with nothing, or with less than half, because the
registry is ill, and the proxy drops instances that serve well. So such a loss has to be said three times.

States of a service:

- *clear*: nothing is held back (`None`).
- *suspect*: a `Suspicion` is held. The last good snapshot stays in force.

Transitions, by the next answer:

- An answer is *doubtful* when it names fewer than half as many endpoints as are in force. An empty answer is
  the extreme of that. Where nothing is in force nothing can be lost, and every answer is accepted.
- not doubtful: accepted, whatever was held before → clear.
- doubtful, and nothing or a different set of endpoints is held: held → suspect, confirmed 0 times.
- doubtful, and the same set is held: confirmed once more; accepted at `CONFIRMATIONS` → clear.
- no answer (a failed fetch): no transition, `judge` is not called. A failure names no endpoints, so it cannot
  confirm a set; and it says nothing against one, so a real change is not put off for as long as the source
  now and then fails.

Only the number counts, not which endpoints: a rolling redeployment replaces every address and is no loss. A
weight of 0 is not a loss either: the source names that endpoint, so it has not lost sight of it.
"""

from collections.abc import Collection
from dataclasses import dataclass

from tcpgw.endpoints import Endpoint, Member

# At the default refresh a real scale-down waits 20 s. That costs little: the instances that went refuse the
# connection, and the next candidate is taken.
CONFIRMATIONS = 2


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A doubtful set of endpoints, how many in force it would replace, and how often it was confirmed."""

    endpoints: frozenset[Endpoint]
    in_force: int
    confirmed: int = 0

    def __str__(self) -> str:
        left = CONFIRMATIONS - self.confirmed
        answers = "1 further answer" if left == 1 else f"{left} further answers"
        return (
            f"the source names {len(self.endpoints)} endpoints where {self.in_force} are in force; "
            f"{answers} naming the same ones would confirm it"
        )


def judge(
    in_force: Collection[Member], answer: Collection[Member], held: Suspicion | None
) -> Suspicion | None:
    """Accept the answer (None) or say what is now held against it. `in_force` is empty where nothing is."""
    endpoints = frozenset(member.endpoint for member in answer)
    if 2 * len(endpoints) >= len(in_force):
        return None
    if held is None or held.endpoints != endpoints:
        return Suspicion(endpoints, len(in_force))
    confirmed = held.confirmed + 1
    return None if confirmed >= CONFIRMATIONS else Suspicion(endpoints, len(in_force), confirmed)
