"""Who may do what with the admin server. No I/O: what a request says goes in, who it is or a refusal out.

| need | who                                                                                             |
|------|-------------------------------------------------------------------------------------------------|
| open | everybody: probes                                                                               |
| page | every browser that means this server: the page itself holds no figures                          |
| read | who has the token, or a session; without a token who reaches the socket                         |
| act  | who has the token, or a session, from this page; without a token who may use the Unix socket    |

Two things come from browsers alone. A page of another origin may have a browser send a request, which the
browser tells (Origin, Sec-Fetch-Site) and adds cookies to: hence those headers count, and an act by session
needs the session's own header. And a name of another's may lead here (DNS rebinding), so that his page has
this origin: hence on loopback, where no token protects, only names of this machine are answered to.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from hmac import compare_digest
from ipaddress import ip_address
from urllib.parse import urlsplit

import structlog

from tcpgw.admin.sessions import Session, Sessions
from tcpgw.admin.tries import Tries
from tcpgw.config.admin import Admin
from tcpgw.errors import TcpgwError

log = structlog.get_logger()

READ_ONLY = (
    "this admin server has no token, so it changes nothing: write gateway.admin = "
    '{ bind = "…", token = "env:TCPGW_ADMIN_TOKEN" } and reload, or use the tcpgw commands on this machine'
)
UNKNOWN = "show the token of gateway.admin: Authorization: Bearer TOKEN, or log in on the page"

ANOTHER_PAGE = (
    "another page than this server's sent the request: open the status page itself; behind a reverse proxy, "
    "name it in hosts of gateway.admin"
)


class Need(Enum):
    """What a request is for."""

    OPEN = auto()
    PAGE = auto()
    READ = auto()
    ACT = auto()


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a request tells who sent it; "" for what it does not have.

    `source` is the address it came from, `token` what follows Bearer, `session` its cookie, `site`
    Sec-Fetch-Site.
    """

    source: str = ""
    host: str = ""
    token: str = ""
    session: str = ""
    csrf: str = ""
    origin: str = ""
    site: str = ""


class Refused(TcpgwError):  # noqa: N818 - no fault of ours
    """Not for this client. `status` is HTTP's, `wait` the seconds after which it may ask again, or 0."""

    blame = "client"

    def __init__(self, status: int, error: str, *, wait: float = 0.0) -> None:
        super().__init__(error)
        self.status = status
        self.wait = wait


class Guard:
    """The rules of one admin server, its sessions, and who showed wrong tokens."""

    def __init__(self, settings: Admin, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = settings.token.get_secret_value().encode() if settings.token else None
        self._by_file = bool(settings.bind.path)
        self._names = frozenset(settings.hosts)
        # Elsewhere the token protects, and by which name operators come is not known here.
        self._any_name = not self._names and (self._by_file or not settings.is_local)
        self._only_loopback = settings.is_local and not self._by_file
        self._clock = clock
        self._sessions = Sessions()
        self._tries = Tries()

    def check(self, asked: Asked, need: Need) -> str:
        """Return by what a request is allowed: `token`, `session`, `socket`, or `open`. Raises Refused."""
        if need is Need.OPEN:
            return "open"
        self._check_host(asked.host)
        if need is Need.PAGE:
            return "open"
        if asked.token and self._token is not None:
            self._check_token(asked.token, asked.source)
            return "token"
        from_here = self._is_from_here(asked)
        if from_here is False:
            raise Refused(403, ANOTHER_PAGE)
        if self._token is None:
            return self._without_token(need)
        session = self._session(asked)
        if session is None:
            raise Refused(401, UNKNOWN)
        if need is Need.ACT:
            self._check_csrf(asked, session, from_here)
        return "session"

    def log_in(self, token: str, asked: Asked) -> Session:
        """Open a session for who has the token. Raises Refused."""
        self._check_host(asked.host)
        if not self._is_from_here(asked):
            raise Refused(403, f"{ANOTHER_PAGE}; programs show the token instead of logging in")
        if self._token is None:
            raise Refused(403, READ_ONLY if self._only_loopback else "there is no token to log in with")
        self._check_token(token, asked.source)
        return self._sessions.begin(self._clock())

    def log_out(self, asked: Asked) -> None:
        """End a request's session. Idempotent. Raises Refused where another page asks for it."""
        self._check_host(asked.host)
        if self._is_from_here(asked):
            self._sessions.end(asked.session)

    def is_logged_in(self, asked: Asked) -> bool:
        """Whether a request's session is still open."""
        return self._session(asked) is not None

    def standing(self, asked: Asked) -> dict[str, str | bool]:
        """Tell the page what it may do: `read`, `act`, whether it can log in, its `csrf`, and a `hint`."""
        session = self._session(asked) if self._token is not None else None
        free = self._token is None
        return {
            "read": free or session is not None,
            "act": session is not None or (free and self._by_file),
            "login": not free,
            "csrf": session.csrf if session else "",
            "hint": READ_ONLY if free and self._only_loopback else "",
        }

    def _without_token(self, need: Need) -> str:
        if self._by_file:
            return "socket"
        if need is Need.ACT:
            raise Refused(403, READ_ONLY)
        return "open"

    def _session(self, asked: Asked) -> Session | None:
        return self._sessions.find(asked.session, self._clock())

    def _check_token(self, token: str, source: str) -> None:
        now = self._clock()
        wait = self._tries.wait(source, now)
        if wait > 0:
            raise Refused(429, f"too many wrong tokens: try again in {wait:.0f} s", wait=wait)
        if self._token is None or not compare_digest(token.encode(errors="replace"), self._token):
            self._tries.failed(source, now)
            log.warning("admin_token_refused", source=source or "unix")
            raise Refused(401, "that is not the token of gateway.admin")

    def _check_csrf(self, asked: Asked, session: Session, from_here: bool | None) -> None:
        if not from_here:
            raise Refused(403, "nothing tells that the status page sent this: an Origin must come with it")
        if not compare_digest(asked.csrf.encode(errors="replace"), session.csrf.encode()):
            raise Refused(403, "X-CSRF-Token is not this session's: load the page again")

    # ---- names ----

    def _check_host(self, host: str) -> None:
        name = _name(host)
        # Without a Host no browser sent it.
        if not host or self._any_name or name == "localhost" or name in self._names or self._is_mine(name):
            return
        raise Refused(
            403, f"{host[:80]!r} is not a name of this server: add it to hosts of gateway.admin if it is one"
        )

    def _is_mine(self, name: str) -> bool:
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not self._only_loopback

    def _is_from_here(self, asked: Asked) -> bool | None:
        """Whether the page of this server sent a request, None where nothing tells."""
        if asked.site and asked.site not in {"same-origin", "none"}:
            return False
        if asked.origin:
            try:
                authority = urlsplit(asked.origin).netloc.lower()
            except ValueError:  # such as http://[
                return False
            return bool(authority) and (authority == asked.host.lower() or _name(authority) in self._names)
        return True if asked.site == "same-origin" else None


def _name(host: str) -> str:
    """Take the port off `localhost:9080` and `[::1]:9080`, and the brackets too."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].rstrip(".").lower()
