"""A configuration that goes to another process: equal there, without secrets, whatever is around it."""

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgpack
import pytest
from pydantic import BaseModel, SecretStr

from tcpgw.config.load import load
from tcpgw.config.schema import (
    AkSkAuth,
    Codec,
    Config,
    DnsDiscovery,
    FileDiscovery,
    Frame,
    Gateway,
    Listener,
    Method,
    ModelArtsCloud,
    ModelArtsDiscovery,
    PasswordAuth,
    Route,
    Rpc,
    Service,
    StaticDiscovery,
)
from tcpgw.config.transfer import plain, restored
from tcpgw.config.values import Bind
from tcpgw.endpoints import Endpoint, Member

VALID = sorted((Path(__file__).parent.parent / "data" / "valid").glob("*.toml"))


def carried(config: Config) -> Config:
    """What comes out at the other end, where there is neither environment nor folder."""
    packed = msgpack.packb(plain(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "environ", {"STATE_DIRECTORY": "/elsewhere"})
        patch.setattr(Path, "read_text", None)
        return restored(msgpack.unpackb(packed))


def without_secrets(value: Any) -> Any:
    """The same tables with the same text for every secret."""
    if isinstance(value, BaseModel):
        return type(value), {key: without_secrets(inner) for key, inner in dict(value).items()}
    if isinstance(value, dict):
        return {key: without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(map(without_secrets, value))
    return "secret" if isinstance(value, SecretStr) else value


def static(name: str = "s", **keys: Any) -> Service:
    return Service(
        name=name,
        discovery=StaticDiscovery(type="static", endpoints=(Member(Endpoint("fd00::1", 80), 0),)),
        **keys,
    )


def listener(name: str = "l", **keys: Any) -> Listener:
    table: dict[str, Any] = {"bind": Bind("127.0.0.1", 0), "route": (Route(service="s"),)}
    return Listener(name=name, **table | keys)


def cloud(auth: AkSkAuth | PasswordAuth) -> ModelArtsCloud:
    return ModelArtsCloud(endpoint="https://example.com/", project_id="p", auth=auth)


def aksk(key: str) -> ModelArtsCloud:
    return cloud(AkSkAuth(type="aksk", access_key=SecretStr(key), secret_key=SecretStr("hush")))


def password(user: str) -> ModelArtsCloud:
    table = {"type": "password", "iam": "https://iam", "domain": "d", "user": user, "password": "hush"}
    return cloud(PasswordAuth.model_validate(table))


def test_there_are_samples() -> None:
    """The samples are found, so the test of each of them says something."""
    assert len(VALID) >= 10


@pytest.mark.parametrize("sample", VALID, ids=lambda sample: sample.stem)
def test_a_sample_arrives_as_it_is(sample: Path) -> None:
    """Whatever a file can say, the other process has it too."""
    config = load(sample)
    assert without_secrets(carried(config)) == without_secrets(config)
    assert config.cloud or carried(config) == config


CONFIGURATIONS = {
    "smallest": Config(service=(static(),), listener=(listener(),)),
    "state_dir": Config(
        gateway=Gateway(state_dir=Path("/elsewhere")), service=(static(),), listener=(listener(),)
    ),
    "no state_dir": Config(gateway=Gateway(state_dir=None), service=(static(),), listener=(listener(),)),
    "binds": Config(
        service=(static(),),
        listener=(
            listener("a", bind=Bind(path="/run/模型.sock")),
            listener("b", bind=Bind("::", 1), accept_proxy=(ip_network("fd00::/8"), ip_network("10.0.0.1"))),
        ),
    ),
    "discovery": Config(
        cloud={"a": aksk("one"), "b": password("one"), "c": aksk("two"), "d": password("two")},
        service=(
            static(rpc=Rpc(exclusive=True, connections=100), send_proxy="v1", wait=0.1),
            Service(name="m", discovery=ModelArtsDiscovery(type="modelarts", service_id="1", cloud="c")),
            Service(
                name="d",
                discovery=DnsDiscovery(
                    type="dns", name="x.internal", port=1, resolvers=(Endpoint("fd00::2", 53),)
                ),
            ),
            Service(name="f", discovery=FileDiscovery(type="file", path=Path("/etc/instances.json"))),
        ),
        listener=(listener(),),
    ),
    "rpc": Config(
        service=(static(),),
        listener=(
            listener(
                mode="rpc",
                deadline=(0, "odd key", 3, "模型", 'a"b\\'),
                max_frame=100,
                frame_timeout=1e-3,
                methods={
                    "b*": "deny",
                    "a": Method(service="s", timeout=2, idempotent=True, hedge="p95", max_inflight=1),
                    "c": Method(idempotent=True, hedge=0.1),
                },
            ),
            listener("f", mode="rpc", codec=Codec(name="fifo", frame=Frame(width="varint", offset=1))),
        ),
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_made_in_python_arrives_as_it_is(name: str) -> None:
    """Finished values, and tables without a file, are taken like those that were read."""
    config = CONFIGURATIONS[name]
    assert without_secrets(carried(config)) == without_secrets(config)
    assert list(carried(config).listener[0].methods) == list(config.listener[0].methods)


def test_the_folder_for_snapshots_is_that_of_the_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    """What systemd gave the sender counts, what it gave the receiver does not."""
    assert carried(CONFIGURATIONS["smallest"]).gateway.state_dir is None
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/tcpgw")
    config = Config(service=(static(),), listener=(listener(),))
    assert carried(config) == config
    assert config.gateway.state_dir == Path("/var/lib/tcpgw")


def test_copies_with_other_values_arrive() -> None:
    """A copy that was told defaults anew is as good as one that never heard of them."""
    config = CONFIGURATIONS["smallest"]
    first = config.listener[0].model_copy(update={"methods": {}, "max_connections": 7, "max_frame": 16 << 20})
    gateway = config.gateway.model_copy(update={"rpc_memory": 32 << 20})
    copy = config.model_copy(update={"listener": (first,), "gateway": gateway})
    assert carried(copy) == copy
    assert carried(copy) != config


def test_relative_paths_arrive_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They mean the sender's folder, wherever the receiver is."""
    monkeypatch.chdir(tmp_path)
    file = FileDiscovery(type="file", path=Path("instances.json"))
    config = Config(
        gateway=Gateway(state_dir=Path("state")),
        service=(Service(name="s", discovery=file),),
        listener=(listener(),),
    )
    data = plain(config)
    monkeypatch.chdir("/")
    arrived = restored(data)
    assert arrived.gateway.state_dir == tmp_path / "state"
    assert isinstance(arrived.service[0].discovery, FileDiscovery)
    assert arrived.service[0].discovery.path == tmp_path / "instances.json"


@pytest.mark.parametrize(
    "name", ["modelarts_token", "modelarts_password_env", "modelarts_aksk", "two_clouds"]
)
def test_no_secret_is_sent(name: str) -> None:
    """What is sent holds asterisks where the cloud's credentials stand."""
    config = load(VALID[0].parent / f"{name}.toml")
    held = [
        secret.get_secret_value()
        for table in config.cloud.values()
        for secret in dict(table.auth).values()
        if isinstance(secret, SecretStr)
    ]
    assert held
    sent = msgpack.packb(plain(config))
    assert not any(secret.encode() in sent for secret in held)
    assert b"*****" in sent
