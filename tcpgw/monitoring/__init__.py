"""What other monitoring takes: Prometheus' rule file, and Grafana's dashboard."""
