"""How much more work the gateway may make for instances that are in trouble already.

A retry or a hedge helps one request, and while everything fails each of them is a second load on what cannot
bear the first. So both are allowed as a share of the ordinary requests, whatever the single one would like.
"""


class RetryBudget:
    """How many retries may be in flight at once, as Envoy's `retry_budget`.

    At most `share` (its budget_percent) of the requests in flight are retries, but `least` may always be (its
    min_retry_concurrency): else a service that has one request at a time would have no retry at all. By what
    is in flight and not by rate, as Finagle's, because retries that time out are those that pile up.

    `running` is how many are in flight, `refused` how many were not allowed.
    """

    def __init__(self, share: float, least: int = 3) -> None:
        self.running = 0
        self.refused = 0
        self._share = share
        self._least = least

    def begin(self, active: int) -> bool:
        """Whether a retry may start while `active` requests are in flight, retries included; counts it.

        Each one that may is followed by exactly one `end`.
        """
        if self.running + 1 > max(self._least, self._share * active):
            self.refused += 1
            return False
        self.running += 1
        return True

    def end(self) -> None:
        """A retry is over, however it ended."""
        self.running -= 1


class HedgeBudget:
    """How many requests may be sent twice: at any time at most `share` of all requests so far, and `burst`.

    A balance of tokens like that of Finagle's RetryBudget and gRPC's throttle: each ordinary request deposits
    `share` of one, each hedge spends one. It is capped at `burst`, so that a quiet day saves nothing up for a
    storm. Like gRPC's it begins full: a method that is called seldom has its hedges too. With a share of 0
    there is none ever. `refused` counts what was not allowed.
    """

    def __init__(self, share: float, burst: int = 10) -> None:
        self.refused = 0
        self._share = share
        self._burst = burst
        self._balance = float(burst) if share else 0.0

    def deposit(self, n: int = 1) -> None:
        """Tell of `n` ordinary requests; a hedge is none."""
        self._balance = min(self._burst, self._balance + self._share * n)

    def spend(self) -> bool:
        """Whether a hedge may be sent now; pays for it."""
        if self._balance < 1.0:
            self.refused += 1
            return False
        self._balance -= 1.0
        return True

    def refund(self) -> None:
        """A hedge that was paid for was not sent."""
        self._balance += 1.0
