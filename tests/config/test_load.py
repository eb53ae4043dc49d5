"""Reading a whole configuration: valid samples load, anything else is a ConfigError, secrets stay hidden."""

import json
import tomllib
import traceback
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tcpgw.config.load import json_schema, load, loads
from tcpgw.config.schema import (
    Access,
    Admin,
    AkSkAuth,
    ClientTls,
    Codec,
    Config,
    DnsDiscovery,
    FileDiscovery,
    Frame,
    HttpCheck,
    Jwt,
    Listener,
    Method,
    ModelArtsDiscovery,
    PasswordAuth,
    Route,
    Rpc,
    RpcCheck,
    SendExpectCheck,
    ServerTls,
    TokenAuth,
)
from tcpgw.config.values import Bind, parse_path
from tcpgw.endpoints import Endpoint
from tcpgw.errors import ConfigError

DATA = Path(__file__).parent.parent / "data"
VALID = sorted((DATA / "valid").glob("*.toml"))
SECRET = "hush-4f1c"


def valid(name: str) -> Config:
    return load(DATA / "valid" / f"{name}.toml")


def test_there_are_samples() -> None:
    """The samples are found, so the tests of each of them say something."""
    assert len(VALID) >= 10


@pytest.mark.parametrize("sample", VALID, ids=lambda sample: sample.stem)
def test_a_valid_sample_loads(sample: Path) -> None:
    """Each valid sample is taken, and what it leaves out has a value."""
    config = load(sample)
    assert config.service
    assert config.listener


def test_the_samples_say_everything() -> None:
    """The full sample sets every key that its tables have, together with those for what excludes another."""
    said: dict[type[BaseModel], set[str]] = {}
    for name in ("full", "rpc", "access", "health", "alerts"):
        for table in tables(valid(name)):
            said.setdefault(type(table), set()).update(table.model_fields_set)
    assert {Listener, Rpc, Method, Codec, Frame, Access, Jwt, ServerTls, SendExpectCheck} <= said.keys()
    assert {
        kind.__name__: missing for kind, keys in said.items() if (missing := kind.model_fields.keys() - keys)
    } == {}


def test_the_full_sample_is_read_as_it_was_written() -> None:
    """Numbers have their units, texts are what they stand for."""
    config = valid("full")
    (service,), (listener,) = config.service, config.listener
    assert isinstance(config.cloud["north"].auth, TokenAuth)
    assert config.cloud["north"].auth.token.get_secret_value() == "a-literal-token"
    assert isinstance(service.discovery, ModelArtsDiscovery)
    assert (service.discovery.refresh, service.wait, service.connect.timeout) == (90, 60, 0.25)
    assert (service.balance.table_size, service.balance.bounded_load) == (2053, 2)
    assert listener.bind == Bind("0.0.0.0", 9000)
    assert (listener.idle_timeout, listener.fin_timeout, listener.keepalive) == (7200, 10, 30.5)
    assert list(map(str, listener.accept_proxy)) == ["10.0.0.0/24", "192.0.2.7/32"]
    assert (config.gateway.workers, config.gateway.unsupervised) == (4, 300)
    admin = config.gateway.admin
    assert isinstance(admin, Admin)
    assert (admin.bind, admin.hosts) == (Bind("0.0.0.0", 9080), ("gw.example.com",))
    assert admin.token is not None
    assert admin.token.get_secret_value() == "a-literal-token-for-admins"
    assert (service.balance.rebalance, listener.max_age) == (2.5, 86400)
    assert (config.gateway.drain, config.gateway.hard_stop, config.gateway.rpc_memory) == (10, 45, 1 << 30)
    assert service.tls == ClientTls(
        ca=Path("/etc/tcpgw/instances.pem"),
        server_name="resnet.internal",
        certificate=Path("/etc/tcpgw/gateway.pem"),
        key=Path("/etc/tcpgw/gateway.key"),
        strict=True,
    )
    assert isinstance(service.health.active, HttpCheck)
    assert list(map(str, service.health.active.status)) == ["200-299", "404", "418"]
    assert (config.gateway.overload.lag, config.gateway.overload.memory) == (0.25, 4 << 30)
    assert service.rpc == Rpc(
        exclusive=True,
        connections=100,
        bulk=0,
        max_inflight=100,
        queue=0,
        queue_timeout=0.25,
        retry_budget=0.1,
        hedge_budget=0,
    )


