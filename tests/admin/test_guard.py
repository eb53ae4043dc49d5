"""Who may do what: each rule of the guard by what a request says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.admin.guard import READ_ONLY, Asked, Guard, Need, Refused
from tcpgw.admin.sessions import LASTS, MOST, Session, Sessions
from tcpgw.admin.tries import BURST, SECONDS_EACH, Tries
from tcpgw.admin.tries import MOST as MOST_SOURCES
from tests.support.admin import TOKEN, settings

HERE = {"host": "localhost:9080", "origin": "http://localhost:9080", "site": "same-origin"}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def guard(
    *, token: str | None = TOKEN, bind: str = "127.0.0.1:9080", hosts: tuple[str, ...] = ()
) -> tuple[Guard, Clock]:
    clock = Clock()
    return Guard(settings(token=token, bind=bind, hosts=hosts), clock), clock


def refused(guard: Guard, asked: Asked, need: Need) -> Refused:
    with pytest.raises(Refused) as caught:
        guard.check(asked, need)
    return caught.value


def logged_in(guard: Guard) -> Session:
    return guard.log_in(TOKEN, Asked(**HERE))


# ---- without a token ----


def test_on_loopback_who_is_here_reads() -> None:
    """Local processes need nothing, and may change nothing: they are told what would let them."""
    one, _ = guard(token=None)
    assert one.check(Asked("127.0.0.1", "localhost:9080"), Need.READ) == "open"
    refusal = refused(one, Asked("127.0.0.1", "localhost:9080", token=TOKEN), Need.ACT)
    assert (refusal.status, str(refusal)) == (403, READ_ONLY)
    assert one.standing(Asked(**HERE)) == {
        "read": True,
        "act": False,
        "login": False,
        "csrf": "",
        "hint": READ_ONLY,
    }
    with pytest.raises(Refused, match="no token"):
        one.log_in("", Asked(**HERE))


def test_a_unix_socket_s_permissions_are_enough() -> None:
    """Who may open the file may do everything, but not for the page of somebody else."""
    one, _ = guard(token=None, bind="unix:/run/x.sock")
    for need in Need:
        assert one.check(Asked(host="whatever"), need) in {"socket", "open"}
    assert one.check(Asked(host="gw", origin="https://gw"), Need.ACT) == "socket"
    assert refused(one, Asked(host="gw", origin="https://evil"), Need.ACT).status == 403
    assert one.standing(Asked())["act"] is True
    with pytest.raises(Refused, match="no token to log in with"):
        one.log_in(TOKEN, Asked(**HERE))


# ---- the token ----


@pytest.mark.parametrize("bind", ["127.0.0.1:9080", "0.0.0.0:9080", "unix:/run/x.sock"])
def test_where_there_is_a_token_it_is_asked_for(bind: str) -> None:
    """Everything but probes and the page's own files needs it, wherever the server listens."""
    one, _ = guard(bind=bind)
    for need in (Need.READ, Need.ACT):
        assert refused(one, Asked(host="localhost"), need).status == 401
        assert refused(one, Asked(host="localhost", token=TOKEN[:-1]), need).status == 401
        assert one.check(Asked(host="localhost", token=TOKEN), need) == "token"
    for need in (Need.OPEN, Need.PAGE):
        assert one.check(Asked(host="localhost"), need) == "open"


def test_programs_need_neither_origin_nor_csrf() -> None:
    """No page of another's can make a browser send the token."""
    one, _ = guard()
    assert one.check(Asked(host="localhost", token=TOKEN, origin="https://evil"), Need.ACT) == "token"


@given(st.text())
def test_no_other_text_is_the_token(text: str) -> None:
    """Whatever stands in the header, it is refused and never an error."""
    one, _ = guard()
    if text not in {"", TOKEN}:
        assert refused(one, Asked(token=text), Need.READ).status == 401


def test_guessing_is_slow() -> None:
    """After some wrong tokens a source waits, even with the right one; others do not, and it is over."""
    one, clock = guard(bind="0.0.0.0:9080")
    guess = Asked("10.0.0.1", token="wrong")
    for _ in range(BURST):
        assert refused(one, guess, Need.READ).status == 401
    refusal = refused(one, Asked("10.0.0.1", token=TOKEN), Need.READ)
    assert refusal.status == 429
    assert 0 < refusal.wait <= SECONDS_EACH
    assert one.check(Asked("10.0.0.2", token=TOKEN), Need.READ) == "token"
    clock.now += refusal.wait
    assert one.check(Asked("10.0.0.1", token=TOKEN), Need.READ) == "token"
    assert refused(one, guess, Need.READ).status == 401
    assert refused(one, guess, Need.READ).status == 429


def test_guesses_count_at_the_login_too() -> None:
    """A form is no second way to guess; sessions go on."""
    one, _ = guard()
    session = logged_in(one)
    for _ in range(BURST):
        with pytest.raises(Refused) as caught:
            one.log_in("wrong", Asked(**HERE))
        assert caught.value.status == 401
    with pytest.raises(Refused) as caught:
        logged_in(one)
    assert caught.value.status == 429
    assert one.check(Asked(**HERE, session=session.id), Need.READ) == "session"


