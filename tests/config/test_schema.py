"""What a configuration may say, and what it means where it says nothing."""

from pathlib import Path

import pytest

from tcpgw.config import schema
from tcpgw.config.load import json_schema, load
from tcpgw.config.schema import Admin, Config, ConnectionLog, Gateway, Log

VALID = Path(__file__).parent.parent / "data" / "valid"


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


def test_defaults_of_the_process() -> None:
    """What is left out of [gateway] has the values that operators expect."""
    gateway = Gateway()
    assert (gateway.workers, gateway.unsupervised) == (0, 60)
    assert (gateway.drain, gateway.hard_stop, gateway.rpc_memory) == (30, 60, 256 << 20)
    assert (gateway.overload.lag, gateway.overload.memory) == (0.5, None)
    assert isinstance(gateway.admin, Admin)
    assert (str(gateway.admin.bind), gateway.admin.token, gateway.admin.hosts) == ("127.0.0.1:9080", None, ())
    assert (gateway.log.format, gateway.log.level, gateway.log.connections) == ("auto", "info", True)
    requests = gateway.log.requests
    assert (requests.sample, requests.slow, requests.errors, requests.per_second) == (0, "off", True, 100)


def test_lines_of_connections_are_a_switch_or_a_table() -> None:
    """`true` is the table of defaults, `false` is none at all."""
    table = ConnectionLog(opened=False, every="off", sample=1.0, per_second=1000)
    assert Log(connections=True).of_connections == table
    assert Log(connections=False).of_connections is None
    assert Log(connections=ConnectionLog(sample=0.5)).of_connections == ConnectionLog(sample=0.5)


def test_every_table_can_be_had_from_one_place() -> None:
    """Who uses a configuration need not know which module a table stands in."""
    tables = json_schema()["$defs"]
    assert len(tables) > 15
    assert set(tables) <= set(schema.__all__)
    assert all(hasattr(schema, name) for name in schema.__all__)
