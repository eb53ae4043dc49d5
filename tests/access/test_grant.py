"""What a grant allows, and that narrowing never widens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.access.grant import (
    MAX_SUBJECT,
    Grant,
    Names,
    Permissions,
    Subjects,
    allowed,
    is_subject,
    narrowed,
)

# Few letters, so that patterns meet; the star is one of them, because it is a letter too but at the end.
words = st.text("ab*", max_size=4)
patterns = st.sets(words, max_size=4).map(Names.of)


def plainly(pattern: str, name: str) -> bool:
    return name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1]))


@pytest.mark.parametrize(
    ("listed", "name", "expected"),
    [
        (["resnet"], "resnet", True),
        (["resnet"], "resnet-a", False),
        (["resnet*"], "resnet", True),
        (["resnet*"], b"resnet-a", True),
        (["resnet*"], "resne", False),
        (["rank.*", "predict"], b"predict", True),
        (["a*b"], "axb", False),
        (["a*b"], "a*b", True),
        (["*"], "", True),
        ([], "", False),
        (["é*"], "été".encode(), True),
        (["a"], "\ud800", False),
    ],
)
def test_match(listed: list[str], name: str | bytes, expected: bool) -> None:
    """A name matches what is equal to it, and a prefix that ends in a star; text and bytes alike."""
    assert Names.of(listed).match(name) is expected


@given(st.sets(words, max_size=4), words)
def test_match_is_what_it_says(listed: set[str], name: str) -> None:
    """A set matches a name exactly where one of its patterns does."""
    assert Names.of(listed).match(name) == any(plainly(pattern, name) for pattern in listed)


@given(patterns, patterns, words)
def test_both_match_what_each_matches(one: Names, other: Names, name: str) -> None:
    """What two sets match together is what each of them matches, nothing more and nothing less."""
    assert (one & other).match(name) == (one.match(name) and other.match(name))


@given(patterns, patterns)
def test_no_pattern_is_made_up(one: Names, other: Names) -> None:
    """Two sets together are made of their own patterns, in either order."""
    assert one & other == other & one
    assert (one & other).patterns <= one.patterns | other.patterns


def test_equal_sets_are_equal() -> None:
    """Two sets of the same patterns are equal, hash alike and print as what they are."""
    assert Names.of(["a", "b*"]) == Names.of(["b*", "a"])
    assert len({Names.of(["a"]), Names.of(["a"])}) == 1
    assert repr(Names.of(["a"])) == "Names(patterns=frozenset({'a'}))"


def test_narrowed_takes_what_both_allow() -> None:
    """None on one side leaves the other side; the subject and the end stay the grant's."""
    grant = Grant("alice", listeners=Names.of(["predict"]), services=Names.of(["resnet*"]), expires=7.0)
    rules = Permissions(services=Names.of(["resnet-a", "bert"]), methods=Names.of(["rank.*"]))
    expected = Grant(
        "alice", Names.of(["predict"]), Names.of(["resnet-a"]), Names.of(["rank.*"]), expires=7.0
    )
    assert narrowed(grant, rules) == expected
    assert narrowed(grant, Permissions()) == grant


def test_allowed() -> None:
    """None allows every name, an empty set none."""
    assert allowed(None, "x")
    assert allowed(Names.of(["x"]), b"x")
    assert not allowed(Names.of([]), "x")


@pytest.mark.parametrize(("expires", "expected"), [(None, False), (9.9, True), (10.0, True), (10.1, False)])
def test_expired(expires: float | None, expected: bool) -> None:
    """A grant has ended from the second on that it names."""
    assert Grant("a", expires=expires).expired(10.0) is expected


RULES = {name: Permissions(services=Names.of([name])) for name in ("bob", "b*", "bo*", "spiffe://x/*")}


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("bob", "bob"),
        ("bobby", "bo*"),
        ("bo", "bo*"),
        ("b", "b*"),
        ("bo*", "bo*"),
        ("spiffe://x/y", "spiffe://x/*"),
        ("alice", None),
        ("", None),
    ],
)
def test_subject_finds_its_rule(name: str, rule: str | None) -> None:
    """The equal pattern counts, else the longest prefix, else none."""
    assert Subjects(RULES).of(name) == (RULES[rule] if rule else None)


def test_a_star_alone_is_for_everybody() -> None:
    """The empty prefix is the last resort."""
    everybody = Permissions()
    assert Subjects({"*": everybody}).of("") is everybody
    assert Subjects({"*": everybody}).of("x") is everybody


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a", True),
        ("Zoë Müller", True),
        ("x" * MAX_SUBJECT, True),
        ("x" * (MAX_SUBJECT + 1), False),
        ("", False),
        ("a\nb", False),
        ("a\x1b[2J", False),
        ("\u202eevil", False),
        ("\ud800", False),
    ],
)
def test_subject_is_printable(name: str, expected: bool) -> None:
    """What would break a log line or hide in it is no subject."""
    assert is_subject(name) is expected
