"""How durations, sizes, addresses, fields, URLs, names and paths are read and shown."""

import math
from contextlib import suppress
from datetime import date
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from tcpgw.config.values import (
    Bind,
    BindAddress,
    Delay,
    Duration,
    EndpointAddress,
    FieldPath,
    Name,
    Network,
    Pattern,
    Size,
    StaticMember,
    Threshold,
    Url,
    Wait,
    is_name,
    parse_path,
    type_name,
    written_size,
)
from tcpgw.endpoints import Endpoint, Member

DURATION: TypeAdapter[float] = TypeAdapter(Duration)
BIND: TypeAdapter[Bind] = TypeAdapter(BindAddress)
MEMBER: TypeAdapter[Member] = TypeAdapter(StaticMember)
NETWORK: TypeAdapter[Any] = TypeAdapter(Network)
URL: TypeAdapter[str] = TypeAdapter(Url)

# Anything that TOML can hold, to be thrown at readers.
toml_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.times()
toml_values = st.recursive(
    toml_scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5
)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("10s", 10),
        ("500ms", 0.5),
        ("2m", 120),
        ("1h", 3600),
        ("1h30m", 5400),
        ("1.5s", 1.5),
        (10, 10),
        (0.25, 0.25),
    ],
)
def test_durations_are_read_as_seconds(written: str | float, seconds: float) -> None:
    """A duration is a number of seconds, or numbers with units from the largest down."""
    assert DURATION.validate_python(written) == seconds


@given(
    hours=st.integers(0, 9999),
    minutes=st.integers(0, 9999),
    seconds=st.integers(0, 9999),
    ms=st.integers(1, 9999),
)
def test_durations_add_their_units_up(hours: int, minutes: int, seconds: int, ms: int) -> None:
    """What is written with units is the sum of its parts."""
    read = DURATION.validate_python(f"{hours}h{minutes}m{seconds}s{ms}ms")
    assert math.isclose(read, hours * 3600 + minutes * 60 + seconds + ms / 1000)


@given(st.floats(min_value=0, exclude_min=True, allow_infinity=False, allow_nan=False))
def test_durations_round_trip_as_seconds(seconds: float) -> None:
    """A number of seconds stays what it is, and so does what a dumped configuration holds."""
    assert DURATION.validate_python(seconds) == seconds
    assert DURATION.validate_json(DURATION.dump_json(seconds)) == seconds


@pytest.mark.parametrize(
    "written",
    [
        "",
        "s",
        "10",
        "10 s",
        "1d",
        "1s1m",
        "-1s",
        "0s",
        "1e3s",
        "\uff11s",
        "9" * 400 + "h",
        0,
        -1,
        True,
        math.inf,
        math.nan,
        10**400,
    ],
)
def test_other_durations_are_refused(written: Any) -> None:
    """A duration without unit, of no length, without end or of another type is refused with advice."""
    with pytest.raises(ValidationError, match="write 10s, 500ms, 1h30m or a number of seconds"):
        DURATION.validate_python(written)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_binds_round_trip(address: IPv4Address | IPv6Address, port: int) -> None:
    """Any address with any port is read, and shown in the form that is read again as the same."""
    bind = Bind.parse(f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}")
    assert (bind.host, bind.port, bind.path) == (str(address), port, "")
    assert Bind.parse(str(bind)) == bind
    assert BIND.validate_json(BIND.dump_json(bind)) == bind


def test_one_address_has_one_form() -> None:
    """Two ways to write an IPv6 address are one bind."""
    assert Bind.parse("[0:0:0:0:0:0:0:1]:80") == Bind("::1", 80) == Bind.parse("[::1]:80")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=25))
def test_unix_binds_round_trip(rest: str) -> None:
    """A Unix socket's absolute path is taken as it stands."""
    bind = Bind.parse(f"unix:/{rest}")
    assert (bind.host, bind.port, bind.path) == ("", 0, f"/{rest}")
    assert Bind.parse(str(bind)) == bind


