"""Who can be told of alerts."""

from typing import Any

import pytest
from pydantic import ValidationError

from tcpgw.config.alerts import Alerts
from tcpgw.config.receivers import Alertmanager, Webhook


@pytest.mark.parametrize(
    "url", ["https://a", "http://10.0.0.1:80/x", "https://a.example.com/hook?access_token=a%20b&x=1"]
)
def test_urls_of_webhooks(url: str) -> None:
    """Those of chat services have a query, and all of it is a secret."""
    webhook = Webhook.model_validate({"url": url})
    assert webhook.url.get_secret_value() == url
    assert url not in repr(webhook)


@pytest.mark.parametrize(
    "url", ["", "a", "ftp://a", "https://u:hush@a", "https://a#hush", 'https://a?hush"x', 1]
)
def test_other_urls_are_refused(url: Any) -> None:
    """And no message holds any of them."""
    with pytest.raises(ValidationError) as caught:
        Webhook.model_validate({"url": url})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("name", ["X-Key", "authorization", "x_key"])
def test_headers(name: str) -> None:
    """Whatever the receiver wants beside what is sent in any case."""
    headers = Alertmanager.model_validate({"urls": ["http://a"], "headers": {name: "v"}}).headers
    assert headers[name].get_secret_value() == "v"


@pytest.mark.parametrize("name", ["", "a b", "a:", "é", "host", "Content-Length", "Transfer-Encoding"])
def test_other_headers_are_refused(name: str) -> None:
    """Those that would make another message of it."""
    with pytest.raises(ValidationError):
        Webhook.model_validate({"url": "https://a", "headers": {name: "v"}})


@pytest.mark.parametrize("name", ["instance", "team", "_a1"])
def test_labels(name: str) -> None:
    """As Prometheus takes them."""
    assert Alerts(labels={name: "x"}).labels == {name: "x"}


@pytest.mark.parametrize("name", ["", "a-b", "1a", "__name__", "alertname", "severity", "service"])
def test_other_labels_are_refused(name: str) -> None:
    """So are those that alerts have already."""
    with pytest.raises(ValidationError):
        Alerts(labels={name: "x"})
