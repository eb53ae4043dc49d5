"""Whatever the cloud answers: instances, or an AnswerError."""

import contextlib
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.config.schema import PRIVATE_NETWORKS
from tcpgw.discovery.answer import parse, read
from tcpgw.endpoints import Endpoint
from tcpgw.errors import AnswerError

KEYS = st.sampled_from(
    ["ip", "host", "address", "port", "url", "weight", "endpoints", "host_endpoints", "error_code", "x"]
) | st.text(max_size=4)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(
        ["10.0.0.1", "10.0.0.1:80", "http://10.0.0.1", "http://[", "8.8.8.8:80", "[fd00::1]:1", 80]
    )
)
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)
EXPRESSIONS = st.none() | st.sampled_from(
    ["*", "@", "x", "[]", "x[*].ip", "keys(@)", "sort(@)", "to_number(x)"]
)
PORTS = st.integers(1, 65535)
ENDPOINTS = st.builds(
    lambda a, b, port: Endpoint(f"10.{a}.{b}.1", port), st.integers(0, 255), st.integers(0, 255), PORTS
)


@settings(max_examples=400, deadline=None)
@given(DOCUMENTS, EXPRESSIONS)
def test_only_answer_errors_escape(document: Any, expression: str | None) -> None:
    """Any document gives usable members or an AnswerError, with short printable texts."""
    try:
        members, texts = parse(document, PRIVATE_NETWORKS, expression)
    except AnswerError as error:
        members, texts = (), (str(error),)
    for endpoint, weight in members:
        assert Endpoint.of(*endpoint) == endpoint
        assert weight >= 0
    assert len(texts) < 10
    assert all(text.isprintable() and len(text) < 1000 for text in texts)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | DOCUMENTS.map(lambda document: json.dumps(document).encode()))
def test_only_answer_errors_escape_from_bytes(body: bytes) -> None:
    """The same for bodies, JSON or not."""
    with contextlib.suppress(AnswerError):
        read(body, PRIVATE_NETWORKS)


def as_object(endpoint: Endpoint) -> Any:
    return {"schema": "http", "ip": endpoint.host, "port": endpoint.port}


def as_url(endpoint: Endpoint) -> Any:
    return {"url": f"http://{endpoint}/"}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(ENDPOINTS, min_size=1, max_size=6, unique=True),
    st.sampled_from([as_object, as_url, str]),
    st.lists(st.text(max_size=6) | st.just(0) | st.just(1), max_size=8),
    st.dictionaries(st.text(min_size=1, max_size=5).map("n_".__add__), SCALARS, max_size=4),
)
def test_any_nesting_is_found(
    expected: list[Endpoint], form: Any, way: list[str | int], noise: dict[str, Any]
) -> None:
    """However deep the list stands, in objects and lists and beside other fields, it is found whole."""
    document: Any = [form(endpoint) for endpoint in expected]
    for step in way:
        document = [document] if isinstance(step, int) else noise | {f"k{step}": document}
    assert [member.endpoint for member in parse(document, PRIVATE_NETWORKS).members] == expected
