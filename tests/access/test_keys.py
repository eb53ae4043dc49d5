"""API keys: made, stored, found again, and never printed."""

import hashlib
import hmac
import re
import string
from collections.abc import Callable

import pytest

from tcpgw.access import keys
from tcpgw.access.grant import MAX_SUBJECT, Grant, Names
from tcpgw.access.keys import KeyFileError, Keys, NewKey, is_api_key, moment, new_key, parse

NEW_YEAR = 1798761600.0  # 2027-01-01T00:00:00Z
HASH = "sha256:" + "0f" * 32


def keys_of(*made: NewKey) -> Keys:
    return Keys(parse("\n".join(key.line for key in made)))


def faults(text: str) -> list[str]:
    with pytest.raises(KeyFileError) as caught:
        parse(text)
    assert caught.value.blame == "operator"
    return [str(fault) for fault in caught.value.faults]


# ---- keys ----


def test_a_key_is_known_by_its_line() -> None:
    """A new key is verified by the line made with it, as text and as bytes, and grants what was asked for."""
    made = new_key("alice", expires=NEW_YEAR, listeners=["a"], services=["b*", "c"], methods=["rank.*"])
    expected = Grant("alice", Names.of(["a"]), Names.of(["b*", "c"]), Names.of(["rank.*"]), NEW_YEAR)
    assert keys_of(made).verify(made.key, NEW_YEAR - 1) == expected
    assert keys_of(made).verify(made.key.encode(), NEW_YEAR - 1) == expected


def test_a_key_without_options_grants_all() -> None:
    """What no option limits is unlimited, and does not end."""
    made = new_key("alice")
    assert keys_of(made).verify(made.key, 1e12) == Grant("alice")


def test_the_form_of_a_key() -> None:
    """A key is ASCII without dots, with 256 random bits; its line has the hash and nothing of the secret."""
    key, line = new_key("alice")
    prefix, identity, secret = key.split("_", 2)
    assert prefix == "tcpgw"
    assert re.fullmatch("[a-z2-9]{12}", identity)
    assert len(secret) == 43
    assert set(key) <= set(string.ascii_letters + string.digits + "_-")
    assert line == f"{identity} alice sha256:{hashlib.sha256(key.encode()).hexdigest()}"
    assert is_api_key(key)
    assert is_api_key(key.encode())
    assert new_key("alice").key != key


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda key: key[:-1],
        lambda key: key + "A",
        lambda key: key[:-1] + ("A" if key[-1] != "A" else "E"),
        lambda key: key.upper(),
        lambda key: key.replace("tcpgw_", "tcpgw_x"),
        lambda key: key + "\n",
        lambda key: " " + key,
        lambda key: key.partition("_")[2],
        lambda _: "",
        lambda _: "é" * 60,
        lambda _: "\ud800",
        lambda _: "tcpgw_" + "a" * 8000,
    ],
)
def test_another_key_is_nobodys(spoilt: Callable[[str], str]) -> None:
    """A key that is cut, lengthened, changed or none at all gives nothing."""
    made = new_key("alice")
    assert keys_of(made).verify(spoilt(made.key), 0) is None


def test_an_expired_key_is_found_but_not_verified() -> None:
    """From its last second on a key gives nothing; who counts denials can tell that it was one."""
    made = new_key("alice", expires=NEW_YEAR)
    assert keys_of(made).verify(made.key, NEW_YEAR) is None
    assert keys_of(made).find(made.key) == Grant("alice", expires=NEW_YEAR)


def test_a_key_may_be_used_again() -> None:
    """A key is a bearer's: whoever has it may use it, as often as wanted, until it expires."""
    made = new_key("alice", expires=NEW_YEAR)
    stored = keys_of(made)
    assert stored.verify(made.key, 1) == stored.verify(made.key, 2) == Grant("alice", expires=NEW_YEAR)


def test_rotation() -> None:
    """Two keys of a subject are both good, until the old one's line is taken out."""
    old, new = new_key("alice"), new_key("alice")
    both = keys_of(old, new)
    assert len(both) == 2
    assert both.verify(old.key, 0) == both.verify(new.key, 0) == Grant("alice")
    assert keys_of(new).verify(old.key, 0) is None
    assert keys_of(new).verify(new.key, 0) == Grant("alice")


def test_an_unknown_id_is_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key with an unknown id costs one hash and one comparison of 32 bytes, as one with a wrong secret."""
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(keys, "compare_digest", compare)
    made, stranger = new_key("alice"), new_key("mallory")
    stored = keys_of(made)
    assert stored.find(stranger.key) is None
    assert stored.find(made.key.rpartition("_")[0][:18] + "_" + "A" * 43) is None
    assert compared == [(32, 32)] * 2


def test_nothing_prints_a_hash() -> None:
    """The hash does not stand in a stored key's text either."""
    (stored,) = parse(f"abcdefgh alice {HASH}")
    assert "0f0f" not in repr(stored)
    assert r"\x0f" not in repr(stored)


@pytest.mark.parametrize("subject", ["", "a b", "#alice", "a\nb", "a\tb", "x" * (MAX_SUBJECT + 1)])
def test_a_subject_that_no_line_can_hold(subject: str) -> None:
    """No key is made whose line could not be read."""
    with pytest.raises(ValueError, match="the subject must be 1 to 255 printable characters"):
        new_key(subject)


