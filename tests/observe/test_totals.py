"""Sums of what workers counted."""

from tcpgw.observe.totals import counted, summed


def test_numbers_are_added_at_any_depth() -> None:
    """Whoever lacks a key adds nothing to it."""
    one = {"a": 1, "l": {"x": {"n": 2}}, "version": "v"}
    other = {"a": 2.5, "l": {"x": {"n": 3}, "y": {"n": 4}}}
    assert summed([one, other]) == {"a": 3.5, "l": {"x": {"n": 5}, "y": {"n": 4}}, "version": "v"}
    assert summed([]) == {}
    assert one == {"a": 1, "l": {"x": {"n": 2}}, "version": "v"}


def test_of_who_is_gone_the_counts_stay() -> None:
    """What was so at a moment only is nothing any more."""
    table = {"listeners": {"l": {"active": 3, "accepted": 9, "ended": {"client_fin": 6}}}, "inflight": 2}
    assert counted(table) == {"listeners": {"l": {"accepted": 9, "ended": {"client_fin": 6}}}}
