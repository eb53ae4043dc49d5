"""Who may use what: networks, credentials, limits, TLS."""
