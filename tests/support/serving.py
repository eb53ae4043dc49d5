"""HTTP servers of one handler each, for who asks others by HTTP."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web
from yarl import URL

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[URL]]


@contextlib.asynccontextmanager
async def serving(path: str = "/") -> AsyncIterator[Serve]:
    """Serve every request by one handler, at whatever path; the URL that it returns has this one."""
    runners: list[web.AppRunner] = []

    async def start(handler: Handler) -> URL:
        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", handler)
        runners.append(web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1))
        await runners[-1].setup()
        await web.TCPSite(runners[-1], "127.0.0.1", 0).start()
        return URL(f"http://127.0.0.1:{runners[-1].addresses[0][1]}{path}")

    yield start
    for runner in runners:
        await runner.cleanup()
