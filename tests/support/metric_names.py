"""The metrics that the gateway exports, by name, with their labels; and those that an expression names."""

import re

from tcpgw.observe.metrics import ALL

METRICS = {metric.name: {*metric.labels, *(["le"] if metric.kind == "histogram" else [])} for metric in ALL}


def named(expression: str) -> set[str]:
    """The gateway's metrics in a PromQL expression; of a histogram's series, the histogram."""
    found = set(re.findall(r"\btcpgw_\w+", expression))
    histograms = {name for name, labels in METRICS.items() if "le" in labels}
    return {
        base if (base := re.sub("_(bucket|sum|count)$", "", name)) in histograms else name for name in found
    }


def labels_named(expression: str) -> set[str]:
    """The labels in an expression, but those that are set by Prometheus."""
    matched = re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', expression)
    grouped = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expression)
    return {*matched, *(label for group in grouped for label in re.findall(r"\w+", group))} - {
        "instance",
        "job",
    }
