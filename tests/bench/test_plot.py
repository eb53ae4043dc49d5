"""The picture."""

from pathlib import Path

import pytest

from tcpgw.address import Address
from tcpgw.bench.plan import Plan
from tcpgw.bench.plot import draw, points
from tcpgw.bench.report import Measured
from tests.bench.test_tally import counted

pytest.importorskip("matplotlib", reason="comes with the extra plot")


def test_the_curve_is_the_percentiles() -> None:
    """Of 1,000 requests half took 1 ms, 49.9 % 2 ms and one 10 ms: three steps, the last at one in 1,000."""
    counts = counted([1000] * 500 + [2000] * 499 + [10_000])
    xs, ys = points(counts.histogram)
    assert xs == pytest.approx([1, 2, 2, 1000, 1000, 1000])
    assert ys == pytest.approx([1, 1, 2, 2, 10, 10], rel=0.001)
    assert points(counted([]).histogram) == ([], [])


def test_a_picture_of_two_targets(tmp_path: Path) -> None:
    """The ending says the format; the picture names the load and both targets."""
    sides = [
        Measured(Address("127.0.0.1", 1), (counted([100, 200, 900]),)),
        Measured(Address("127.0.0.1", 2), (counted([150] * 20, timeout=1),)),
    ]
    draw(Plan(), sides, tmp_path / "p.svg")
    draw(Plan(), sides, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG\r\n")
    svg = (tmp_path / "p.svg").read_text()
    for text in ("127.0.0.1:1: 3 requests/s, 0 failed", "127.0.0.1:2: 20 requests/s, 1 failed", "90 %"):
        assert text in svg


def test_a_picture_of_nothing(tmp_path: Path) -> None:
    """A target that answered nothing is in the legend, and no reason to fail."""
    draw(Plan(), [Measured(Address("127.0.0.1", 1), (counted([]),))], tmp_path / "p.svg")
    assert "127.0.0.1:1: 0 requests/s" in (tmp_path / "p.svg").read_text()
