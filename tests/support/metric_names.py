"""The metrics that the gateway exports, by name, with their labels.

TO BE SWAPPED: for the catalogue in tcpgw/observe/metrics.py, as soon as that is there.
"""

import re

METRICS = {
    "tcpgw_build_info": {"version"},
    "tcpgw_start_time_seconds": set[str](),
    "tcpgw_connections_accepted_total": {"listener"},
    "tcpgw_connections_opened_total": {"listener", "service"},
    "tcpgw_connections_active": {"listener", "service"},
    "tcpgw_connections_closed_total": {"listener", "service", "reason"},
    "tcpgw_connection_duration_seconds": {"listener", "service", "le"},
    "tcpgw_connection_received_bytes_total": {"listener", "service"},
    "tcpgw_connection_sent_bytes_total": {"listener", "service"},
    "tcpgw_connect_duration_seconds": {"service", "le"},
    "tcpgw_accept_pauses_total": {"listener"},
    "tcpgw_accept_failures_total": {"listener"},
    "tcpgw_access_denied_total": {"listener", "reason"},
    "tcpgw_requests_total": {"listener", "service", "method", "outcome"},
    "tcpgw_requests_in_flight": {"service", "method"},
    "tcpgw_request_duration_seconds": {"listener", "service", "method", "le"},
    "tcpgw_retries_total": {"service"},
    "tcpgw_retries_refused_total": {"service"},
    "tcpgw_hedges_total": {"service"},
    "tcpgw_invocations_total": {"service", "version"},
    "tcpgw_failed_invocations_total": {"service", "version"},
    "tcpgw_endpoints": {"service", "state"},
    "tcpgw_endpoint_state": {"service", "endpoint", "state"},
    "tcpgw_endpoint_weight": {"service", "endpoint"},
    "tcpgw_endpoint_in_flight": {"service", "endpoint"},
    "tcpgw_endpoint_picks_total": {"service", "endpoint"},
    "tcpgw_endpoint_connects_total": {"service", "endpoint"},
    "tcpgw_endpoint_failures_total": {"service", "endpoint", "kind"},
    "tcpgw_hash_imbalance_ratio": {"service"},
    "tcpgw_snapshot_version": {"service"},
    "tcpgw_snapshot_taken_timestamp_seconds": {"service"},
    "tcpgw_discovery_calls_total": {"service"},
    "tcpgw_discovery_errors_total": {"service"},
    "tcpgw_discovery_last_success_timestamp_seconds": {"service"},
    "tcpgw_cloud_budget_calls": {"cloud"},
    "tcpgw_cloud_budget_left_calls": {"cloud"},
    "tcpgw_ejections_total": {"service"},
    "tcpgw_ejections_spared_total": {"service"},
    "tcpgw_panics_total": {"service"},
    "tcpgw_panic": {"service"},
    "tcpgw_queue_waiting": {"service"},
    "tcpgw_overloads_total": set[str](),
    "tcpgw_overloaded": set[str](),
    "tcpgw_shed_total": set[str](),
    "tcpgw_route_weight_ratio": {"listener", "service"},
    "tcpgw_event_loop_lag_seconds": {"process"},
    "tcpgw_workers": {"state"},
    "tcpgw_worker_restarts_total": set[str](),
    "tcpgw_process_cpu_seconds_total": {"process"},
    "tcpgw_process_resident_memory_bytes": {"process"},
    "tcpgw_process_open_fds": {"process"},
    "tcpgw_config_reloads_total": {"result"},
    "tcpgw_config_last_reload_timestamp_seconds": set[str](),
    "tcpgw_certificate_expiry_timestamp_seconds": {"listener", "kind"},
    "tcpgw_alerts": {"alert", "severity"},
}


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