@pytest.mark.parametrize("pattern", ["", "a b", "a,b", "a\n"])
def test_a_pattern_that_no_line_can_hold(pattern: str) -> None:
    """The same for what it may use."""
    with pytest.raises(ValueError, match="must be names"):
        new_key("alice", services=[pattern])


# ---- the file ----


def test_a_file() -> None:
    """Comments, empty lines, any blanks and any line ends are taken; options come in any order."""
    text = (
        "\ufeff# keys\r\n"
        "\r\n"
        f"abcdefgh\talice  {HASH}   # since May\r\n"
        f"  ABCD-efgh-012345 bob {HASH.upper().replace('SHA', 'sha')} methods=m services=s,t* "
        "expires=2027-01-01T00:00:00Z listeners=l\r\n"
    )
    first, second = parse(text)
    assert (first.id, first.digest, first.grant) == ("abcdefgh", b"\x0f" * 32, Grant("alice"))
    assert second.id == "ABCD-efgh-012345"
    assert second.digest == b"\x0f" * 32
    expected = Grant("bob", Names.of(["l"]), Names.of(["s", "t*"]), Names.of(["m"]), NEW_YEAR)
    assert second.grant == expected


def test_an_empty_file_has_no_keys() -> None:
    """A file without keys is a file all the same, and lets nobody in."""
    assert parse("") == parse("# none yet\n") == ()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("abcdefgh alice", "must be ID SUBJECT sha256:HASH, then options"),
        (f"short alice {HASH}", "the id must be 8 to 16"),
        (f"abcd_efgh alice {HASH}", "the id must be 8 to 16"),
        (f"{'a' * 17} alice {HASH}", "the id must be 8 to 16"),
        (f"abcdefgh a\x1bb {HASH}", "the subject must be"),
        (f"abcdefgh alice {HASH[:-1]}", "the third field must be sha256:"),
        (f"abcdefgh alice {HASH}0", "the third field must be sha256:"),
        ("abcdefgh alice md5:00", "the third field must be sha256:"),
        (f"abcdefgh alice {HASH} service=a", "an option must be expires=, listeners=, services=, methods=;"),
        (f"abcdefgh alice {HASH} services", "services= patterns must be names"),
        (f"abcdefgh alice {HASH} services=", "services= patterns must be names"),
        (f"abcdefgh alice {HASH} services=a,", "services= patterns must be names"),
        (f"abcdefgh alice {HASH} services=a, b", "services= patterns must be names"),
        (f"abcdefgh alice {HASH} services=a services=b", "services= is there twice"),
        (f"abcdefgh alice {HASH} expires=tomorrow", "expires= is not a time: write 2027-01-01 or"),
        (f"abcdefgh alice {HASH} expires=2027-02-30", "expires= is not a time"),
    ],
)
def test_a_wrong_line(line: str, told: str) -> None:
    """The error names the line and what must stand there."""
    (fault,) = faults(f"# keys\n{line}\n")
    assert fault.startswith("line 2: ")
    assert told in fault


def test_every_wrong_line_is_told() -> None:
    """All faults come at once, but no more than twenty."""
    assert [fault.partition(":")[0] for fault in faults("a\n\nb")] == ["line 1", "line 3"]
    many = faults("a\n" * 30)
    assert len(many) == 21
    assert many[-1] == "and 10 more lines"


def test_an_id_stands_once() -> None:
    """Of two lines with one id it would be chance which counts."""
    (fault,) = faults(f"abcdefgh alice {HASH}\n\nabcdefgh bob {HASH}")
    assert fault == "line 3: id abcdefgh is on line 1 already: make another key"


@pytest.mark.parametrize(
    "line",
    ["{id} alice {key}", "{key}", "{id} {key} {hash}", "{id} alice {hash} {key}", "# {key}", "x{key}x"],
)
def test_a_whole_key_in_the_file_is_refused_unseen(line: str) -> None:
    """A key in the place of its hash, or anywhere, is refused, and the error has no part of it."""
    made = new_key("alice")
    identity, _, hashed = made.line.split()
    (fault,) = faults(line.format(id=identity, key=made.key, hash=hashed))
    assert "holds an API key where only its hash may be" in fault
    assert "tcpgw key new" in fault
    secret = made.key.split("_", 2)[2]
    assert not any(secret[at : at + 6] in fault for at in range(len(secret) - 5))


@pytest.mark.parametrize("place", ["{} alice " + HASH, "abcdefgh alice {}", "abcdefgh alice " + HASH + " {}"])
def test_an_error_repeats_no_secret(place: str) -> None:
    """A secret without the rest of its key is not repeated either, wherever it stands."""
    secret = "Zq7" * 20
    (fault,) = faults(place.format(secret))
    assert "Zq7" not in fault


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2027-01-01", NEW_YEAR), ("2027-01-01T00:00:01Z", NEW_YEAR + 1), ("1970-01-01", 0.0)],
)
def test_moment(text: str, expected: float) -> None:
    """A day is its beginning in UTC, wherever the gateway stands."""
    assert moment(text) == expected


@pytest.mark.parametrize(
    "text", ["", "2027", "20270101", "2027-01-01T00:00:00", "2027-01-01T00:00:00+01:00", "٢٠٢٧-01-01"]
)
def test_no_moment(text: str) -> None:
    """What two people may read differently is refused."""
    with pytest.raises(ValueError, match="is not a time"):
        moment(text)
