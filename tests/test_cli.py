"""The command line as its user meets it: what is printed where, and the exit code."""

import asyncio
import json
import os
import re
import signal
from pathlib import Path

import pytest

from tcpgw import __version__
from tcpgw.access.keys import new_key
from tcpgw.config.load import load
from tcpgw.config.material import material
from tcpgw.demo.cloud import Cloud
from tcpgw.process.limits import cpus, needed_files
from tests.support.command import started, tcpgw
from tests.support.instances import access_key, account, listener, modelarts
from tests.support.processes import relaying

DATA = Path(__file__).parent / "data"
WITH_CONFIG = [["run"], ["check"], ["endpoints"], ["explain", "--service", "s", "10.0.0.7"]]

STATIC = """
[[service]]
name = "s"
discovery = { type = "static", endpoints = ["10.0.0.2:80", { address = "10.0.0.1:80", weight = 3 }] }
[[service]]
name = "port"
discovery = { type = "static", endpoints = ["10.0.0.3:80", "10.0.0.4:80"] }
balance = { policy = "ring", key = "source_ip_port", bounded_load = 0 }
[[service]]
name = "fixed"
discovery = { type = "static", endpoints = ["10.0.0.5:80", "10.0.0.6:80"] }
balance = { key = "listener" }
[[listener]]
name = "l"
bind = "127.0.0.1:9000"
route = "s"
"""


def write(folder: Path, text: str, name: str = "tcpgw.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path, STATIC)


# ---- the program ----


def test_version() -> None:
    """`--version` prints name and version, and nothing else."""
    assert tcpgw("--version") == (0, f"tcpgw {__version__}\n", "")


def test_help_names_every_command_and_the_exit_codes() -> None:
    """`--help` succeeds, and so does that of each command."""
    code, out, _ = tcpgw("--help")
    assert code == 0
    assert "0 well, 1 failed while running, 2 bad usage or configuration" in out
    for command in ("run", "check", "endpoints", "explain", "schema", "demo", "call", "bench"):
        assert re.search(rf"^\W+{command} ", out, re.MULTILINE)
        assert tcpgw(command, "--help").code == 0


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["frobnicate"],
        ["check"],
        ["run", "--fast"],
        ["explain", "-c", "tcpgw.toml", "10.0.0.7"],
        ["demo", "--json", "--serve"],
        ["demo", "--seconds", "never"],
    ],
)
def test_bad_usage_is_2(args: list[str]) -> None:
    """A wrong command line ends with 2 and prints no result."""
    code, out, err = tcpgw(*args)
    assert code == 2
    assert not args or (not out and "Usage" in err)


def test_schema_is_json() -> None:
    """`schema` prints one JSON object, for editors to read from a file."""
    code, out, err = tcpgw("schema")
    assert (code, err) == (0, "")
    assert set(json.loads(out)["properties"]) == {"gateway", "alerts", "cloud", "service", "listener"}


# ---- configurations ----


@pytest.mark.parametrize("command", WITH_CONFIG, ids=lambda command: command[0])
def test_a_bad_configuration_is_2_with_every_fault(tmp_path: Path, command: list[str]) -> None:
    """Each command that reads one says all that is wrong, a line for each with its key path, on stderr."""
    file = write(tmp_path, STATIC.replace("9000", "65536").replace('"ring"', '"rings"') + 'colour = "red"\n')
    code, out, err = tcpgw(*command, "-c", file)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith(f"{file}: service[1].balance.policy (port): must be 'maglev', 'ring'")
    assert lines[1] == f"{file}: listener[0].bind (l): port 65536 is not between 0 and 65535"
    assert lines[2].startswith(f"{file}: listener[0].colour (l): unknown key")


@pytest.mark.parametrize(
    ("text", "message"), [("[[service]\n", "not TOML: "), (None, "cannot be read: No such file or directory")]
)
def test_an_unreadable_configuration_is_2(tmp_path: Path, text: str | None, message: str) -> None:
    """A file that is missing or no TOML is told as such."""
    file = tmp_path / "tcpgw.toml" if text is None else write(tmp_path, text)
    code, out, err = tcpgw("check", "-c", file)
    assert (code, out) == (2, "")
    assert message in err
    assert str(file) in err


