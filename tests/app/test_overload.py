"""When a process has more to do than it can."""

import pytest

from tcpgw.app.overload import Strain

LAG = 0.5
MEMORY = 100 << 20


@pytest.fixture
def strain() -> Strain:
    return Strain(LAG, MEMORY)


def test_one_late_look_is_no_overload(strain: Strain) -> None:
    """A table that is built, or a page that is read, delays one turn; load delays them all."""
    for now in range(0, 100, 3):
        assert not strain.look(2.0, 0, now)
        assert not strain.look(2.0, 0, now + 1)
        assert not strain.look(0.0, 0, now + 2)
    assert not strain.overloaded


def test_lateness_that_stays(strain: Strain) -> None:
    """The third late look in a row begins it, and it says why."""
    assert [strain.look(0.6, 0, now) for now in range(4)] == [False, False, True, False]
    assert strain.overloaded
    assert strain.why == "the event loop is 0.6 s late"


def test_it_is_over_after_a_while(strain: Strain) -> None:
    """Half the mark for a second ends it; between half and whole nothing changes, however long."""
    for now in range(3):
        strain.look(0.6, 0, now)
    for now in range(3, 20):
        assert not strain.look(0.3, 0, now)
    assert strain.overloaded
    assert not strain.look(0.2, 0, 20.0)
    assert not strain.look(0.3, 0, 20.5)
    assert not strain.look(0.2, 0, 21.0)
    assert not strain.look(0.2, 0, 21.9)
    assert strain.look(0.2, 0, 22.0)
    assert not strain.overloaded


def test_memory(strain: Strain) -> None:
    """At its mark at once, and over a little below it."""
    assert strain.look(0.0, MEMORY, 0.0)
    assert strain.why == "100 MiB of memory are in use"
    assert not strain.look(0.0, MEMORY - 1, 5.0)
    assert strain.overloaded
    assert not strain.look(0.0, MEMORY // 2, 6.0)
    assert strain.look(0.0, MEMORY // 2, 7.0)


def test_without_marks_it_never_is() -> None:
    """What is not configured is not looked at."""
    strain = Strain()
    assert not any(strain.look(100.0, 1 << 50, now) for now in range(10))


def test_other_marks(strain: Strain) -> None:
    """They hold from the next look on."""
    strain.change(10.0, MEMORY)
    assert not any(strain.look(0.6, 0, now) for now in range(9))