def test_who_has_an_ipv6_address_has_its_neighbours() -> None:
    """Tries are counted by network where addresses cost nothing."""
    tries = Tries()
    for number in range(BURST):
        tries.failed(f"2001:db8::{number + 1}", 0)
    assert tries.wait("2001:db8::ffff%eth0", 0) > 0
    assert tries.wait("2001:db8:0:1::1", 0) == 0
    for _ in range(BURST):
        tries.failed("::ffff:10.0.0.1", 0)
    assert tries.wait("::ffff:10.0.0.2", 0) == 0


def test_sources_are_forgotten() -> None:
    """However many guess, a bounded number is remembered."""
    tries = Tries()
    for number in range(MOST_SOURCES + 10):
        tries.failed(f"10.0.{number >> 8}.{number & 255}", 0)
    assert len(tries._empty_at) == MOST_SOURCES


# ---- sessions ----


def test_a_session_reads_and_acts_from_its_page() -> None:
    """With the cookie alone one reads; to act its own header and its own page are needed as well."""
    one, _ = guard()
    session = logged_in(one)
    assert TOKEN not in {session.id, session.csrf}
    asked = {**HERE, "session": session.id}
    assert one.check(Asked("", "localhost:9080", session=session.id), Need.READ) == "session"
    assert one.check(Asked(**asked, csrf=session.csrf), Need.ACT) == "session"
    assert one.standing(Asked(**asked)) == {
        "read": True,
        "act": True,
        "login": True,
        "csrf": session.csrf,
        "hint": "",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"csrf": ""},
        {"csrf": "other"},
        {"origin": "", "site": ""},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": "http://localhost:9081"},
        {"site": "cross-site"},
        {"site": "same-site"},
        {"origin": "", "site": "none"},
    ],
)
def test_another_page_cannot_act_by_session(wrong: dict[str, str]) -> None:
    """Whatever of header and origin is missing or another's, the act is refused."""
    one, _ = guard()
    session = logged_in(one)
    asked = {**HERE, "session": session.id, "csrf": session.csrf} | wrong
    assert refused(one, Asked(**asked), Need.ACT).status == 403


@pytest.mark.parametrize("wrong", [{"origin": "https://evil.example"}, {"site": "cross-site"}])
def test_another_page_neither_reads_nor_logs_in_or_out(wrong: dict[str, str]) -> None:
    """It can hold no streams open, open no session and end none."""
    one, _ = guard()
    session = logged_in(one)
    asked = Asked(**{**HERE, "session": session.id} | wrong)
    assert refused(one, asked, Need.READ).status == 403
    with pytest.raises(Refused, match="status page"):
        one.log_in(TOKEN, asked)
    one.log_out(asked)
    assert one.is_logged_in(asked)


def test_behind_a_proxy_the_page_has_the_proxy_s_name() -> None:
    """An origin is this page's where its name is in hosts, whatever Host the proxy sends on."""
    one, _ = guard(hosts=("gw.example.com",))
    session = logged_in(one)
    asked = Asked("", "localhost:9080", "", session.id, session.csrf, "https://gw.example.com:8443")
    assert one.check(asked, Need.ACT) == "session"


def test_sessions_end() -> None:
    """By themselves, by a log-out, and the oldest when there are too many."""
    one, clock = guard()
    session = logged_in(one)
    asked = Asked(**HERE, session=session.id)
    clock.now += LASTS
    assert refused(one, asked, Need.READ).status == 401
    session = logged_in(one)
    asked = Asked(**HERE, session=session.id)
    one.log_out(asked)
    one.log_out(asked)
    assert refused(one, asked, Need.READ).status == 401
    sessions = Sessions()
    first, second, *_ = [sessions.begin(0) for _ in range(MOST + 1)]
    assert sessions.find(first.id, 0) is None
    assert sessions.find(second.id, 0) == second


# ---- names ----


@pytest.mark.parametrize(
    "host", ["", "localhost", "LOCALHOST:9080", "localhost.:1", "127.0.0.1:9080", "127.1.2.3", "[::1]:9080"]
)
def test_on_loopback_names_of_this_machine_are_ours(host: str) -> None:
    """With any port: a tunnel may have brought it here by another."""
    one, _ = guard(token=None)
    assert one.check(Asked(host=host), Need.READ) == "open"


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "10.0.0.1:9080", "[fd00::1]", "127.0.0.1.evil", "[", "gw2"],
)
def test_on_loopback_other_names_are_refused(host: str) -> None:
    """A name that somebody pointed here is not answered to, not even with the page."""
    one, _ = guard(token=None, hosts=("gw",))
    for need in (Need.PAGE, Need.READ, Need.ACT):
        assert refused(one, Asked(host=host), need).status == 403
    assert one.check(Asked(host=host), Need.OPEN) == "open"
    assert one.check(Asked(host="GW:443"), Need.READ) == "open"
    with pytest.raises(Refused, match="not a name"):
        one.log_in(TOKEN, Asked(host=host))


def test_elsewhere_names_count_where_some_are_given() -> None:
    """Without hosts the token alone protects; with them, they and addresses are answered to."""
    anyone, _ = guard(bind="0.0.0.0:9080")
    assert anyone.check(Asked(host="gw7"), Need.PAGE) == "open"
    some, _ = guard(bind="0.0.0.0:9080", hosts=("gw",))
    assert refused(some, Asked(host="gw7"), Need.PAGE).status == 403
    for host in ("gw", "10.0.0.1:9080", "localhost"):
        assert some.check(Asked(host=host), Need.PAGE) == "open"
