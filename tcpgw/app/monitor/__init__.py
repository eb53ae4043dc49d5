"""What a gateway does and did: the figures of all its workers, for metrics, views, status and alerts."""