def test_the_sample_of_rpc_is_read_as_it_was_written() -> None:
    """Codecs come to one form, fields to their steps, rules keep their order."""
    config = valid("rpc")
    assert [str(listener.codec) for listener in config.listener if listener.mode == "rpc"] == [
        "msgpack-rpc-stream",
        "msgpack-rpc",
        "thrift-framed",
        "opaque kafka",
        "fifo u32be",
        "opaque (length: 2 bytes at 4)",
        "fifo (length: varint at 1)",
    ]
    predict = config.listener[0]
    assert (predict.max_frame, predict.deadline) == (32 << 20, (1, "deadline_ms"))
    assert list(predict.methods) == ["predict", "embed.*", "admin.*", "*"]
    assert predict.methods["admin.*"] == "deny"
    assert parse_path(config.service[1].balance.key) == (1, "odd key", "id")


def test_the_sample_of_access_is_read_as_it_was_written() -> None:
    """Files are paths, a token's secret is fetched, a URL stays one."""
    listeners = {listener.name: listener for listener in valid("access").listener}
    assert listeners["by-key"].access.api_keys == DATA / "valid" / "keys"
    token, pair = listeners["by-token"].access.jwt, listeners["by-key-pair"].access.jwt
    assert token is not None
    assert token.secret is not None
    assert token.secret.get_secret_value() == "hs256-secret-from-a-file-0123456789abcdef"
    assert pair is not None
    assert pair.jwks == DATA / "valid" / "jwks.json"
    assert list(listeners["by-token"].access.subjects) == ["alice", "*"]


def test_the_sample_of_health_is_read_as_it_was_written() -> None:
    """Escapes and digits come to bytes, tables and lists stay what they are."""
    checks = {service.name: service.health.active for service in valid("health").service}
    redis, binary, rpc = checks["redis"], checks["binary"], checks["rpc-expect"]
    assert isinstance(redis, SendExpectCheck)
    assert (redis.send, redis.expect) == (b"PING\r\n", b"+PONG")
    assert isinstance(binary, SendExpectCheck)
    assert (binary.send, binary.expect) == (b"\0\xff\r", b"\x06")
    assert isinstance(rpc, RpcCheck)
    assert rpc.params == ("deep", 1, 1.5, True, [1, [2]], {"level": 2})
    assert rpc.expect == {"ready": True, "left": [1, 2]}


def tables(value: object) -> list[BaseModel]:
    """List every table of a configuration."""
    if isinstance(value, BaseModel):
        return [value, *(table for inner in dict(value).values() for table in tables(inner))]
    inners = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    return [table for inner in inners for table in tables(inner)]


def test_samples_mean_what_they_say() -> None:
    """Splits, discovery kinds and Unix sockets are read as what they are."""
    assert valid("split").listener[0].route == (
        Route(service="resnet-v1", weight=90),
        Route(service="resnet-v2", weight=10),
        Route(service="resnet-v3", weight=0),
    )
    srv = valid("dns_srv").service[0].discovery
    assert isinstance(srv, DnsDiscovery)
    assert srv.resolvers == (Endpoint("10.0.0.2", 53), Endpoint("fd00::2", 53))
    file = valid("file").service[0].discovery
    assert isinstance(file, FileDiscovery)
    assert file.path == DATA / "valid" / "instances.json"
    assert [str(listener.bind) for listener in valid("listeners").listener][:2] == [
        "unix:/run/tcpgw/redis.sock",
        "[::]:9000",
    ]


def test_secrets_are_fetched() -> None:
    """Secrets come from the environment, and from files beside the configuration."""
    token, aksk = (
        valid("modelarts_token").cloud["modelarts"].auth,
        valid("modelarts_aksk").cloud["modelarts"].auth,
    )
    assert isinstance(token, TokenAuth)
    assert token.token.get_secret_value() == "token-from-a-file"
    assert isinstance(aksk, AkSkAuth)
    assert aksk.secret_key.get_secret_value() == "secret-key-from-a-file"
    for name in ("modelarts_password", "modelarts_password_env"):
        auth = valid(name).cloud["modelarts"].auth
        assert isinstance(auth, PasswordAuth)
        assert auth.password.get_secret_value() == "password-from-the-environment"


# ---- files ----


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    """A missing file or a folder is reported with its path and the system's reason."""
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(ConfigError, match=f"{path} cannot be read: (No such file|Is a directory)"):
            load(path)


def test_a_file_that_is_not_utf8_is_a_fault(tmp_path: Path) -> None:
    """Another encoding is reported with its line and byte offset."""
    path = tmp_path / "x.toml"
    path.write_bytes(b"# one\n# caf\xe9\n")
    with pytest.raises(ConfigError, match=r"line 2: not UTF-8 \(byte 11 of the file\)"):
        load(path)


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    """A file saved by an editor that marks UTF-8 is read like another."""
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xef\xbb\xbf" + (DATA / "valid" / "smallest.toml").read_bytes())
    assert load(path) == valid("smallest")


# ---- the JSON Schema ----


