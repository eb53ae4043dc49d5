import pytest

from tcpgw.discovery.suspect import Suspicion, judge
from tcpgw.endpoints import Endpoint, Member


def members(*last_octets: int, weight: int = 1) -> list[Member]:
    return [Member(Endpoint(f"10.0.0.{octet}", 80), weight) for octet in last_octets]


FOUR = members(1, 2, 3, 4)


@pytest.mark.parametrize("answer", [[], members(1), members(1, 2)])
def test_nothing_in_force_has_nothing_to_lose(answer: list[Member]) -> None:
    """Where no endpoint is in force every answer is accepted, an empty one as well."""
    assert judge((), answer, None) is None


@pytest.mark.parametrize(
    ("in_force", "size", "accepted"),
    [(1, 0, False), (1, 1, True), (2, 1, True), (3, 1, False), (3, 2, True), (4, 1, False), (4, 2, True)],
)
def test_less_than_half_is_suspect(in_force: int, size: int, accepted: bool) -> None:
    """An answer of half the size in force is accepted, a smaller one is held."""
    assert (judge(members(*range(in_force)), members(*range(size)), None) is None) is accepted


def test_replacement_of_every_address_is_no_loss() -> None:
    """A redeployment that moves all instances is accepted at once."""
    assert judge(FOUR, members(5, 6, 7, 8), None) is None


def test_weights_are_no_loss() -> None:
    """Endpoints that the source names with weight 0 count as named."""
    assert judge(FOUR, members(1, 2, 3, 4, weight=0), None) is None


@pytest.mark.parametrize("answer", [[], members(1)])
def test_two_further_answers_confirm(answer: list[Member]) -> None:
    """A loss is accepted at the third answer that names the same endpoints, whatever their weights."""
    first = judge(FOUR, answer, None)
    second = judge(FOUR, [member._replace(weight=9) for member in answer], first)
    assert (first and first.confirmed, second and second.confirmed) == (0, 1)
    assert judge(FOUR, answer, second) is None


def test_another_set_restarts_the_count() -> None:
    """A suspect answer with other endpoints than the one held starts from nothing."""
    held = judge(FOUR, members(1), judge(FOUR, members(1), None))
    assert judge(FOUR, members(2), held) == Suspicion(frozenset([Endpoint("10.0.0.2", 80)]), in_force=4)


def test_good_answer_clears() -> None:
    """A good answer between two suspect ones makes the second one a first one again."""
    held = judge(FOUR, members(1), None)
    held = judge(FOUR, FOUR, held)
    assert held is None
    assert judge(FOUR, members(1), held) == Suspicion(frozenset([Endpoint("10.0.0.1", 80)]), in_force=4)


@pytest.mark.parametrize(("confirmed", "left"), [(0, "2 further answers"), (1, "1 further answer ")])
def test_says_how_much_is_lost_and_what_confirms_it(confirmed: int, left: str) -> None:
    """An operator reads how many endpoints of how many are left, and how many answers it still takes."""
    text = str(Suspicion(frozenset(), in_force=4, confirmed=confirmed))
    assert "0 endpoints where 4 are in force" in text
    assert left in text
