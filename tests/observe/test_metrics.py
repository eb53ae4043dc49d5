"""The catalogue of metrics."""

import re

import pytest

from tcpgw.observe.metrics import ALL, Metric


def test_each_is_declared_once() -> None:
    """No two have one name."""
    assert len(ALL) > 40
    assert len({metric.name for metric in ALL}) == len(ALL)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.name)
def test_names_and_helps(metric: Metric) -> None:
    """As Prometheus has them: base units, _total for counters alone, a help that is a sentence."""
    assert re.fullmatch("tcpgw_[a-z][a-z_]*[a-z]", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search("_(ms|milliseconds|minutes|kb|mb|percent)(_|$)", metric.name)
    assert metric.help.endswith(".")
    assert all(re.fullmatch("[a-z]+", label) for label in metric.labels)
    assert bool(metric.bounds) == (metric.kind == "histogram")
    assert all(bound & (bound - 1) == 0 for bound in metric.bounds), "else buckets would be estimates"
