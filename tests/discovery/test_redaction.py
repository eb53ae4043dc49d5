import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpgw.discovery.redaction import MASK, excerpt, scrub

SECRET = "s3cr3tvalue"


@pytest.mark.parametrize(
    "text",
    [
        f"token={SECRET}",
        f"X-Auth-Token: {SECRET}",
        f'{{"password":"{SECRET}"}}',
        f"secretKey = '{SECRET}'",
        f"sk:{SECRET},err",
        f"http://user:{SECRET}@10.0.0.1:80/x",
        f"https://10.0.0.1/x?a={SECRET}",
        SECRET * 4,
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str) -> None:
    """Values of secret-sounding names, user parts and queries of URLs, and long opaque runs are masked."""
    assert SECRET not in scrub(text)
    assert MASK in scrub(text)


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect IAM authentication information: decrypt token fail",
        "https://modelarts.cn-north-4.myhuaweicloud.com/v1",
        "service 3f0a2c54-5b1e-4d39-9a5a-0d3c2b1a0f9e in 0123456789abcdef0123456789abcdef",
        "10.0.0.1:8080",
    ],
)
def test_what_operators_need_stays(text: str) -> None:
    """Messages, addresses and the cloud's identifiers are readable."""
    assert scrub(text) == text


def test_known_secrets_are_masked_everywhere() -> None:
    """A secret that was sent is masked whatever stands around it; an empty one masks nothing."""
    assert scrub(f"user ({SECRET})x", [SECRET, ""]) == f"user ({MASK})x"


@pytest.mark.parametrize("secret", ['hunter2"Correct-Horse', "C:\\hush", "grüße"])
def test_known_secrets_are_masked_in_json(secret: str) -> None:
    """A secret is masked in an echoed request too, in each form that JSON has for it."""
    for ascii_only in (True, False):
        text = json.dumps({"name": "a", "value": secret}, ensure_ascii=ascii_only)
        assert scrub(text, [secret]) == json.dumps({"name": "a", "value": MASK})


@pytest.mark.parametrize(
    "name", ["token", "authToken", "X-Auth-Token", "password", "secret", "access_key", "sk", "credential"]
)
def test_secret_fields_of_a_document_are_masked(name: str) -> None:
    """Whatever a field with such a name holds, it is left out, in depth too."""
    shown = excerpt({"a": [{"ip": "10.0.0.1", name: {"deep": [SECRET]}}]})
    assert SECRET not in shown
    assert "10.0.0.1" in shown


def test_excerpt_is_short() -> None:
    """A document of any size becomes one line, which says that something is missing."""
    shown = excerpt([{"ip": "10.0.0.1"}] * 100_000)
    assert len(shown) <= 200
    assert "…" in shown
    assert excerpt({str(n): n for n in range(9)}).endswith('"…": "1 more"}')


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_any_document_can_be_quoted(document: Any) -> None:
    """Quoting never fails and gives one printable line that UTF-8 can hold."""
    shown = excerpt(document)
    assert shown.isprintable()
    shown.encode()


def test_document_deeper_than_python_goes() -> None:
    """Depth is cut, not followed, and so is an integer too long to be written out."""
    document: Any = 10**5000
    for _ in range(5000):
        document = {"a": [document]}
    assert json.loads(excerpt(document)) == {"a": [{"a": ["…"]}]} or "…" in excerpt(document)
    assert excerpt([10**5000]) == '["<int>"]'


@given(st.text())
def test_scrub_gives_one_printable_line(text: str) -> None:
    """Line breaks, control characters and lone surrogates do not get into a log line."""
    assert scrub(text).isprintable()
    scrub(text).encode()
