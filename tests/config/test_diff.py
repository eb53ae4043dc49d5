"""A diff's promise: all that differs is told, nothing else, and each thing where a reload expects it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpgw.config.diff import Changes, ListenerChanges, ServiceChanges, diff
from tcpgw.config.load import load, loads
from tcpgw.config.schema import Config

VALID = sorted((Path(__file__).parent.parent / "data/valid").glob("*.toml"))
SECRET = "hush-4f1c"

CLOUD = """
    [cloud.{name}]
    endpoint = "http://127.0.0.1:1"
    project_id = "p"
    calls_per_minute = {calls}
    auth = {{ type = "token", token = "{token}" }}
"""


def cloud(name: str = "modelarts", *, calls: int = 20, token: str = "t") -> str:
    return CLOUD.format(name=name, calls=calls, token=token)


def service(name: str = "s", *, discovery: str = "", more: str = "") -> str:
    discovery = discovery or 'type = "static", endpoints = ["10.0.0.1:80"]'
    return f'[[service]]\nname = "{name}"\ndiscovery = {{ {discovery} }}\n{more}\n'


def modelarts(name: str, cloud: str = "modelarts") -> str:
    return service(name, discovery=f'type = "modelarts", service_id = "{name}", cloud = "{cloud}"')


def listener(name: str = "l", *, bind: str = "127.0.0.1:9000", route: str = '"s"', more: str = "") -> str:
    return f'[[listener]]\nname = "{name}"\nbind = "{bind}"\nroute = {route}\n{more}\n'


def of(old: str, new: str) -> Changes:
    return diff(loads(old, Path("/etc")), loads(new, Path("/etc")))


BASE = service() + listener()


# ---- what is the same ----


@pytest.mark.parametrize("sample", VALID, ids=lambda sample: sample.stem)
def test_a_configuration_does_not_differ_from_itself(sample: Path) -> None:
    """Read twice it is the same, secrets included."""
    changes = diff(load(sample), load(sample))
    assert changes == Changes()
    assert not changes


def test_there_are_samples() -> None:
    """The samples are found, so the test of each says something."""
    assert len(VALID) >= 10


SERVICES = [service("a"), service("b", more='balance = { policy = "ring" }'), modelarts("c"), service("d")]
LISTENERS = [
    listener("k", bind="127.0.0.1:1", route='"a"'),
    listener("l", bind="127.0.0.1:2", route='[ { service = "a", weight = 2 }, { service = "b" } ]'),
    listener("m", bind="127.0.0.1:3", route='"c"', more='mode = "rpc"'),
]


@settings(max_examples=50, deadline=None)
@given(st.permutations(SERVICES), st.permutations(LISTENERS), st.permutations([cloud(), cloud("other")]))
def test_the_order_of_tables_is_no_difference(
    services: list[str], listeners: list[str], clouds: list[str]
) -> None:
    """Tables in any order are the same configuration."""
    ordered = "".join([cloud(), cloud("other"), *SERVICES, *LISTENERS])
    assert not of(ordered, "".join([*clouds, *services, *listeners]))


choices = st.lists(st.sampled_from(range(3)), min_size=3, max_size=3)


def built(variants: list[int]) -> Config:
    """Services a, b and c, each absent, plain, or with another policy; a listener for each that is there."""
    text = service("always") + listener("always", bind="127.0.0.1:1", route='"always"')
    for port, (name, variant) in enumerate(zip("abc", variants, strict=True), 2):
        if variant:
            text += service(name, more='balance = { policy = "random" }' if variant == 2 else "")
            text += listener(name, bind=f"127.0.0.1:{port}", route=f'"{name}"')
    return loads(text, Path())


@given(choices, choices)
def test_there_and_back(before: list[int], after: list[int]) -> None:
    """What one way adds the other removes, and what is changed is so both ways."""
    there, back = diff(built(before), built(after)), diff(built(after), built(before))
    assert there.services.added == back.services.removed
    assert there.services.removed == back.services.added
    assert there.services.changed == back.services.changed
    assert there.listeners.added == back.listeners.removed
    assert len(there.lines) == len(back.lines)
    assert bool(there) == (before != after)


# ---- listeners ----


def test_listeners_come_and_go() -> None:
    """By their names."""
    changes = of(BASE, service() + listener("m", bind="127.0.0.1:9001"))
    assert changes.listeners == ListenerChanges(added=("m",), removed=("l",))
    assert changes.lines == ("listener.l: removed", "listener.m: added")


def test_settings_change_in_place() -> None:
    """A listener of the same bind and mode takes its settings; each is told with both values."""
    changes = of(BASE, service() + listener(more="max_connections = 7\nidle_timeout = '1m'"))
    assert changes.listeners == ListenerChanges(changed=("l",))
    assert changes.lines == (
        "listener.l.idle_timeout: 3600 -> 60",
        "listener.l.max_connections: 10000 -> 7",
    )


def test_another_bind_is_another_listener() -> None:
    """Whatever else differs."""
    changes = of(BASE, service() + listener(bind="127.0.0.1:9001", more='mode = "rpc"'))
    assert changes.listeners == ListenerChanges(added=("l",), removed=("l",))
    assert "listener.l.bind: 127.0.0.1:9000 -> 127.0.0.1:9001" in changes.lines


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", 'mode = "rpc"'),
        ('mode = "rpc"', 'mode = "rpc"\ncodec = "thrift-framed"'),
        ('mode = "rpc"\ncodec = "u32be"', 'mode = "rpc"\ncodec = { name = "fifo", frame = "u32be" }'),
    ],
)
def test_another_mode_or_codec_replaces(old: str, new: str) -> None:
    """Connections cannot go on under it, and the sockets can."""
    changes = of(service() + listener(more=old), service() + listener(more=new))
    assert changes.listeners == ListenerChanges(replaced=("l",))


SERVER = 'tls = { certificates = [{ chain = "a.pem" }] }'


@pytest.mark.parametrize(
    ("old", "new"),
    [("", 'tls = "passthrough"'), ("", SERVER), ('tls = "passthrough"', SERVER)],
)
def test_to_end_tls_or_not_replaces(old: str, new: str) -> None:
    """Connections that began otherwise cannot go on, either way round."""
    before, after = service() + listener(more=old), service() + listener(more=new)
    assert of(before, after).listeners == of(after, before).listeners == ListenerChanges(replaced=("l",))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            SERVER,
            SERVER.replace("a.pem", "b.pem"),
            "tls.certificates: [{ chain = /etc/a.pem, key = unset }] -> ",
        ),
        (SERVER, SERVER.replace(" }", ', key = "a.key" }', 1), "tls.certificates: "),
        (SERVER, SERVER + '\nsni = { "a.b" = "s" }', 'sni."a.b": added'),
        ("", 'access = { allow = ["10.0.0.0/8"] }', "access.allow: [] -> [10.0.0.0/8]"),
        ("", 'access = { api_keys = "keys" }', "access.api_keys: unset -> /etc/keys"),
        ("", "limits = { handshakes = 7 }", "limits.handshakes: 1024 -> 7"),
        (
            "",
            "limits = { per_source = { connections = 7 } }",
            "limits.per_source: unset -> { connections = 7, new_per_second = unset, ",
        ),
    ],
)
def test_guards_change_in_place(old: str, new: str, line: str) -> None:
    """Certificates, rules and limits are no reason to lose the listener or a connection."""
    changes = of(service() + listener(more=old), service() + listener(more=new))
    assert changes.listeners == ListenerChanges(changed=("l",))
    assert changes.restart == ()
    (told,) = changes.lines
    assert told.startswith(f"listener.l.{line}")


def test_the_plane_s_word_is_no_other_mode() -> None:
    """`plane = "stream"` says what auto means as well."""
    changes = of(BASE, service() + listener(more='plane = "stream"'))
    assert changes.listeners == ListenerChanges(changed=("l",))


def test_rules_are_told_one_by_one() -> None:
    """A rule has its pattern in the path, quoted where it must be."""
    rpc = 'mode = "rpc"\nmethods = {{ {} }}'
    old = listener(more=rpc.format('"a.*" = { timeout = "1s" }, b = "deny", d = { timeout = "1s" }'))
    new = listener(more=rpc.format('"a.*" = { timeout = "2s" }, c = "deny", d = "deny"'))
    changes = of(service() + old, service() + new)
    assert changes.listeners == ListenerChanges(changed=("l",))
    assert set(changes.lines) == {
        'listener.l.methods."a.*".timeout: 1 -> 2',
        "listener.l.methods.b: removed",
        "listener.l.methods.c: added",
        next(line for line in changes.lines if line.startswith("listener.l.methods.d: { ")),
    }
    assert all(line.endswith("deny") for line in changes.lines if "methods.d" in line)


# ---- services ----


def test_services_come_and_go() -> None:
    """By their names."""
    changes = of(service() + service("a") + listener(), service() + service("b") + listener())
    assert changes.services == ServiceChanges(added=("b",), removed=("a",))
    assert changes.discovery == ()


def test_a_service_changes() -> None:
    """What concerns its connections is a change, and its discovery goes on."""
    changes = of(BASE, service(more='balance = { policy = "ring" }') + listener())
    assert changes.services == ServiceChanges(changed=("s",))
    assert changes.discovery == ()
    assert changes.lines == ("service.s.balance.policy: maglev -> ring",)


def test_health_changes_in_place() -> None:
    """What is checked is no matter of discovery; what a check sends, which may be a password, is not told."""
    old = service(more='health = { panic = 0, active = { type = "http", status = [200, "300-399"] } }')
    new = service(more=f'health.active = {{ type = "send_expect", send = "AUTH {SECRET}", expect = "+OK" }}')
    changes = of(old + listener(), new + listener())
    assert changes.services == ServiceChanges(changed=("s",))
    assert changes.discovery == changes.restart == ()
    kinds, panic = sorted(changes.lines)
    assert kinds.startswith("service.s.health.active: { type = http, ")
    assert panic == "service.s.health.panic: 0 -> 0.5"
    assert SECRET not in repr(changes)
    (told,) = of(new + listener(), new.replace(SECRET, "x") + listener()).lines
    assert told == "service.s.health.active.send: 14 bytes -> 6 bytes"


def test_statuses_are_told_as_they_are_written() -> None:
    """An operator sees ranges."""
    old, new = (
        f'health.active = {{ type = "http", status = [{status}] }}' for status in ("200", '"200-299", 404')
    )
    changes = of(service(more=old) + listener(), service(more=new) + listener())
    assert changes.lines == ("service.s.health.active.status: [200] -> [200-299, 404]",)


def test_other_endpoints_are_asked_for_anew() -> None:
    """A service with another source is no other one for its connections."""
    discovery = 'type = "static", endpoints = ["10.0.0.1:80", { address = "10.0.0.2:80", weight = 3 }]'
    changes = of(BASE, service(discovery=discovery) + listener())
    assert changes.services == ServiceChanges()
    assert changes.discovery == ("s",)
    assert changes.lines == (
        "service.s.discovery.endpoints: [10.0.0.1:80] -> [10.0.0.1:80, 10.0.0.2:80 (weight 3)]",
    )


def test_long_values_are_cut() -> None:
    """A hundred endpoints leave a line that can be read."""
    many = ", ".join(f'"10.0.0.{octet}:80"' for octet in range(1, 101))
    (line,) = of(BASE, service(discovery=f'type = "static", endpoints = [{many}]') + listener()).lines
    assert line.endswith("…")
    assert len(line) < 160


def test_how_long_a_start_waits_touches_nothing() -> None:
    """`wait` is told, and that is all."""
    changes = of(BASE, service(more='wait = "1s"') + listener())
    assert changes == Changes(lines=("service.s.wait: 30 -> 1",))


def test_the_services_of_a_changed_cloud_are_asked_anew() -> None:
    """Those that name it, and no others; those that are new are only added."""
    rest = modelarts("b", "other") + service("c") + listener(route='"a"')
    old = cloud() + cloud("other") + modelarts("a") + rest
    new = cloud(calls=10) + cloud("other") + modelarts("a") + modelarts("d") + rest
    changes = of(old, new)
    assert changes.discovery == ("a",)
    assert changes.services == ServiceChanges(added=("d",))


def test_another_state_directory_concerns_what_is_stored() -> None:
    """Static lists are not."""
    services = service("static") + service("file", discovery='type = "file", path = "a.json"')
    old = '[gateway]\nstate_dir = "/a"\n' + services + listener(route='"file"')
    changes = of(old, old.replace('"/a"', '"/b"'))
    assert changes.discovery == ("file",)
    assert changes.restart == ()


# ---- alerts ----


def test_rules_and_receivers_change_in_place() -> None:
    """No connection, no worker and no source is touched; a rule has `for` in its path, as the file has it."""
    old = '[alerts]\nerror_rate = { for = "1m" }\nrepeat = "1h"\n'
    new = '[alerts]\nerror_rate = { for = "2m" }\npanic = "off"\nalertmanager = { urls = ["http://a"] }\n'
    changes = of(old + BASE, new + service(more="alerts = { panic = 'off' }") + listener())
    assert changes == Changes(lines=changes.lines)
    assert set(changes.lines) == {
        "alerts.error_rate.for: 60 -> 120",
        "alerts.repeat: 3600 -> 14400",
        "alerts.panic: { for = 0, severity = critical } -> off",
        next(line for line in changes.lines if line.startswith("alerts.alertmanager: unset -> { ")),
        "service.s.alerts.panic: unset -> off",
    }


def test_no_secret_of_a_receiver_is_told() -> None:
    """Neither its URL, nor its credentials, nor when it comes or goes."""
    table = '[alerts.webhook.w]\nurl = "https://a/{0}"\nbearer = "{0}"\nheaders = {{ X-Key = "{0}" }}\n'
    texts = [BASE, table.format(SECRET) + BASE, table.format(f"{SECRET}-2") + BASE]
    for old in texts:
        for new in texts:
            changes = of(old, new)
            assert bool(changes) == (old != new)
            assert SECRET not in repr(changes)
    assert of(texts[0], texts[1]).lines == ("alerts.webhook.w: added",)
    assert set(of(texts[1], texts[2]).lines) == {
        f"alerts.webhook.w.{key}: another secret" for key in ("url", "bearer", "headers.X-Key")
    }


# ---- the process ----


def test_what_needs_another_process() -> None:
    """How logs look is settled when a process starts; whether connections are logged is not."""
    changes = of(BASE, '[gateway.log]\nlevel = "debug"\nformat = "json"\nconnections = false\n' + BASE)
    assert changes.restart == ("gateway.log.format", "gateway.log.level")
    assert "gateway.log.connections: true -> false" in changes.lines


def test_how_much_is_logged_needs_none() -> None:
    """Each key of how much is told by its own path, and touches no listener and no service."""
    old = "[gateway.log]\nconnections = { sample = 0.5 }\n" + BASE
    new = '[gateway.log]\nconnections = { sample = 0.1, every = "10m" }\nrequests = { slow = "1s" }\n' + BASE
    assert of(old, new) == Changes(
        lines=(
            "gateway.log.connections.every: off -> 600",
            "gateway.log.connections.sample: 0.5 -> 0.1",
            "gateway.log.requests.slow: off -> 1",
        )
    )
    shown = "{ opened = false, every = off, sample = 0.5, per_second =  … -> true"
    assert of(old, BASE).lines == (f"gateway.log.connections: {shown}",)


def test_the_gateway_s_own_settings() -> None:
    """Memory and drain are told with their key paths, and concern no table by name."""
    changes = of(BASE, '[gateway]\nrpc_memory = "512MiB"\ndrain = "5s"\n' + BASE)
    assert changes == Changes(lines=("gateway.drain: 30 -> 5", "gateway.rpc_memory: 268435456 -> 536870912"))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"127.0.0.1:9080"', '"127.0.0.1:9081"', "gateway.admin.bind: 127.0.0.1:9080 -> 127.0.0.1:9081"),
        ('"off"', '"127.0.0.1:9080"', "gateway.admin: off -> { bind = 127.0.0.1:9080, "),
        ('"127.0.0.1:9080"', '"off"', "gateway.admin: { bind = 127.0.0.1:9080, "),
        ("{}", '{ hosts = ["gw"] }', "gateway.admin.hosts: [] -> [gw]"),
        ("{}", f'{{ token = "{SECRET}-of-0016" }}', "gateway.admin.token: another secret"),
        (
            f'{{ token = "{SECRET}-of-0016" }}',
            f'{{ token = "{SECRET}-of-0017" }}',
            "gateway.admin.token: another",
        ),
    ],
)
def test_another_admin_server_is_opened(old: str, new: str, line: str) -> None:
    """Whatever of it differs, and nothing but it; its token is not told."""
    changes = of(f"gateway.admin = {old}\n{BASE}", f"gateway.admin = {new}\n{BASE}")
    (told,) = changes.lines
    assert changes == Changes(admin=True, lines=changes.lines)
    assert told.startswith(line)
    assert SECRET not in told


# ---- secrets ----


def test_no_secret_is_told() -> None:
    """A changed token is told without either, and so is a table that comes, goes or becomes another kind."""
    rest = modelarts("a") + listener(route='"a"')
    texts = [
        cloud(token=SECRET) + rest,
        cloud(token=f"{SECRET}-2") + rest,
        cloud(token=SECRET).replace("token =", "access_key = 'x', secret_key =").replace('"token"', '"aksk"')
        + rest,
        cloud(token=SECRET) + cloud("other", token=f"{SECRET}-3") + rest,
    ]
    for old in texts:
        for new in texts:
            changes = of(old, new)
            assert bool(changes) == (old != new)
            assert SECRET not in repr(changes)
    assert of(texts[0], texts[1]).lines == ("cloud.modelarts.auth.token: another secret",)


def test_no_secret_of_tokens_is_told() -> None:
    """Neither where it changes nor where the table comes or goes."""
    access = "access = {{ timeout = 1, {} }}"
    jwt = 'jwt = {{ algorithms = ["HS256"], audience = "a", secret = "{}" }}'
    texts = [
        service() + listener(more=access.format(more))
        for more in ('api_keys = "keys"', jwt.format(SECRET * 4), jwt.format(SECRET * 5))
    ]
    for old in texts:
        for new in texts:
            changes = of(old, new)
            assert bool(changes) == (old != new)
            assert SECRET not in repr(changes)
    assert of(texts[1], texts[2]).lines == ("listener.l.access.jwt.secret: another secret",)
