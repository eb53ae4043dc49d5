"""A configuration that goes to another process: equal there but for some secrets, wherever it goes."""

import os
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgpack
import pytest
from pydantic import BaseModel, SecretStr, ValidationError

from tcpgw.config.health import StatusRange
from tcpgw.config.load import load
from tcpgw.config.schema import (
    Access,
    Admin,
    AkSkAuth,
    Alerts,
    Balance,
    Certificate,
    ClientTls,
    Codec,
    Config,
    Connect,
    DnsDiscovery,
    FileDiscovery,
    Frame,
    Gateway,
    Health,
    HttpCheck,
    Jwt,
    Limits,
    Listener,
    Method,
    ModelArtsCloud,
    ModelArtsDiscovery,
    Overload,
    Passive,
    PasswordAuth,
    Permissions,
    Quota,
    Route,
    Rpc,
    RpcCheck,
    SendExpectCheck,
    ServerTls,
    Service,
    ServiceAlerts,
    SourceQuota,
    StaticDiscovery,
    TlsCheck,
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


def told(config: Config) -> Config:
    """All of it that other processes are told."""
    services = tuple(one.model_copy(update={"alerts": ServiceAlerts()}) for one in config.service)
    return config.model_copy(update={"alerts": Alerts(), "service": services})


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
    """Whatever a file can say but of alerts, the other process has it too."""
    config = told(load(sample))
    assert without_secrets(carried(config)) == without_secrets(config)
    assert "*****" in str(plain(config)) or carried(config) == config


def test_nothing_of_alerts_is_told() -> None:
    """Who relays needs no receiver's secret, and nothing changes for it when a rule does."""
    config = load(VALID[0].parent / "alerts.toml")
    assert told(config) != config
    assert plain(config) == plain(told(config))
    assert carried(config) == told(config)


ETC = Path("/etc")
SECRET = "env:hush-that-looks-like-a-place-to-fetch-it"


def jwt(secret: str) -> Jwt:
    return Jwt(algorithms=("HS256", "ES256"), secret=SecretStr(secret), jwks="https://a/b", audience="a")


def guarded(name: str, secret: str) -> Listener:
    quota: dict[str, Any] = {
        "connections": 1,
        "new_per_second": 0.1,
        "burst": 2,
        "bytes_in": 3,
        "bytes_out": 1 << 40,
    }
    return listener(
        name,
        sni={"*.a": (Route(service="s", weight=2),), "b": (Route(service="s"),)},
        tls=ServerTls(
            certificates=(Certificate(chain=ETC / "模型.pem"), Certificate(chain=ETC / "b", key=ETC / "c")),
            client_ca=ETC / "ca",
            client_certificate="optional",
            alpn=("h2",),
        ),
        access=Access(
            allow=(ip_network("fd00::/8"),),
            deny=(ip_network("10.0.0.1"),),
            api_keys=ETC / "keys",
            jwt=jwt(secret),
            subjects={"b*": Permissions(services=()), "模型": Permissions(services=("s*",))},
            timeout=0.1,
        ),
        limits=Limits(
            first_byte_timeout=1, per_source=SourceQuota(**quota, ipv6_prefix=1), per_subject=Quota(**quota)
        ),
    )


def checked(name: str, **health: Any) -> Service:
    return static(name, health=Health(**health))


CONFIGURATIONS = {
    "guards": Config(service=(static(),), listener=(guarded("a", SECRET), guarded("b", SECRET * 2))),
    "health": Config(
        gateway=Gateway(overload=Overload(lag="off", memory=1 << 50)),
        service=(
            static(
                balance=Balance(slow_start=1),
                connect=Connect(max_connections=1, queue=2),
                tls=ClientTls(verify=False),
            ),
            static("tls", tls=ClientTls()),
            checked("off", active="off", passive="off"),
            checked("http", active=HttpCheck(type="http", status=(StatusRange(404, 404),))),
            checked("bytes", active=SendExpectCheck(type="send_expect", send=b"hex:\xff", expect=b"\0")),
            checked(
                "rpc",
                active=RpcCheck(
                    type="rpc", params=("hex:", 1.0, 1, True, {"模型": []}), expect=[(1 << 64) - 1]
                ),
            ),
            checked(
                "ca", active=TlsCheck(type="tls", ca=ETC / "ca", interval=1), passive=Passive(on=("error",))
            ),
        ),
        listener=(listener(),),
    ),
    "smallest": Config(service=(static(),), listener=(listener(),)),
    "state_dir": Config(
        gateway=Gateway(state_dir=Path("/elsewhere")), service=(static(),), listener=(listener(),)
    ),
    "no state_dir": Config(gateway=Gateway(state_dir=None), service=(static(),), listener=(listener(),)),
    "admin": Config(gateway=Gateway(admin="off"), service=(static(),), listener=(listener(),)),
    "admin at a Unix socket": Config(
        gateway=Gateway(admin=Admin(bind=Bind(path="/run/模型.sock"))),
        service=(static(),),
        listener=(listener(),),
    ),
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
def test_no_secret_of_the_cloud_is_sent(name: str) -> None:
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


def test_the_admin_server_s_token_is_not_sent() -> None:
    """Who relays has no use for it; where it is open to others the configuration is taken all the same."""
    admin = Admin(bind=Bind("0.0.0.0", 9080), token=SecretStr("hush-" * 4), hosts=("gw.example.com",))
    config = Config(gateway=Gateway(admin=admin), service=(static(),), listener=(listener(),))
    assert b"hush" not in msgpack.packb(plain(config))
    assert without_secrets(carried(config)) == without_secrets(config)


def test_the_secrets_of_tokens_are_sent() -> None:
    """Who relays checks signatures with them; one that looks like a variable's name is not looked for."""
    arrived = carried(CONFIGURATIONS["guards"])
    assert arrived == CONFIGURATIONS["guards"]
    jwts = [listener.access.jwt for listener in arrived.listener]
    assert [jwt.secret.get_secret_value() for jwt in jwts if jwt and jwt.secret] == [SECRET, SECRET * 2]


def test_what_is_sent_is_a_copy() -> None:
    """To send a configuration neither changes it nor shows more of it to who prints it."""
    config = CONFIGURATIONS["guards"]
    plain(config)
    assert "hush" not in f"{config} {config.model_dump_json()}"


@pytest.mark.parametrize("data", [{}, {"listener": 1}, {"listener": [1]}, {"service": []}])
def test_what_is_not_from_a_sender_is_refused(data: Any) -> None:
    """As any other data that is no configuration."""
    with pytest.raises(ValidationError):
        restored(data)