def test_the_schema_is_one_and_takes_the_valid_samples() -> None:
    """Editors that know draft 2020-12 can use the schema, and underline nothing in a valid file."""
    schema = json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)
    for sample in VALID:
        jsonschema.Draft202012Validator(schema).validate(tomllib.loads(sample.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "name",
    [
        "alerts",
        "balance_key",
        "bind",
        "codec",
        "deadline",
        "duration_without_unit",
        "frame",
        "health_active",
        "health_passive",
        "jwt",
        "limits",
        "methods",
        "not_a_choice",
        "password_missing",
        "route_form",
        "static_host_name",
        "subjects_form",
        "tls",
        "tls_to_instances",
        "unknown_key_close",
    ],
)
def test_the_schema_refuses_what_an_editor_can_see(name: str) -> None:
    """Unknown and missing keys, wrong words and misspelt values are underlined while they are written."""
    table = tomllib.loads((DATA / "invalid" / f"{name}.toml").read_text(encoding="utf-8"))
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(table)


def test_the_schema_describes_every_key() -> None:
    """Each key has a description, or is a table that has one."""
    schema = json_schema()
    properties = [
        (f"{name}.{key}", value)
        for name, table in [("Config", schema), *schema["$defs"].items()]
        for key, value in table["properties"].items()
    ]
    assert len(properties) > 50
    assert [
        name
        for name, value in properties
        if not value.keys() & {"description", "$ref", "discriminator", "const"}
    ] == []
    assert all("description" in table for table in schema["$defs"].values())


def test_the_schema_marks_secrets() -> None:
    """Editors are told which values not to show, and no secret has a default."""
    definitions = json_schema()["$defs"]
    for table, key in [("TokenAuth", "token"), ("PasswordAuth", "password"), ("AkSkAuth", "secret_key")]:
        assert definitions[table]["properties"][key]["writeOnly"]
        assert "default" not in definitions[table]["properties"][key]
    assert definitions["Jwt"]["properties"]["secret"]["anyOf"][0]["writeOnly"]
    assert definitions["Webhook"]["properties"]["url"]["writeOnly"]
    assert all(
        one["writeOnly"]
        for one in definitions["Webhook"]["properties"]["headers"]["patternProperties"].values()
    )


# ---- anything else ----

keys = st.sampled_from(
    sorted(
        {key for table in json_schema()["$defs"].values() for key in table["properties"]}
        | {"cloud", "x y", ""}
    )
)
texts = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    [
        "static",
        "dns",
        "modelarts",
        "password",
        "10.0.0.1:80",
        "10.0.0.0/8",
        "unix:/x",
        "env:X",
        "file:x",
        "10s",
        "SRV",
        "ring",
        "a",
        "rpc",
        "kafka",
        "fifo",
        "varint",
        "deny",
        "p95",
        "params[0].x",
        "16MiB",
        "a.*",
        "off",
        "passthrough",
        "tls",
        "http",
        "send_expect",
        "hex:00",
        "200-399",
        "HS256",
        "ES256",
        "https://a",
    ]
)
scalars = st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | texts | st.dates()
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | texts, inner, max_size=4),
    max_leaves=8,
)


def to_toml(value: Any) -> str:
    """Write a value as TOML has it inside a line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_toml(key)} = {to_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_toml, value)) + "]"
    return value.isoformat() if isinstance(value, date) else repr(value)


def to_document(table: dict[str, Any]) -> str:
    return "".join(f"{to_toml(key)} = {to_toml(value)}\n" for key, value in table.items())


@st.composite
def damaged(draw: st.DrawFn) -> dict[str, Any]:
    """Take a valid sample and replace, add or remove something at up to three places."""
    table: dict[str, Any] = tomllib.loads(draw(st.sampled_from(VALID)).read_text(encoding="utf-8"))
    for _ in range(draw(st.integers(1, 3))):
        here: Any = table
        while True:
            steps = list(here) if isinstance(here, dict) else list(range(len(here)))
            step = draw(st.sampled_from(steps) if steps else keys) if draw(st.integers(0, 5)) else draw(keys)
            if isinstance(here, list):
                step = step if isinstance(step, int) else 0
                here = here or [None]
            inside = here.get(step) if isinstance(here, dict) else here[step]
            if isinstance(inside, dict | list) and inside and draw(st.integers(0, 4)):
                here = inside
                continue
            if isinstance(here, dict) and step in here and draw(st.booleans()):
                del here[step]
            else:
                here[step] = draw(values)
            break
    return table


def check_refusal(error: ConfigError) -> None:
    """Assert that each fault has a place, and words for an operator instead of pydantic's."""
    assert error.faults
    for fault in error.faults:
        assert fault.message
        assert not fault.message.startswith(("Input ", "Value ", "Field ", "Extra ", "String ", "Tuple ")), (
            fault
        )