@given(st.text())
def test_no_text_breaks_the_reader_of_binds(text: str) -> None:
    """Whatever stands there is read as a bind or refused as a value."""
    try:
        bind = Bind.parse(text)
    except ValueError:
        return
    assert Bind.parse(str(bind)) == bind


@pytest.mark.parametrize(
    "kind",
    [
        BindAddress,
        Delay,
        Duration,
        EndpointAddress,
        FieldPath,
        Name,
        Network,
        Pattern,
        Size,
        StaticMember,
        Threshold,
        Url,
    ],
)
@given(value=toml_values)
def test_no_value_breaks_a_reader(kind: Any, value: Any) -> None:
    """Whatever TOML may hold is read or refused with a validation error, never with another exception."""
    with suppress(ValidationError):
        TypeAdapter(kind).validate_python(value)


@pytest.mark.parametrize(
    ("written", "member"),
    [
        ("10.0.0.1:80", Member(Endpoint("10.0.0.1", 80), 1)),
        ({"address": "[fd00::1]:80"}, Member(Endpoint("fd00::1", 80), 1)),
        ({"address": "10.0.0.1:80", "weight": 0}, Member(Endpoint("10.0.0.1", 80), 0)),
    ],
)
def test_static_endpoints_are_read(written: Any, member: Member) -> None:
    """A static endpoint is an address, or a table of address and weight; shown it is the table."""
    assert MEMBER.validate_python(written) == member
    assert MEMBER.validate_json(MEMBER.dump_json(member)) == member


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (BindAddress, Bind("::1", 80)),
        (EndpointAddress, Endpoint("10.0.0.1", 80)),
        (StaticMember, Member(Endpoint("10.0.0.1", 80), 2)),
        (Network, ip_network("10.0.0.0/8")),
        (Delay, "p95"),
        (FieldPath, (0, "session")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_finished_values_are_taken_as_they_are(kind: Any, value: Any) -> None:
    """Who makes a configuration in Python may give what the readers would make."""
    assert TypeAdapter(kind).validate_python(value) == value


@given(st.ip_addresses(), st.data())
def test_networks_round_trip(address: IPv4Address | IPv6Address, data: st.DataObject) -> None:
    """A network, or one address, is read and shown in the form that is read again as the same."""
    network = ip_network(f"{address}/{data.draw(st.integers(0, address.max_prefixlen))}", strict=False)
    assert NETWORK.validate_python(str(network)) == network
    assert NETWORK.validate_json(NETWORK.dump_json(network)) == network
    assert NETWORK.validate_python(str(address)) == ip_network(address)


def test_urls_lose_their_closing_slash() -> None:
    """A path can be put behind a URL without looking."""
    assert URL.validate_python("https://example.com/") == "https://example.com"
    assert URL.validate_python("http://[::1]:8080/api//") == "http://[::1]:8080/api"


@pytest.mark.parametrize(
    "url", ["https://user:hush@example.com", "https://hush@example.com", "ftp://u:hush@h:0/?hush#hush"]
)
def test_a_refused_url_is_not_shown(url: str) -> None:
    """A URL may hold a password, so no message repeats it."""
    with pytest.raises(ValidationError) as caught:
        URL.validate_python(url)
    assert "hush" not in str([(e["msg"], e.get("ctx")) for e in caught.value.errors()])


@pytest.mark.parametrize(
    "host", ["a..b", ".a", ".", "a..", "x" * 64, "a." + "x" * 64, "a\\b", "a$b", "[::1]]", "[v1.a]", "a:1:2"]
)
def test_a_url_needs_a_possible_host(host: str) -> None:
    """A host that no name or address can be is refused when the file is read, not when it is called."""
    for url in (f"https://{host}", f"https://{host}:443/v1"):
        with pytest.raises(ValidationError, match=r"URL|host"):
            URL.validate_python(url)


@pytest.mark.parametrize(
    "host", ["a", "A-1.b_c.", "x" * 63, "10.0.0.1", "[fd00::1]", "localhost:8080", "a.b:1"]
)
def test_names_and_addresses_are_hosts(host: str) -> None:
    """Names with or without the closing dot, and addresses with or without port, are taken as they stand."""
    assert URL.validate_python(f"https://{host}/v1") == f"https://{host}/v1"


def test_a_url_holds_no_backslash() -> None:
    """A backslash, which programs read differently, stands nowhere in a URL."""
    with pytest.raises(ValidationError, match="backslash"):
        URL.validate_python("https://a/b\\c")


@given(st.text())
def test_names_are_safe_to_use_anywhere(text: str) -> None:
    """A name can stand in a file name, on a command line and in a metric label."""
    if is_name(text):
        assert Path("folder", text).parent == Path("folder")
        assert text != ".."
        assert not text.startswith("-")
        assert text.isascii()


def test_types_have_an_operators_names() -> None:
    """Messages speak of text, lists and tables, not of Python's types."""
    names = {"text": "", "a whole number": 1, "a fraction": 1.5, "true or false": True, "a table": {}}
    assert {type_name(value): value for value in names.values()} == names
    assert (type_name([]), type_name(date.min)) == ("a list", "a date or time")


# ---- sizes ----

SIZES: TypeAdapter[int] = TypeAdapter(Size)


@pytest.mark.parametrize(
    ("written", "size"),
    [("512B", 512), ("64KiB", 65536), ("16MiB", 16 << 20), ("1GiB", 1 << 30), (4096, 4096)],
)
def test_sizes_are_read_as_bytes(written: str | int, size: int) -> None:
    """Binary units, or a plain number of bytes."""
    assert SIZES.validate_python(written) == size


@pytest.mark.parametrize("written", ["16MB", "16 MiB", "-1KiB", "1.5MiB", "MiB", "", 1.5, True, None])
def test_other_sizes_are_refused(written: Any) -> None:
    """No decimal units, which some read as binary ones, and nothing without a number."""
    with pytest.raises(ValidationError, match="is not a size: write 64KiB"):
        SIZES.validate_python(written)


@given(st.integers(1, 1 << 31))
def test_sizes_are_shown_as_they_are_written(size: int) -> None:
    """A message shows a size in a form that can be written into the file, and means the same there."""
    assert SIZES.validate_python(written_size(size)) == size


@pytest.mark.parametrize(
    ("size", "shown"),
    [(1, "1B"), (1536, "1536B"), (64 << 10, "64KiB"), (1536 << 20, "1536MiB"), (1 << 30, "1GiB")],
)
def test_sizes_are_shown_in_the_largest_whole_unit(size: int, shown: str) -> None:
    """An operator reads 16MiB, not its eight digits."""
    assert written_size(size) == shown


# ---- delays ----

DELAY: TypeAdapter[float | str] = TypeAdapter(Delay)


@pytest.mark.parametrize(("written", "read"), [("p95", "p95"), ("20ms", 0.02), (2, 2.0), (0.5, 0.5)])
def test_delays_are_measured_or_fixed(written: str | float, read: str | float) -> None:
    """A delay is a duration, or the word for the measured one."""
    assert DELAY.validate_python(written) == read


@pytest.mark.parametrize("written", ["p99", "P95", "", 0, -1, True, None, ["p95"], math.nan])
def test_other_delays_are_refused(written: Any) -> None:
    """The message says both ways to write one."""
    with pytest.raises(ValidationError, match=r'write 10s, .* more than 0; or "p95"'):
        DELAY.validate_python(written)


WAIT: TypeAdapter[float] = TypeAdapter(Wait)


def test_waits_may_be_nothing() -> None:
    """0 is one, and false is not; the rest is as of durations."""
    assert [WAIT.validate_python(value) for value in (0, 0.0, "0s", "1m")] == [0, 0, 0, 60]
    refused: list[Any] = [False, -1, "", "soon", None, [], {}]
    for value in refused:
        with pytest.raises(ValidationError, match="duration"):
            WAIT.validate_python(value)


THRESHOLD: TypeAdapter[float | str] = TypeAdapter(Threshold)


@pytest.mark.parametrize(("written", "read"), [("off", "off"), ("500ms", 0.5), (2, 2.0)])
def test_thresholds_can_be_switched_off(written: str | float, read: str | float) -> None:
    """A threshold is a duration, or the word for none."""
    assert THRESHOLD.validate_python(written) == read


@pytest.mark.parametrize("written", ["on", "OFF", "", 0, False, None, "p95"])
def test_other_thresholds_are_refused(written: Any) -> None:
    """The message says both ways to write one; 0 would be met always."""
    with pytest.raises(ValidationError, match=r'write 10s, .* more than 0; or "off"'):
        THRESHOLD.validate_python(written)


# ---- patterns ----


@pytest.mark.parametrize("written", ["predict", "rank.*", "*", "spiffe://x/y", "模型*"])
def test_patterns_are_names_or_beginnings(written: str) -> None:
    """They stay as they are written."""
    assert TypeAdapter(Pattern).validate_python(written) == written


@pytest.mark.parametrize("written", ["", "**", "*.predict", "a*b"])
def test_other_patterns_are_refused(written: str) -> None:
    """What would fit in another way than its writer thinks is refused."""
    with pytest.raises(ValidationError, match="cannot be a pattern"):
        TypeAdapter(Pattern).validate_python(written)


# ---- fields of a request ----

FIELD: TypeAdapter[tuple[int | str, ...]] = TypeAdapter(FieldPath)
steps = st.integers(0, 999_999_999) | st.text(st.characters(codec="utf-8"), min_size=1)


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("params[0]", (0,)),
        ("params[0].session", (0, "session")),
        ("params.user_2._id", ("user_2", "_id")),
        ('params[1]["odd key"]', (1, "odd key")),
        (r'params["a\"]"]["\u00e9\\"].b[10]', ('a"]', "é\\", "b", 10)),
        ('params["0"]', ("0",)),
    ],
)
def test_fields_are_read_as_steps(written: str, path: tuple[int | str, ...]) -> None:
    """Dots and brackets are steps: whole numbers are positions, texts are names."""
    assert parse_path(written) == path == FIELD.validate_python(written)


