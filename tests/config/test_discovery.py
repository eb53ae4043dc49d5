"""What a configuration may say of where instances come from, and what it means where it says nothing."""

from typing import Any

import pytest

from tcpgw.config.discovery import (
    PRIVATE_NETWORKS,
    AgencyAuth,
    DnsDiscovery,
    FileDiscovery,
    ModelArtsCloud,
    ModelArtsDiscovery,
    PasswordAuth,
)
from tcpgw.endpoints import Endpoint


def test_defaults_are_those_that_operators_expect() -> None:
    """What is left out has the values of the design's table."""
    modelarts = ModelArtsDiscovery.model_validate({"type": "modelarts", "service_id": "1"})
    assert (modelarts.cloud, modelarts.refresh) == ("modelarts", 10)
    assert (modelarts.jmespath, modelarts.networks) == (None, PRIVATE_NETWORKS)
    cloud = ModelArtsCloud.model_validate(
        {"endpoint": "https://example.com", "project_id": "1", "auth": {"type": "agency"}}
    )
    assert (cloud.calls_per_minute, cloud.timeout) == (20, 10)
    assert cloud.auth == AgencyAuth(type="agency", metadata="http://169.254.169.254")
    assert FileDiscovery.model_validate({"type": "file", "path": "/x.json"}).refresh == 1
    dns = DnsDiscovery.model_validate({"type": "dns", "name": "x", "port": 1, "resolvers": ["10.0.0.2:53"]})
    assert (dns.record, dns.refresh, dns.timeout) == ("A", 10, 5)
    assert dns.resolvers == (Endpoint("10.0.0.2", 53),)


def test_default_networks_are_private() -> None:
    """By default an answer can send clients to private addresses alone, not to this machine."""
    assert all(network.is_private or str(network) == "100.64.0.0/10" for network in PRIVATE_NETWORKS)
    assert not any(network.is_loopback or network.is_link_local for network in PRIVATE_NETWORKS)


@pytest.mark.parametrize(
    ("extra", "password"),
    [
        ({"password": "literal"}, "literal"),
        ({"password_env": "TCPGW_TEST_PASSWORD"}, "password-from-the-environment"),
    ],
)
def test_a_password_may_be_named_by_its_variable(extra: dict[str, Any], password: str) -> None:
    """`password_env = "NAME"` means `password = "env:NAME"`."""
    table = {"type": "password", "iam": "https://iam.example.com", "domain": "d", "user": "u"} | extra
    assert PasswordAuth.model_validate(table).password.get_secret_value() == password
