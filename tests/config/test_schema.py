"""What a configuration may say, and what it means where it says nothing."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tcpgw.config.load import load
from tcpgw.config.schema import (
    PRIVATE_NETWORKS,
    AgencyAuth,
    Balance,
    Config,
    Connect,
    DnsDiscovery,
    FileDiscovery,
    Gateway,
    Listener,
    ModelArtsCloud,
    ModelArtsDiscovery,
    PasswordAuth,
    Route,
    Service,
    TokenAuth,
)
from tcpgw.config.values import Bind
from tcpgw.endpoints import Endpoint

VALID = Path(__file__).parent.parent / "data" / "valid"


def test_defaults_are_those_that_operators_expect() -> None:
    """What is left out has the values of the design's table."""
    listener = Listener.model_validate({"name": "l", "bind": "0.0.0.0:0", "route": "s"})
    assert (listener.mode, listener.plane, listener.max_connections) == ("tcp", "auto", 10_000)
    assert (listener.idle_timeout, listener.fin_timeout, listener.keepalive) == (3600, 30, 60)
    assert (listener.accept_proxy, listener.proxy_timeout) == ((), 5)
    assert listener.route == (Route(service="s", weight=1),)
    assert listener.bind == Bind("0.0.0.0", 0)
    service = Service.model_validate({"name": "s", "discovery": {"type": "modelarts", "service_id": "1"}})
    assert service.balance == Balance(policy="maglev", key="source_ip", table_size=65537, bounded_load=1.25)
    assert service.connect == Connect(timeout=1, candidates=3)
    assert (service.send_proxy, service.wait) == (None, 30)
    assert isinstance(service.discovery, ModelArtsDiscovery)
    assert (service.discovery.cloud, service.discovery.refresh) == ("modelarts", 10)
    assert (service.discovery.jmespath, service.discovery.networks) == (None, PRIVATE_NETWORKS)
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


def test_a_configuration_cannot_be_changed() -> None:
    """Parts of the gateway may share a configuration without watching each other."""
    config = load(VALID / "full.toml")
    for table in (config, config.gateway.log, config.service[0].balance, config.listener[0].route[0]):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(table, next(iter(type(table).model_fields)), None)


def test_equal_files_are_equal_configurations() -> None:
    """A reload of an unchanged file can be seen to change nothing, secrets included."""
    assert load(VALID / "full.toml") == load(VALID / "full.toml")
    assert load(VALID / "full.toml") != load(VALID / "smallest.toml")


def test_a_dump_of_what_was_written_loads_again() -> None:
    """What was said, and nothing else, survives a dump in Python's types."""
    for sample in VALID.glob("*.toml"):
        config = load(sample)
        assert Config.model_validate(config.model_dump(exclude_unset=True)) == config


def test_the_folder_for_snapshots_comes_from_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without state_dir, the folder that systemd made for the service is used; without that, none."""
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/tcpgw:/var/lib/other")
    assert Gateway().state_dir == Path("/var/lib/tcpgw")
    monkeypatch.delenv("STATE_DIRECTORY")
    assert Gateway().state_dir is None


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


def test_pydantics_own_errors_hold_no_input() -> None:
    """Who makes tables in Python without the loader sees no secret in a traceback either."""
    with pytest.raises(ValidationError) as caught:
        TokenAuth.model_validate({"type": "token", "tokn": "hush"})
    assert "hush" not in str(caught.value)
    assert "hush" not in repr(caught.value)