@given(st.lists(steps, min_size=1).map(tuple))
def test_fields_round_trip(path: tuple[int | str, ...]) -> None:
    """Any path is shown in a form that is read again as the same."""
    assert parse_path(FIELD.dump_python(path)) == path
    assert FIELD.validate_json(FIELD.dump_json(path)) == path


@pytest.mark.parametrize(
    "written",
    [
        "",
        "params",
        "params.",
        "params[]",
        "params[-1]",
        "params[01]",
        "params[1_0]",
        "params[1e3]",
        "params[9999999999]",
        "params[0]session",
        "params[0].odd key",
        "params[0].2nd",
        "params['a']",
        'params[""]',
        'params["a]',
        r'params["\x"]',
        r'params["\ud800"]',
        'params["\n"]',
        "params[0]\n",
        " params[0]",
        "param[0]",
        "session",
        "params[\uff11]",
    ],
)
def test_other_fields_are_refused(written: str) -> None:
    """What no request has is refused when the file is read, with examples of what to write."""
    with pytest.raises(ValueError, match=r"is no field of a request: write params\[0\], "):
        parse_path(written)


@given(st.text() | st.lists(st.sampled_from(["params", "[", "]", ".", '"', "\\", "0", "a"])).map("".join))
def test_no_text_breaks_the_reader_of_fields(text: str) -> None:
    """Whatever stands there is read as a path of at least one step, or refused as a value."""
    with suppress(ValueError):
        path = parse_path(text)
        assert path
        "".join(map(str, path)).encode()
