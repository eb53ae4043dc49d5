"""What one process logs of its clients: one account for all its listeners, and one for all its services."""

from tcpgw.config.log import Log
from tcpgw.relay.lines import ConnectionLines
from tcpgw.relay.rpc.request_lines import RequestLines


class Lines:
    """Used in one running event loop."""

    def __init__(self, settings: Log) -> None:
        self.connections = ConnectionLines(settings.of_connections)
        self.requests = RequestLines(settings.requests)

    def change(self, settings: Log) -> None:
        """Go by other settings from now on."""
        self.connections.change(settings.of_connections)
        self.requests.change(settings.requests)

    def close(self) -> None:
        """Tell what was not told yet. Idempotent."""
        self.connections.close()
        self.requests.close()
