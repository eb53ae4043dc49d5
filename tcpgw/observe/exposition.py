"""Metrics as Prometheus reads them: text of its own form or OpenMetrics, by what is asked for."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import Any

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from tcpgw.observe.histogram import cumulative
from tcpgw.observe.metrics import ALL
from tcpgw.observe.metrics import Metric as Declared


class Exposition(Collector):
    """What is exposed at one scrape. Each series is set once; those of undeclared labels raise ValueError."""

    def __init__(self) -> None:
        self._values: defaultdict[Declared, list[tuple[tuple[str, ...], Any]]] = defaultdict(list)

    def __len__(self) -> int:
        """How many series it has; a histogram is one."""
        return sum(map(len, self._values.values()))

    def set(self, metric: Declared, value: float, *labels: str) -> None:
        """Say the value of the series with these label values, in the order of the metric's labels."""
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has the labels {metric.labels}, not {labels}")
        self._values[metric].append((labels, value))

    def set_histogram(self, metric: Declared, figures: Mapping[str, Any], *labels: str) -> None:
        """As `set`, of what `Histogram.figures` says."""
        self.set(metric, figures, *labels)  # type: ignore[arg-type]

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client asks for it."""
        for metric in ALL:
            if metric in self._values:
                yield _family(metric, self._values[metric])

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the text, and the content type, that suit an Accept header, Prometheus' own if none does."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # it has a version that is no number
            encode, content_type = choose_encoder("")
        return encode(registry), content_type


def _family(metric: Declared, values: Iterable[tuple[tuple[str, ...], Any]]) -> Metric:
    match metric.kind:
        case "counter":
            counter = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in values:
                counter.add_metric(labels, value)
            return counter
        case "gauge":
            gauge = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, value in values:
                gauge.add_metric(labels, value)
            return gauge
        case "histogram":
            histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
            for labels, figures in values:
                histogram.add_metric(labels, _buckets(metric, figures), figures["sum"])
            return histogram


def _buckets(metric: Declared, figures: Mapping[str, Any]) -> list[tuple[str, float]]:
    counts = [*cumulative(figures["buckets"], metric.bounds), (inf, figures["count"])]
    return [(floatToGoString(bound), float(count)) for bound, count in counts]  # type: ignore[no-untyped-call]