def test_check_prints_what_would_run(config: Path) -> None:
    """Services with their discovery and policy, listeners with their routes, and what the process needs."""
    code, out, err = tcpgw("check", "-c", config)
    assert (code, err) == (0, "")
    rows = [re.split(r" *│ *", line.strip("│ \n")) for line in out.splitlines() if line.startswith("│")]
    assert ["fixed", "static, 2 endpoints"] in [row[:2] for row in rows]
    assert ["l", "127.0.0.1:9000", "stream", "s", "10000"] in rows
    assert f"{cpus()} workers; a stop drains for 30 s and cuts the rest after 60 s" in out
    files = needed_files(-(-10000 // cpus()))
    assert f"{config}: valid; each worker needs up to {files} open files" in out


def test_check_prints_shares(tmp_path: Path) -> None:
    """Of a split, what each service gets."""
    route = '[{ service = "s", weight = 3 }, { service = "fixed", weight = 1 }]'
    text = STATIC.replace('key = "listener"', "").replace('route = "s"', f"route = {route}")
    code, out, _ = tcpgw("check", "-c", write(tmp_path, text))
    assert code == 0
    assert "s 75.0%, fixed 25.0%" in " ".join(re.sub("[│┃]", " ", out).split())


def test_check_prints_the_codec(tmp_path: Path) -> None:
    """Of an rpc listener, its plane and what it speaks."""
    frames = 'mode = "rpc"\ncodec = { name = "fifo", frame = "u32be" }\n'
    for text, shown in [('mode = "rpc"\n', "rpc, msgpack-rpc"), (frames, "rpc, fifo u32be")]:
        code, out, _ = tcpgw("check", "-c", write(tmp_path, STATIC + text))
        assert code == 0
        assert re.search(rf"│ l +│ 127\.0\.0\.1:9000 │ {shown} +│ s +│ 10000 ", out)


def test_check_takes_every_valid_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever kind of service or listener stands there, it can be printed."""
    monkeypatch.setenv("TCPGW_TEST_PASSWORD", "p")
    monkeypatch.setenv("TCPGW_TEST_WEBHOOK", "https://chat.example.com/hook")
    samples = sorted((DATA / "valid").glob("*.toml"))
    assert len(samples) > 10
    for sample in samples:
        code, out, err = tcpgw("check", "-c", sample)
        if material(load(sample)):  # none of these files is here
            assert code == 2
            assert err.count("cannot be read: No such file or directory") == len(err.splitlines())
        else:
            assert (code, err) == (0, ""), sample
            assert "valid; each worker needs up to" in out


def test_check_reads_what_is_named(tmp_path: Path) -> None:
    """A file that cannot be used is refused with its key, path and line; else it is said who is let in."""
    keys = tmp_path / "keys"
    config = write(tmp_path, f'{STATIC}access = {{ api_keys = "{keys}", allow = ["10.0.0.0/8"] }}\n')
    keys.write_text("# none yet\nalice sha256:0\n")
    code, _, err = tcpgw("check", "-c", config)
    assert code == 2
    assert f"{config}: listener[0].access.api_keys: {keys}: line 2: must be ID SUBJECT sha256:HASH" in err
    keys.write_text(new_key("alice").line)
    code, out, err = tcpgw("check", "-c", config)
    assert (code, err) == (0, "")
    assert "l: clients need an allowed network, an API key\n" in out


def test_check_says_what_is_open(config: Path) -> None:
    """A listener without rules is called open."""
    assert "l: open to everybody who reaches it\n" in tcpgw("check", "-c", config)[1]


# ---- endpoints ----


def test_endpoints_as_json_is_json_alone(config: Path) -> None:
    """Nothing but one object: each service's endpoints with their weights."""
    code, out, err = tcpgw("endpoints", "-c", config, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert list(answer) == ["s", "port", "fixed"]
    assert answer["s"] == [
        {"endpoint": "10.0.0.1:80", "weight": 3},
        {"endpoint": "10.0.0.2:80", "weight": 1},
    ]


def test_endpoints_as_a_table(config: Path) -> None:
    """A row for each endpoint."""
    code, out, _ = tcpgw("endpoints", "-c", config)
    assert code == 0
    assert re.findall(r"^│ (\S+) +│ (\S+) +│ (\d+) ", out, re.MULTILINE)[:2] == [
        ("s", "10.0.0.1:80", "3"),
        ("s", "10.0.0.2:80", "1"),
    ]


def test_endpoints_of_one_service(config: Path) -> None:
    """`--service` leaves the others unasked."""
    code, out, _ = tcpgw("endpoints", "-c", config, "--service", "port", "--json")
    assert code == 0
    assert list(json.loads(out)) == ["port"]


@pytest.mark.parametrize("command", [["endpoints"], ["explain", "10.0.0.7"]], ids=lambda command: command[0])
def test_an_unknown_service_is_2(config: Path, command: list[str]) -> None:
    """The message names those that there are."""
    code, out, err = tcpgw(*command, "-c", config, "--service", "nosuch")
    assert (code, out) == (2, "")
    assert err == "no service is called 'nosuch': there are s, port, fixed\n"


def test_endpoints_prints_what_it_got_and_fails_for_the_rest(tmp_path: Path) -> None:
    """A source that fails is told on stderr and costs 1; stdout still has the others, as JSON alone."""
    missing = '[[service]]\nname = "broken"\ndiscovery = { type = "file", path = "nosuch.json" }\n'
    file = write(tmp_path, missing + STATIC)
    code, out, err = tcpgw("endpoints", "-c", file, "--json")
    assert code == 1
    assert list(json.loads(out)) == ["s", "port", "fixed"]
    assert err.startswith(f"service broken: {tmp_path / 'nosuch.json'}: cannot be read")
    code, out, err = tcpgw("explain", "-c", file, "--service", "broken", "10.0.0.7")
    assert (code, out) == (1, "")
    assert "service broken: " in err


async def test_endpoints_asks_the_cloud_once(tmp_path: Path) -> None:
    """One call for each service, and the instances that it names."""
    async with Cloud({"s": ["127.0.0.1:1", "127.0.0.1:2"], "t": []}) as cloud:
        file = write(tmp_path, account(cloud, timeout="5s") + modelarts("s") + modelarts("t") + listener())
        code, out, _ = await asyncio.to_thread(tcpgw, "endpoints", "-c", file, "--json")
        assert code == 0
        members = [{"endpoint": f"127.0.0.1:{port}", "weight": 1} for port in (1, 2)]
        assert json.loads(out) == {"s": members, "t": []}
        assert (cloud.api_calls, cloud.token_calls) == (2, 1)

        cloud.fault = 403
        code, out, err = await asyncio.to_thread(tcpgw, "endpoints", "-c", file, "--service", "t")
        assert code == 1
        assert "service t: GET http://127.0.0.1" in err
        assert "403 ModelArts.0212" in err
        assert "give it a ModelArts role" in err


# ---- explain ----


@pytest.mark.parametrize(
    ("service", "key", "said"),
    [
        ("s", "10.0.0.7", ["maglev on source_ip", "jhash 0x7020bcb7", "bucket 28705 of 65537"]),
        ("port", "10.0.0.7:40000", ["ring on source_ip_port", "jhash", "of 320"]),
        ("fixed", "l", ["maglev on listener", "xxhash64", "of 65537"]),
    ],
)
def test_explain_says_why_and_in_which_order(config: Path, service: str, key: str, said: list[str]) -> None:
    """The key's hash, how the policy looks it up, and every endpoint once with its weight."""
    code, out, err = tcpgw("explain", "-c", config, "--service", service, key)
    assert (code, err) == (0, "")
    assert all(words in out for words in said), out
    rows = re.findall(r"^│ (\d) +│ (\S+) +│ (\d+) ", out, re.MULTILINE)
    assert [place for place, _, _ in rows] == ["1", "2"]
    told = json.loads(tcpgw("endpoints", "-c", config, "--service", service, "--json").out)[service]
    assert {(endpoint, int(weight)) for _, endpoint, weight in rows} == {
        (member["endpoint"], member["weight"]) for member in told
    }


@pytest.mark.parametrize(
    ("service", "key"), [("s", "10.0.0"), ("s", "10.0.0.7:40000"), ("s", "client"), ("port", "10.0.0.7")]
)
def test_a_key_of_the_wrong_kind_is_2(config: Path, service: str, key: str) -> None:
    """The message says what the service's key is."""
    code, out, err = tcpgw("explain", "-c", config, "--service", service, key)
    assert (code, out) == (2, "")
    kind = {"s": "source_ip", "port": "source_ip_port"}[service]
    assert err.startswith(f"{key!r} is not a key of service {service}, whose balance.key is {kind}: ")


# ---- what tables show ----


def test_ipv6_addresses_are_shown(tmp_path: Path) -> None:
    """Brackets belong to an address: no table takes them for its own markup."""
    text = STATIC.replace("10.0.0.1:80", "[fd00::1]:80").replace("127.0.0.1:9000", "[fd00::7]:9000")
    file = write(tmp_path, text)
    assert "[fd00::7]:9000" in tcpgw("check", "-c", file).out
    assert "[fd00::1]:80" in tcpgw("endpoints", "-c", file).out
    assert "[fd00::1]:80" in tcpgw("explain", "-c", file, "--service", "s", "fd00::2").out


def test_long_names_are_shown_whole(tmp_path: Path) -> None:
    """A table that is too narrow breaks a cell; it never leaves out the end of a name or an address."""
    name, bind = "n" * 63, f"unix:/run/{'tcpgw/' * 12}s"
    file = write(tmp_path, STATIC.replace('"s"', f'"{name}"').replace("127.0.0.1:9000", bind))
    for command in ("check", "endpoints"):
        code, out, _ = tcpgw(command, "-c", file)
        assert code == 0
        assert "…" not in out
        assert out.count("n" * 10) > 1
    rows = [
        re.split(" *│ *", row) for row in tcpgw("check", "-c", file).out.splitlines() if row.startswith("│")
    ]
    assert bind in "".join(cell for row in rows for cell in row[2:3])


def test_a_mapped_address_is_the_key_of_the_ipv4_client(config: Path) -> None:
    """`explain` sees an address as a listener does, which takes an IPv4-mapped one as IPv4."""
    mapped, plain = (
        tcpgw("explain", "-c", config, "--service", "s", key).out for key in ("::ffff:10.0.0.7", "10.0.0.7")
    )
    assert mapped.replace("::ffff:", "") == plain


# ---- secrets ----

SECRETS = {
    "password": "pa55-Wort!in-the-clear",
    "access": "AKIDINTHECLEAR00",
    "secret": "s3cret/key+in-the-clear",
}


async def test_no_output_holds_a_secret(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Literal secrets in the configuration are in no output of any command, neither result, error nor log.

    Neither where they are right, nor where the cloud refuses them, nor where the configuration has a fault
    beside them.
    """
    async with Cloud({"s": ["127.0.0.1:9"], "t": ["127.0.0.1:9"]}, calls_per_minute=2000) as cloud:
        cloud.password, cloud.access_key, cloud.secret_key = SECRETS.values()
        other = account(cloud, auth=access_key(cloud)).replace("cloud.modelarts", "cloud.other")
        services = modelarts(more='wait = "100ms"') + modelarts("t", more='wait = "100ms"').replace(
            'type = "modelarts"', 'type = "modelarts", cloud = "other"'
        )
        text = '[gateway]\nlog = { level = "debug" }\n' + account(cloud) + other + services + listener()
        assert all(secret in text for secret in SECRETS.values())
        files = {
            write(tmp_path, text): 0,
            write(tmp_path, text.replace("= 2000", "= 0").replace("iam =", "imam ="), "faults.toml"): 2,
            write(tmp_path, text.replace(f'{SECRETS["password"]}"', SECRETS["password"]), "open_end.toml"): 2,
        }
        said: list[str] = []
        for file, code in files.items():
            for command in (["check"], ["endpoints", "--json"], ["explain", "--service", "s", "::1"]):
                outcome = await asyncio.to_thread(tcpgw, *command, "-c", file)
                assert outcome.code == code, outcome
                said += outcome[1:]
        said.append(await asyncio.to_thread(run_until, "ready", tmp_path, text))
        cloud.password = cloud.secret_key = "changed-meanwhile"
        refused = await asyncio.to_thread(tcpgw, "endpoints", "-c", next(iter(files)))
        assert refused.err.count(": 401 ") == 2
        said += refused[1:]
        said.append(await asyncio.to_thread(run_until, "ready", tmp_path, text))
    assert said[-1].count("discovery_failed") >= 2
    everything = "".join([*said, *capfd.readouterr()])
    for secret in SECRETS.values():
        assert secret not in everything


def run_until(event: str, folder: Path, config: str) -> str:
    """All that `tcpgw run` says, ended after that event."""
    with started(folder, config) as run:
        run.until(event)
        run.signal(signal.SIGTERM)
        run.end()
        return run.log.read_text()


# ---- run ----


def test_run_logs_json_lines_to_stderr(tmp_path: Path) -> None:
    """Into a pipe each line is one JSON object with its time and level, and stdout stays empty."""
    with started(tmp_path, relaying([("127.0.0.1", 9)])) as run:
        assert run.ready().ready["version"] == __version__
        run.signal(signal.SIGTERM)
        lines = run.end()
    assert all({"ts", "level", "event"} <= line.keys() for line in lines)
    assert [line["event"] for line in lines].count("ready") == 1


def test_run_without_usable_credentials_is_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the configuration but cannot work on this machine is told, with what to do."""
    hidden = tmp_path / "huaweicloudsdkcore.py"  # found first, and no package
    hidden.write_text("")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    cloud = Cloud()
    text = account(cloud, "http://127.0.0.1:1", auth=access_key(cloud)) + modelarts() + listener()
    with started(tmp_path, text) as run:
        last = run.end(code=1)[-1]
    assert (last["event"], last["level"]) == ("stopped", "error")
    assert "pip install 'tcpgw[aksk]'" in last["error"]
