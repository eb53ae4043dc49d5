"""What the admin server asks of the gateway that it shows: a contract, kept by the supervisor."""

from collections.abc import Mapping
from typing import Any, Protocol

Json = dict[str, Any]
"""What JSON can say: texts, numbers, booleans, None, lists and tables with texts for keys."""


class Source(Protocol):
    """A running gateway.

    What is not awaited must return at once: it is called each second, on the loop. Everything that is awaited
    may be cancelled, by a time-out, and leaves no half change then.

    Actions raise TcpgwError where they cannot be done; its text is shown to who asked, and one with the blame
    "operator" means that he asked wrong. What they return is shown too, and must be JSON. `service` None: in
    every service that has the endpoint.
    """

    async def status(self) -> Json:
        """Return everything since the start."""

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their Content-Type, in the best of the forms that `accept` allows."""

    def view(self) -> Json | None:
        """Return what is going on now, None before it was made for the first time.

        The same object until there is another, which is never changed: it is encoded once for all readers.
        """

    def charts(self) -> Json:
        """Return each service's figures of the last five minutes."""

    def ready(self) -> str:
        """Return "" where clients can be served, else why not."""

    async def drain(self, endpoint: str, service: str | None) -> Any:
        """Give an endpoint nothing new, until `undrain`."""

    async def undrain(self, endpoint: str, service: str | None) -> Any:
        """Take `drain` back: it has the weight that was given to it last, else discovery's. Idempotent."""

    async def weight(self, endpoint: str, weight: int | None, service: str | None) -> Any:
        """Give an endpoint another weight than discovery says, until None gives that back."""

    async def silence(self, alert: str, labels: Mapping[str, str], seconds: float, comment: str) -> Any:
        """Send no notices of an alert for so long."""

    async def unsilence(self, alert: str, labels: Mapping[str, str]) -> int:
        """End the silence with just these labels, without any all of that name; return how many that were."""

    async def reload(self) -> Any:
        """Read the configuration again; return what changed, line by line."""
