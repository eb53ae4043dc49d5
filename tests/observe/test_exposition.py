"""Metrics as Prometheus reads them."""

import subprocess

import pytest
from prometheus_client import Metric as Read
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_openmetrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from tcpgw.observe import metrics as m
from tcpgw.observe.exposition import Exposition
from tcpgw.observe.histogram import Histogram

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def everything() -> Exposition:
    """A series of each metric, with labels that need care."""
    made = Exposition()
    times = Histogram()
    for microseconds in (1, 63, 64, 200_000, 1 << 33):
        times.add(microseconds / 1e6)
    for metric in m.ALL:
        labels = [f'a "{label}"\\\n' for label in metric.labels]
        if metric.kind == "histogram":
            made.set_histogram(metric, times.figures(), *labels)
        else:
            made.set(metric, 3, *labels)
    return made


def families(accept: str) -> dict[str, Read]:
    data, content_type = everything().render(accept)
    read = read_openmetrics if "openmetrics" in content_type else read_text
    return {family.name: family for family in read(data.decode())}


@pytest.mark.parametrize("accept", ["", "text/plain", "*/*", OPENMETRICS])
def test_it_can_be_read(accept: str) -> None:
    """Every metric is there, of its kind, with its help and labels, in both forms."""
    found = families(accept)
    assert len(found) == len(m.ALL)
    for metric in m.ALL:
        family = found[metric.name.removesuffix("_total")]
        assert (family.type, family.documentation) == (metric.kind, metric.help)
        for sample in family.samples:
            labels = {key: one for key, one in sample.labels.items() if key != "le"}
            assert labels == {label: f'a "{label}"\\\n' for label in metric.labels}


def test_the_form_is_what_was_asked_for() -> None:
    """By the Accept header; OpenMetrics has an end."""
    data, content_type = everything().render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert data.endswith(b"# EOF\n")
    for accept in ("application/openmetrics-text;version=abc", "text/plain;version=1.x"):
        assert everything().render(accept)[1].startswith("text/plain; version=0.0.4")
    assert everything().render("text/html")[1].startswith("text/plain; version=0.0.4")


def test_buckets_are_cumulative_and_exact() -> None:
    """Each holds what did not exceed it, and the last one all."""
    samples = families("")["tcpgw_request_duration_seconds"].samples
    buckets = {float(one.labels["le"]): one.value for one in samples if one.name.endswith("_bucket")}
    assert buckets[64e-6] == 2
    assert buckets[128e-6] == 3
    assert buckets[0.131072] == 3
    assert buckets[0.262144] == 4
    assert buckets[67.108864] == 4
    assert buckets[float("inf")] == 5
    assert next(one.value for one in samples if one.name.endswith("_count")) == 5


def test_labels_are_those_declared() -> None:
    """Neither fewer nor more."""
    with pytest.raises(ValueError, match="tcpgw_endpoint_weight has the labels"):
        Exposition().set(m.ENDPOINT_WEIGHT, 1, "s")


def test_promtool_finds_no_fault() -> None:
    """`promtool check metrics`, which knows the conventions."""
    data, _ = everything().render("")
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=data, capture_output=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