@settings(deadline=None)  # building a sample takes its time on a busy machine
@given(damaged())
def test_nothing_but_faults_comes_out_of_a_damaged_file(table: dict[str, Any]) -> None:
    """Whatever stands where something else should, loading gives a configuration or faults with key paths."""
    text = to_document(table)
    assert tomllib.loads(text).keys() == table.keys()
    try:
        loads(text, DATA / "valid")
    except ConfigError as error:
        refusal = error
    else:
        return
    check_refusal(refusal)
    assert all(fault.path for fault in refusal.faults)


@settings(deadline=None)
@given(st.dictionaries(keys, values))
def test_nothing_but_faults_comes_out_of_any_table(table: dict[str, Any]) -> None:
    """A file of another kind altogether gives faults."""
    with pytest.raises(ConfigError) as caught:
        loads(to_document(table), Path())
    check_refusal(caught.value)


@settings(deadline=None)
@given(st.text())
def test_nothing_but_faults_comes_out_of_any_text(text: str) -> None:
    """What is not TOML at all gives faults."""
    with pytest.raises(ConfigError) as caught:
        loads(text, Path())
    check_refusal(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 10_000,
        "x = " + "9" * 10_000,
        "x = 0x" + "f" * 10_000,
        "a." * 3000 + "a = 1",
        "[cloud.modelarts]\nauth = { type = 'password', password_env" + ".a" * 3000 + " = 1 }",
        "[[service]]\nwait = 0x" + "f" * 10_000,
        "[[service]]\nconnect = { candidates = 0x" + "f" * 10_000 + " }",
        "gateway = { log = { level = 0x" + "f" * 10_000 + " } }",
        "\ud800 = 1",
        "x = '\ud800'",
        "[[service]]\nname = '\ud800'",
    ],
    ids=lambda text: text[:40].encode("unicode_escape").decode(),
)
def test_extremes_are_faults(text: str) -> None:
    """Numbers of any size, nesting of any depth and broken Unicode are faults like others."""
    with pytest.raises(ConfigError) as caught:
        loads(text, Path())
    check_refusal(caught.value)


# ---- secrets ----

AUTHS = {
    "token": {"type": "token", "token": SECRET},
    "password": {
        "type": "password",
        "iam": "https://iam.example.com",
        "domain": "d",
        "user": "u",
        "password": SECRET,
    },
    "aksk": {"type": "aksk", "access_key": SECRET, "secret_key": SECRET},
    "jwt": {"algorithms": ["HS256"], "audience": "a", "secret": SECRET * 4},
    "webhook": {"url": f"https://a/{SECRET}", "bearer": SECRET, "headers": {"X-Key": SECRET}},
}


def with_secret(auth: dict[str, Any]) -> dict[str, Any]:
    """A configuration with that table for a cloud, a listener's tokens or a receiver of alerts."""
    smallest = tomllib.loads((DATA / "valid" / "smallest.toml").read_text(encoding="utf-8"))
    if "url" in auth:
        return smallest | {"alerts": {"webhook": {"w": auth}}}
    if "type" not in auth:
        (listener,) = smallest["listener"]
        return smallest | {"listener": [listener | {"access": {"jwt": auth}}]}
    cloud = {"endpoint": "https://example.com", "project_id": "1", "auth": auth}
    return smallest | {"cloud": {"modelarts": cloud}}


@pytest.mark.parametrize("auth", AUTHS.values(), ids=AUTHS)
def test_no_way_to_show_a_configuration_shows_a_secret(auth: dict[str, Any]) -> None:
    """repr, str, dumps and JSON hold asterisks instead."""
    config = loads(to_document(with_secret(auth)), Path())
    shown = [str(config), repr(config), str(config.model_dump()), str(config.model_dump(mode="json"))]
    for text in [*shown, config.model_dump_json(), f"{config.cloud} {config.listener} {config.alerts}"]:
        assert SECRET not in text
        assert "***" in text


@pytest.mark.parametrize("auth", AUTHS.values(), ids=AUTHS)
@settings(deadline=None)
@given(key=keys | texts, value=values)
def test_no_fault_shows_a_secret(auth: dict[str, Any], key: str, value: Any) -> None:
    """Whatever else is wrong in the table of a secret, neither message nor traceback holds the secret."""
    for table in (
        with_secret(auth | {key: value, "x": 1}),
        with_secret({key: value, "type": "token", "token": [SECRET]}),
    ):
        with pytest.raises(ConfigError) as caught:
            loads(to_document(table), Path())
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(caught.value)
        assert SECRET not in "".join(traceback.format_exception(caught.value))
