"""What is listed to be read: all that a configuration names, each once, where it stands."""

from pathlib import Path

import pytest

from tcpgw.config.load import load
from tcpgw.config.material import Material, material
from tcpgw.config.schema import Config
from tcpgw.config.transfer import plain, restored

FOLDER = Path(__file__).parent.parent / "data" / "valid"
VALID = sorted(FOLDER.glob("*.toml"))


def listed(name: str) -> list[Material]:
    return list(material(load(FOLDER / f"{name}.toml")))


def test_everything_that_is_named_is_listed() -> None:
    """The full sample names one of each but a check's authorities."""
    etc = Path("/etc/tcpgw")
    assert listed("full") == [
        Material("service[0].tls.ca", etc / "instances.pem", "ca"),
        Material("service[0].tls.certificate", etc / "gateway.pem", "chain"),
        Material("service[0].tls.key", etc / "gateway.key", "key"),
        Material("listener[0].tls.certificates[0].chain", etc / "example.pem", "chain"),
        Material("listener[0].tls.certificates[0].key", etc / "example.key", "key"),
        Material("listener[0].tls.certificates[1].chain", etc / "other.pem", "chain"),
        Material("listener[0].tls.certificates[1].key", etc / "other.key", "key"),
        Material("listener[0].tls.client_ca", etc / "clients.pem", "client_ca"),
        Material("listener[0].tls.client_crl", etc / "clients.crl", "client_crl"),
        Material("listener[0].access.api_keys", etc / "keys", "api_keys"),
        Material("listener[0].access.jwt.jwks", "https://idp.example.com/jwks.json", "jwks"),
    ]


def test_relative_paths_are_beside_the_configuration() -> None:
    """A service's checks are listed too; what is left out is not."""
    assert listed("health") == [Material("service[3].health.active.ca", FOLDER / "ca.pem", "ca")]
    assert [(one.key, one.source) for one in listed("access") if one.kind == "api_keys"] == [
        ("listener[2].access.api_keys", FOLDER / "keys"),
        ("listener[6].access.api_keys", Path("/etc/tcpgw/keys")),
    ]


def test_a_configuration_that_names_nothing_needs_nothing() -> None:
    """Without TLS, API keys and tokens nothing is read."""
    assert listed("smallest") == []


@pytest.mark.parametrize("sample", VALID, ids=lambda sample: sample.stem)
def test_workers_list_the_same(sample: Path) -> None:
    """By its key a worker finds what it was handed."""
    config = load(sample)
    assert material(restored(plain(config))) == material(config)
    keys = [one.key for one in material(config)]
    assert len(set(keys)) == len(keys)


def test_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files need not exist for their list to be made."""
    config: Config = load(FOLDER / "tls.toml")
    monkeypatch.setattr(Path, "open", None)
    assert len(material(config)) == 12
