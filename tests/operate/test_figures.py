"""Figures that people read."""

import pytest

from tcpgw.operate import figures


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"), (0.4, "0 s"), (42, "42 s"), (60, "1 min"), (7500, "2 h 5 min"), (7200, "2 h"),
        (360_000, "4 d 4 h"), (86_400, "1 d"),
    ],
)  # fmt: skip
def test_ages(seconds: float, text: str) -> None:
    """Two units at most."""
    assert figures.age(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"), (0.0000049, "4.90 µs"), (0.00085, "850 µs"), (0.00425, "4.25 ms"), (0.0999, "99.9 ms"),
        (0.9999, "1.00 s"), (12.34, "12.3 s"),
    ],
)  # fmt: skip
def test_latencies(seconds: float | None, text: str) -> None:
    """Three digits, whatever it is."""
    assert figures.latency(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1024, "1.00 KiB"),
        (1023.9 * 1024, "1.00 MiB"),
        (340 << 20, "340 MiB"),
        (5 << 40, "5.00 TiB"),
    ],
)
def test_sizes(count: float, text: str) -> None:
    """As the configuration writes them."""
    assert figures.size(count) == text


def test_rates_and_shares() -> None:
    """Small ones keep their digits, great ones their commas."""
    assert [figures.rate(one) for one in (0, 0.25, 12.34, 99.97, 1234.5)] == [
        "0",
        "0.25",
        "12.3",
        "100",
        "1,234",
    ]
    assert [figures.share(one) for one in (None, 0.125)] == ["-", "12.5%"]
