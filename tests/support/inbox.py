"""A receiver of alerts: an HTTP server of a test's own, which keeps what it is told."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web


class Inbox:
    """`messages` in the order in which they came, with `path`, `headers` and `body`."""

    def __init__(self) -> None:
        self.url = ""
        self.messages: list[dict[str, Any]] = []

    async def handle(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.messages.append({"path": request.path, "headers": request.headers, "body": body})
        return web.Response()

    @property
    def told(self) -> list[str]:
        """The status of each notification, and of what."""
        return [
            " ".join(
                [
                    one["body"]["status"],
                    *(dict(alert["labels"])["alertname"] for alert in one["body"]["alerts"]),
                ]
            )
            for one in self.messages
        ]


@contextlib.asynccontextmanager
async def inbox() -> AsyncIterator[Inbox]:
    """One that is there for the time of the context, on a port that the kernel chose."""
    made, app = Inbox(), web.Application()
    app.router.add_post("/{rest:.*}", made.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()
