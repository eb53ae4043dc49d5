"""An issuer's set of keys behind a URL of this machine."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator

from aiohttp import web


class Issuer:
    """Answers with `text`, as `status`, `delay` seconds late; counts how often it was `asked`."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.status = 200
        self.delay = 0.0
        self.asked = 0
        self.url = ""

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        app = web.Application()
        app.router.add_get("/jwks", self._answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port = runner.addresses[0][:2]
            self.url = f"http://{host}:{port}/jwks"
            yield
        finally:
            await runner.cleanup()

    async def _answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        await asyncio.sleep(self.delay)
        return web.Response(text=self.text, status=self.status)


@contextlib.contextmanager
def issuing(text: str) -> Iterator[Issuer]:
    """One in a thread of its own, for tests without a loop."""
    issuer, ready = Issuer(text), threading.Event()
    loop = asyncio.new_event_loop()
    end = asyncio.Event()

    async def serve() -> None:
        async with issuer.serving():
            ready.set()
            await end.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield issuer
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()
