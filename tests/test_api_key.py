"""`tcpgw key new` as its user meets it."""

import json

import pytest

from tcpgw.access.grant import Grant, Names
from tcpgw.access.keys import Keys, parse
from tests.support.command import tcpgw


def test_prints_the_key_and_its_line() -> None:
    """The key stands alone on a line, and so does the line of the key file that knows it."""
    code, out, err = tcpgw("key", "new", "--name", "alice")
    assert (code, err) == (0, "")
    told, _, key, _, stored, _, line, rest = out.split("\n")
    assert told == "The API key, for alice. It is not stored, so it cannot be shown again:"
    assert stored == "The line for the file of listener.access.api_keys:"
    assert Keys(parse(line)).verify(key, 0) == Grant("alice")
    assert rest == ""
    assert key not in line


def test_options_may_be_repeated() -> None:
    """What is asked for is what the line grants; as JSON for scripts."""
    options = "--listener a --service b* --service c --method rank.* --method x --expires 2999-01-01 --json"
    code, out, _ = tcpgw("key", "new", "--name", "spiffe://x/y", *options.split())
    made = json.loads(out)
    sets = Names.of(["a"]), Names.of(["b*", "c"]), Names.of(["rank.*", "x"])
    assert code == 0
    expected = Grant("spiffe://x/y", *sets, expires=32472144000.0)
    assert Keys(parse(made["line"])).verify(made["key"], 0) == expected


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--name", "a b"], "the subject must be"),
        (["--name", ""], "the subject must be"),
        (["--name", "a", "--service", "x,y"], "patterns must be names"),
        (["--name", "a", "--expires", "soon"], "--expires 'soon' is not a time: write 2027-01-01 or"),
        (["--name", "a", "--expires", "2020-01-01"], "--expires 2020-01-01 has passed"),
        ([], "--name"),
    ],
)
def test_wrong_usage(args: list[str], told: str) -> None:
    """What cannot be made is told on stderr, with exit code 2 and no key."""
    code, out, err = tcpgw("key", "new", *args)
    assert (code, out) == (2, "")
    assert told in err


def test_help_says_what_there_is() -> None:
    """`tcpgw key` is a group with help of its own."""
    code, out, _ = tcpgw("key", "--help")
    assert code == 0
    assert "Make an API key and print it, once" in out
