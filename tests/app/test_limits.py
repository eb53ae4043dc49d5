"""What a worker's process can hold of what the configuration allows."""

from pathlib import Path

from structlog.testing import capture_logs

from tcpgw.app.limits import fitted
from tcpgw.config.load import loads
from tcpgw.process.limits import needed_files
from tests.support.processes import relaying

CONFIG = loads(relaying([("127.0.0.1", 9)], listener="max_connections = 1000"), Path())


def test_what_fits_stays_as_it_is() -> None:
    """And nothing is said."""
    with capture_logs() as logs:
        assert fitted(CONFIG, needed_files(1000)) is CONFIG
    assert not logs


def test_what_does_not_is_lowered_and_said() -> None:
    """To what the descriptors are enough for, and never to nothing."""
    with capture_logs() as logs:
        (listener,) = fitted(CONFIG, needed_files(100)).listener
        (least,) = fitted(CONFIG, 10).listener
    assert listener.max_connections == 100
    assert least.max_connections == 1
    assert [line["event"] for line in logs] == ["max_connections_lowered"] * 2
    assert logs[0]["max_connections"] == {"l": 100}
    assert logs[0]["needed"] == needed_files(1000)
