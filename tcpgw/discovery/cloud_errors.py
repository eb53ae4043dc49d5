"""What the cloud's error answers mean. Pure: an answer in, an `ApiError` for the operator out.

Three systems answer, each in its own form: APIG, the gateway before every service (`error_code`, `error_msg`,
`request_id`), the services (the same, or camel case, or nested in `error`), and IAM (`error.code`,
`error.message`, `error.title`). A load balancer in front of them answers in HTML.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from tcpgw.discovery.redaction import scrub
from tcpgw.errors import ApiError

# A policy may count by the day ("limit:1000,time:1 day"). Asking once an hour meanwhile costs nothing, and
# whoever has the limit raised does not wait for tomorrow.
LONGEST_WAIT = 3600.0

THROTTLED = "APIG.0308"
REFUSED = "APIG.0301"  # a token or signature

_CODES = ("errorcode", "code")
_MESSAGES = ("errormsg", "errormessage", "message", "msg", "errordescription", "detail", "title")
_REQUEST_IDS = ("requestid",)
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_WINDOW = re.compile(
    r"(?:(?<![\w.])(\d{1,6}(?:\.\d{1,3})?)\s*|\b(?:per|every|each|a)\s+)"
    r"(s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)\b",
    re.IGNORECASE,
)

Advice = Mapping[int | str, str]
"""What to do, by HTTP status or by the cloud's own code; `{table}` stands for `cloud.NAME`."""

MODELARTS: Advice = {
    "APIG.0101": "this address has no such API: check that {table}.endpoint is ModelArts' address in the "
    "service's region",
    400: "check {table}.project_id and the service's discovery.service_id",
    401: "the token or signature was refused: check {table}.auth, and that this machine's clock is right; a "
    "token made by hand ends after 24 hours",
    403: "the user may not do this: give it a ModelArts role in the project of {table}.project_id, and check "
    "that the account is not in arrears",
    404: "check the service's discovery.service_id and {table}.project_id: both belong to one region",
}
IAM: Advice = {
    400: "check {table}.auth and {table}.project_id",
    401: "check user, password and domain of {table}.auth; IAM locks a user after repeated wrong passwords",
    403: "the user may not log in by password: allow it programmatic access in IAM",
    404: "check that {table}.auth.iam is IAM's address in the region of {table}.project_id",
}
METADATA: Advice = {
    401: "the metadata service wants a session token, or the server has no agency: set an agency with a "
    "ModelArts role in the server's settings, and allow metadata access without a token",
    404: "the server has no agency: set one with a ModelArts role in the server's settings, or take another "
    "{table}.auth.type",
}
_GENERAL: Advice = {
    3: "redirects are not followed, because they would take the credentials elsewhere: put the final address "
    "into {table}",
    4: "check {table}",
    5: "the fault is the cloud's; should it last, give the cloud the request's id",
    429: "other programs use this IAM user too: lower {table}.calls_per_minute, or give tcpgw its own user",
}


class _Said(NamedTuple):
    code: str
    message: str
    request_id: str


def api_error(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    call: str,
    table: str,
    advice: Advice,
    now: float,
    secrets: Iterable[str] = (),
) -> ApiError:
    """Read an answer that is no success. Never raises, whatever `body` holds.

    `call` says what was asked, `table` is the configuration's `cloud.NAME`, `now` the Unix time (for a
    `Retry-After` date, RFC 9110 section 10.2.3), `secrets` what must not be echoed. `headers` ignores case.
    """
    secrets = tuple(secrets)
    said = _read(headers, body, secrets)
    if said.code == THROTTLED:
        status = 429  # some services pass APIG's refusal on with a status of their own
    what_to_do = advice.get(said.code) or advice.get(status) or _GENERAL.get(status)
    what_to_do = what_to_do or _GENERAL.get(status // 100, "check {table}")
    location = scrub(headers.get("Location", ""), secrets) if status // 100 == 3 else ""
    said_by = " ".join(filter(None, (str(status), said.code, said.message, location)))
    return ApiError(
        f"{call}: {said_by}; {what_to_do.format(table=table)}",
        status=status,
        code=said.code,
        retry_after=_retry_after(status, headers, said.message, now),
        request_id=said.request_id,
    )


def _retry_after(status: int, headers: Mapping[str, str], message: str, now: float) -> float | None:
    told = _header_seconds(headers.get("Retry-After", ""), now)
    if told is None and status == 429:
        told = _window(message)
    return None if told is None else min(max(told, 0.0), LONGEST_WAIT)


def _header_seconds(value: str, now: float) -> float | None:
    if re.fullmatch(r"\s*[0-9]{1,12}\s*", value):
        return float(value)
    try:
        return parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return None


def _window(message: str) -> float | None:
    """Find a throttling policy's window: `limit:20,time:1 minute`, `20 calls per 60 s`, `3 per minute`."""
    spans = [float(number or 1) * _UNITS[unit[0].lower()] for number, unit in _WINDOW.findall(message)]
    return max(spans, default=None)


def _read(headers: Mapping[str, str], body: bytes, secrets: tuple[str, ...]) -> _Said:
    text = body.decode("utf-8", "replace")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    fields = dict(reversed(list(_fields(document))))  # of two fields with one name, the outer wins
    code = next((fields[name] for name in _CODES if _is_code(fields.get(name))), "")
    message = next((fields[name] for name in _MESSAGES if isinstance(fields.get(name), str)), "")
    request_id = next((fields[name] for name in _REQUEST_IDS if isinstance(fields.get(name), str)), "")
    return _Said(
        scrub(code, secrets, limit=60),
        scrub(message or _plain(text), secrets),
        scrub(request_id or headers.get("X-Request-Id", ""), secrets, limit=80),
    )


def _is_code(value: Any) -> bool:
    # IAM's numeric `code` repeats the HTTP status.
    return isinstance(value, str) and not value.isdigit()


def _fields(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of an object and of the objects in it, outermost first, names without case and `_`."""
    level = [document]
    for _ in range(4):  # the deepest form known has two levels
        objects = [part for part in level if isinstance(part, dict)]
        for part in objects:
            for name, value in part.items():
                yield re.sub("[_-]", "", name).lower(), value
        level = [value for part in objects for value in part.values()]
        level += [item for value in level if isinstance(value, list) for item in value[:10]]


def _plain(text: str) -> str:
    """An HTML page's words, or the text as it is."""
    return re.sub(r"(?is)<(script|style)\b.*?</\1\s*>|<[^<>]*>", " ", text[:20_000])
