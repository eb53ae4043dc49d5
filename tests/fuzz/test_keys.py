"""Random and damaged key files and API keys: only KeyFileError escapes, without a secret in it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.access.keys import KeyFileError, Keys, is_api_key, new_key, parse
from tcpgw.errors import Fault

MADE = new_key("alice", expires=4e9, listeners=["a"], services=["b*", "c"], methods=["m"])
SECRET = MADE.key.split("_", 2)[2]
FIELDS = st.sampled_from(
    [
        *MADE.line.split(),
        MADE.key,
        SECRET,
        "#",
        "tcpgw_",
        "expires=",
        "expires=2027-13-01",
        "services=,",
        "=",
        "x",
    ]
) | st.text(max_size=8)
LINES = st.lists(FIELDS, max_size=7).map(" ".join) | st.just(MADE.line) | st.text(max_size=80)
FILES = st.lists(LINES, max_size=5).map("\n".join)


@settings(max_examples=500)
@given(FILES)
def test_any_file_is_read_or_refused(text: str) -> None:
    """Any text gives keys that can be asked, or a KeyFileError of printable lines that hold no secret."""
    faults: list[Fault] = []
    try:
        keys = Keys(parse(text))
    except KeyFileError as error:
        faults = error.faults
    else:
        assert MADE.key not in text
        assert keys.find(MADE.key) is None or MADE.line.split()[2] in text
    for fault in map(str, faults):
        assert fault.isprintable()
        assert SECRET[:12] not in fault


@settings(max_examples=500)
@given(st.binary(max_size=100) | st.text(max_size=100) | st.just(MADE.key))
def test_any_token_is_answered(token: bytes | str) -> None:
    """Whatever a client shows is this key or nothing."""
    keys = Keys(parse(MADE.line))
    assert (keys.find(token) is not None) == (token == MADE.key)
    assert is_api_key(token) or keys.verify(token, 0) is None
