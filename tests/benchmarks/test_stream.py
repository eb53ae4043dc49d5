"""What the stream benchmark computes from its peers' answers."""

import json

import pytest
from load import WORKLOADS, read_iperf3, read_redis_benchmark
from processes import BenchmarkError
from report import AIMS, Results, Sample, summary, table, verdicts

CSV_ANSWER = (
    '"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"\n'
    '"GET","53191.49","0.608","0.176","0.591","0.919","1.111","2.583"\n'
)


def rounds(path: str, *rates: float, cpu: float | None = None) -> list[Sample]:
    return [
        Sample(number, "keepalive-50", path, 1000.0, float(rate), cpu) for number, rate in enumerate(rates)
    ]


def test_redis_benchmark_answer_is_read() -> None:
    """Rate and latencies come from the CSV row, whatever is printed before it."""
    load = read_redis_benchmark("WARNING: could not fetch server CONFIG\n" + CSV_ANSWER, 20_000)
    assert load == (20_000, 53191.49, 0.591, 1.111)


@pytest.mark.parametrize(
    "text", ["", "Error: Server closed the connection\n", CSV_ANSWER.replace("GET", 'GET","x')]
)
def test_redis_benchmark_without_its_row_is_an_error(text: str) -> None:
    """An answer that is not the one expected row is refused and shown, never read as a rate."""
    with pytest.raises(BenchmarkError, match="not one CSV row"):
        read_redis_benchmark(text, 20_000)


def test_iperf3_answer_is_read() -> None:
    """Throughput is what the receiver got, in GiB and GiB per second."""
    received = {"bytes": 3 * 2**30, "bits_per_second": 8 * 2**30}
    sent = {"bytes": 4 * 2**30, "bits_per_second": 9 * 2**30}
    text = json.dumps({"end": {"sum_sent": sent, "sum_received": received}})
    assert read_iperf3(text)[:2] == (3.0, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"end": {}, "error": "unable to connect to server"}', "unable to connect to server"),
        ('{"end": {}}', "sum_received"),
        ("", "not JSON"),
    ],
)
def test_iperf3_failure_is_an_error(text: str, message: str) -> None:
    """A failed test is an error in iperf3's own words, though iperf3 itself may exit with 0."""
    with pytest.raises(BenchmarkError, match=message):
        read_iperf3(text)


def test_ratio_is_taken_within_rounds() -> None:
    """A machine that halves its speed between rounds changes no ratio: 0.8, not a quotient of medians."""
    results = Results([*rounds("haproxy", 100, 50, 200), *rounds("tcpgw", 80, 40, 300)])
    assert results.ratio("keepalive-50", "tcpgw", "haproxy") == 0.8


def test_ratio_uses_only_rounds_that_both_ran() -> None:
    """A round in which one of the two is missing adds no ratio, and no common round gives none."""
    results = Results([*rounds("haproxy", 100), *rounds("tcpgw", 90, 10)])
    assert results.ratio("keepalive-50", "tcpgw", "haproxy") == 0.9
    assert results.ratio("keepalive-50", "tcpgw", "envoy") is None


def test_table_shows_rates_ratios_and_cpu() -> None:
    """A row holds median, range, ratios and the proxy's CPU time; direct, having no proxy, a dash."""
    samples = [*rounds("direct", 2000, 1000), *rounds("haproxy", 500, 1500, cpu=0.0002)]
    lines = table(WORKLOADS[0], summary(Results(samples), WORKLOADS, ["direct", "haproxy"])).splitlines()
    assert lines[2].split() == ["direct", "1,500", "1,000", "2,000", "1.00", "2.33", "-", "-", "-", "-"]
    assert lines[3].split() == [
        "haproxy",
        "1,000",
        "500",
        "1,500",
        "0.88",
        "1.00",
        "200.0",
        "1.00",
        "20%",
        "-",
    ]


def test_aims_are_met_only_where_measured() -> None:
    """An aim just reached is met, one just missed is named, and one that was not measured is not met."""
    reached = [Sample(0, a.workload, a.reference, 1.0, 100.0) for a in AIMS]
    mine = [Sample(0, name, "tcpgw", 1.0, 100.0) for name in {a.workload for a in AIMS}]
    assert verdicts(Results([*reached, *mine]))[1] is True

    slow = [sample._replace(rate=89.0) if sample.workload == "bulk" else sample for sample in mine]
    lines, met = verdicts(Results([*reached, *slow]))
    assert not met
    assert [line for line in lines if "MISSED" in line] == ["bulk: at least 0.9 of haproxy: 0.89, MISSED"]

    lines, met = verdicts(Results(mine))
    assert not met
    assert all(line.endswith("not measured") for line in lines)
