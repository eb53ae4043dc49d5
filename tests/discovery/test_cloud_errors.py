import json
from email.utils import formatdate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from tcpgw.discovery import cloud_errors
from tcpgw.discovery.cloud_errors import LONGEST_WAIT, api_error
from tcpgw.errors import ApiError

NOW = 1_700_000_000.0


def error_of(
    status: int, body: Any = b"", headers: dict[str, str] | None = None, *, secrets: tuple[str, ...] = ()
) -> ApiError:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return api_error(
        status,
        CIMultiDict(headers or {}),
        content,
        call="GET https://modelarts.example/v1",
        table="cloud.modelarts",
        advice=cloud_errors.MODELARTS,
        now=NOW,
        secrets=secrets,
    )


FORMS: list[tuple[Any, str, str]] = [
    ({"error_code": "APIG.0301", "error_msg": "decrypt token fail", "request_id": "r1"}, "APIG.0301", "r1"),
    (
        {"errorCode": "ModelArts.0101", "errorMsg": "decrypt token fail", "requestId": "r2"},
        "ModelArts.0101",
        "r2",
    ),
    (
        {"error": {"code": "IAM.0011", "message": "decrypt token fail", "title": "Unauthorized"}},
        "IAM.0011",
        "",
    ),
    ({"error": {"code": 401, "message": "decrypt token fail", "title": "Unauthorized"}}, "", ""),
    ({"errors": [{"error_code": "X.1", "error_msg": "decrypt token fail"}]}, "X.1", ""),
    ({"data": {"error": {"errorCode": "X.2", "errorMessage": "decrypt token fail"}}}, "X.2", ""),
    ({"code": "X.3", "msg": "decrypt token fail"}, "X.3", ""),
]


@pytest.mark.parametrize(("body", "code", "request_id"), FORMS)
def test_every_form_of_error_is_read(body: Any, code: str, request_id: str) -> None:
    """Code, message and request id are found in APIG's, the services' and IAM's forms."""
    error = error_of(401, body)
    assert error.code == code
    assert error.status == 401
    assert f"401 {code} decrypt token fail".replace("  ", " ") in str(error)
    assert (f"request {request_id}" in str(error)) == bool(request_id)


@pytest.mark.parametrize(
    ("status", "what_to_do"),
    [
        (302, "redirects are not followed"),
        (400, "cloud.modelarts.project_id"),
        (401, "cloud.modelarts.auth"),
        (403, "ModelArts role"),
        (404, "discovery.service_id"),
        (409, "check cloud.modelarts"),
        (429, "cloud.modelarts.calls_per_minute"),
        (500, "the fault is the cloud's"),
        (503, "the fault is the cloud's"),
        (204, "check cloud.modelarts"),
    ],
)
def test_each_status_says_what_to_do(status: int, what_to_do: str) -> None:
    """Whatever the status, the message names the call, the status and the next thing to do."""
    message = str(error_of(status))
    assert message.startswith(f"GET https://modelarts.example/v1: {status}")
    assert what_to_do in message


def test_code_says_more_than_status() -> None:
    """APIG's 'no such API' is told apart from a service that does not exist."""
    message = str(error_of(404, {"error_code": "APIG.0101", "error_msg": "The API does not exist."}))
    assert "cloud.modelarts.endpoint" in message
    assert "service_id" not in message


def test_throttling_is_known_by_its_code() -> None:
    """APIG's throttling is one, whatever status a service passes it on with."""
    error = error_of(500, {"error_code": "APIG.0308", "error_msg": "over ratelimit,limit:20,time:1 minute"})
    assert error.status == 429
    assert error.retry_after == 60


@pytest.mark.parametrize(
    ("status", "headers", "message", "seconds"),
    [
        (429, {"Retry-After": "7"}, "limit:20,time:1 minute", 7),
        (429, {"retry-after": " 7 "}, "", 7),
        (503, {"Retry-After": "7"}, "", 7),
        (429, {"Retry-After": formatdate(NOW + 90, usegmt=True)}, "", 90),
        (429, {"Retry-After": formatdate(NOW - 90, usegmt=True)}, "", 0),
        (429, {"Retry-After": "soon"}, "limit:20,time:1 minute", 60),
        (429, {"Retry-After": "99999999"}, "", LONGEST_WAIT),
        (429, {}, "policy user over ratelimit,limit:20,time:1 minute", 60),
        (429, {}, "policy user over ratelimit,limit:20,time:1minute", 60),
        (429, {}, "limit:5,time:30 seconds", 30),
        (429, {}, "LIMIT:5,TIME:30S", 30),
        (429, {}, "20 calls per 60 s", 60),
        (429, {}, "at most 3 calls per minute", 60),
        (429, {}, "limit:9,time:1 hour", 3600),
        (429, {}, "limit:9,time:1 day", LONGEST_WAIT),
        (429, {}, "retry in 1.5 minutes", 90),
        (429, {}, "slow down", None),
        (429, {}, "policy v2 min version 3x", None),
        (500, {}, "the last 5 minutes were bad", None),
    ],
)
def test_waiting_time_is_found(status: int, headers: dict[str, str], message: str, seconds: float) -> None:
    """Retry-After is honoured, else the policy's window in the message, but never for more than an hour."""
    assert error_of(status, {"error_msg": message}, headers).retry_after == seconds


def test_html_becomes_its_words() -> None:
    """A load balancer's page is quoted without its markup."""
    page = (
        b"<html><head><style>p{x:y}</style></head><body><h1>502 Bad Gateway</h1>\n<p>nginx</p></body></html>"
    )
    assert "502 502 Bad Gateway nginx;" in str(error_of(502, page))


def test_redirect_says_where_to() -> None:
    """The address that a redirect names is told, without a query, for the operator to judge."""
    message = str(error_of(301, b"Moved", {"Location": "https://other.example/v1?ticket=abc"}))
    assert "301 Moved https://other.example/v1?***; redirects are not followed" in message


def test_request_id_comes_from_the_header_too() -> None:
    """Where the body has no request id, the header's is told."""
    assert "(request r9)" in str(error_of(500, b"oops", {"x-request-id": "r9"}))


def test_secrets_are_never_echoed() -> None:
    """Neither a secret that was sent nor anything that looks like one gets into the message."""
    token, password, access = "MIIF" + "q1" * 600, "Tr0ub4dor", "ABCDEFGHIJ0123456789"
    body = {
        "error_msg": f"token {token} of user:{password} bad, ak:{access} not found, X-Auth-Token: short1",
        "error_code": token,
        "request_id": token,
    }
    message = str(error_of(401, body, secrets=(password,)))
    for secret in (token, token[:80], password, access, "short1"):
        assert secret not in message
    assert "***" in message


@given(st.integers(200, 599), st.binary(max_size=300) | st.from_regex(rb'\{"[a-z_]{1,12}":.{0,40}\}'))
def test_any_body_gives_a_short_printable_message(status: int, body: bytes) -> None:
    """Whatever the body holds, an ApiError of one printable line comes out."""
    message = str(error_of(status, body))
    assert message.isprintable()
    assert len(message) < 800


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["error", "code", "error_msg", "requestId", "x"]), inner)
        ),
        max_leaves=12,
    )
)
def test_any_document_gives_an_error(document: Any) -> None:
    """Fields of unexpected kinds are passed over."""
    assert error_of(500, document).status in {429, 500}


def test_deep_document_is_survived() -> None:
    """A body of brackets is garbage, not a crash."""
    assert error_of(500, b"[" * 100_000).status == 500
